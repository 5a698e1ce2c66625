//! The configuration space over the wire, and its changes in both directions.

use std::time::Duration;

use super::device::{Event, SOON};
use super::rig::{Bad, CONFIG_SIZE, run, run_in, works};
use crate::sim::wire::{self, req};
use crate::sim::{Deadline, eventually};

#[test]
fn reading() {
    run("config_reading", |rig| {
        let s = rig.builder().not_started().connect(rig.path());
        let all: Vec<u8> = (0..CONFIG_SIZE as u8).collect();
        assert_eq!(s.fe().get_config(0, 64).unwrap(), all);
        assert_eq!(s.fe().get_config(63, 1).unwrap(), [63]);
        assert_eq!(s.fe().get_config(10, 3).unwrap(), [10, 11, 12]);
        // Front-ends ask for the size of their own structure, which may be larger.
        let more = s.fe().get_config(0, 256).unwrap();
        assert_eq!(more[..64], all);
        assert!(more[64..].iter().all(|&byte| byte == 0));
        assert_eq!(s.fe().get_config(62, 4).unwrap(), [62, 63, 0, 0]);
        rig.server.set_config(8, &[0x88]).unwrap();
        assert_eq!(s.fe().get_config(7, 3).unwrap(), [7, 0x88, 9]);
    });
}

#[test]
fn case_56_ranges_that_make_no_sense() {
    run("case_56", |rig| {
        let mut s = rig.session();
        let access = |offset: u32, size: u32, payload: usize| {
            let mut body = wire::vring_state(offset, size);
            body.extend_from_slice(&[0; 4]);
            body.resize(12 + payload, 0);
            body
        };
        for body in [
            access(0, 0, 0),
            access(0, 257, 256),
            access(0, 257, 257),
            access(0, u32::MAX, 4),
            access(0, u32::MAX, 0),
            access(u32::MAX, 1, 1),
            access(u32::MAX - 3, 8, 8),
            access(0, 8, 4),
            access(0, 4, 8),
            vec![0; 4],
        ] {
            for flags in [0, wire::FLAG_NEED_REPLY] {
                s.fe().send(req::GET_CONFIG, flags, &body, &[]).unwrap();
                let reply = s.fe().recv_reply(req::GET_CONFIG).unwrap();
                assert!(
                    reply.body.is_empty(),
                    "GET_CONFIG {body:x?}: {:x?}",
                    reply.body
                );
            }
            rig.all_refused(&mut s, &[Bad::new(req::SET_CONFIG, body)]);
        }
    });
}

#[test]
fn case_57_writing() {
    run("case_57", |rig| {
        let mut s = rig.session();
        let before = rig.config();
        let write = |offset, flags, payload: &[u8]| {
            Bad::new(req::SET_CONFIG, wire::config(offset, flags, payload))
        };
        rig.all_refused(
            &mut s,
            &[
                write(0, 0, &[9]).named("a read-only byte"),
                write(15, 0, &[9, 9]).named("one of two is read-only"),
                write(31, 0, &[9, 9]).named("the other of two is read-only"),
                write(63, 1, &[9, 9]).named("partly outside"),
                write(64, 1, &[9]).named("outside"),
                write(16, 2, &[9]).named("flags 2"),
                write(16, 3, &[9]).named("flags 3"),
                write(16, u32::MAX, &[9]).named("all flags"),
            ],
        );
        assert_eq!(rig.config(), before, "config space after refusals");
        assert_eq!(
            rig.device
                .count(|e| matches!(e, Event::ConfigWritten { .. })),
            0
        );
        s.fe().set_config(16, 0, &[0xa0, 0xa1]).unwrap();
        rig.device.take_event(Event::ConfigWritten {
            offset: 16,
            size: 2,
        });
        // Migration restores what the driver may not write.
        s.fe().set_config(0, 1, &[0xb0; CONFIG_SIZE]).unwrap();
        rig.device.take_event(Event::ConfigWritten {
            offset: 0,
            size: CONFIG_SIZE as u32,
        });
        assert_eq!(rig.config(), [0xb0; CONFIG_SIZE]);
        assert_eq!(s.fe().get_config(0, 64).unwrap(), [0xb0; CONFIG_SIZE]);
        works(&mut s);
    });
}

#[test]
fn writes_that_the_device_has_not_heard_of_are_merged() {
    run_in(
        "merged",
        |builder| builder,
        |rig, ctx| {
            let s = rig.builder().not_started().connect(rig.path());
            // Nobody dispatches: the front-end does not wait for the device.
            for offset in [24, 18, 20] {
                s.fe().set_config(offset, 0, &[offset as u8; 2]).unwrap();
            }
            eventually("merged write", Deadline::after(SOON), true, || {
                ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
                rig.device
                    .count(|e| matches!(e, Event::ConfigWritten { .. }))
                    > 0
            });
            rig.device.take_event(Event::ConfigWritten {
                offset: 18,
                size: 8,
            });
            assert_eq!(
                rig.device
                    .count(|e| matches!(e, Event::ConfigWritten { .. })),
                0
            );
            assert_eq!(rig.config()[18..26], [18, 18, 20, 20, 22, 23, 24, 24]);
            // What comes after the delivery is told by itself.
            s.fe().set_config(30, 0, &[1, 2]).unwrap();
            eventually("second write", Deadline::after(SOON), true, || {
                ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
                rig.device.count(|e| {
                    *e == Event::ConfigWritten {
                        offset: 30,
                        size: 2,
                    }
                }) == 1
            });
        },
    );
}

#[test]
fn the_programs_own_changes_are_not_the_drivers() {
    run("own_changes", |rig| {
        let s = rig.session();
        rig.server.set_config(0, &[1, 2, 3, 4]).unwrap();
        assert_eq!(s.fe().get_config(0, 4).unwrap(), [1, 2, 3, 4]);
        assert_eq!(
            rig.device
                .count(|e| matches!(e, Event::ConfigWritten { .. })),
            0
        );
        for (offset, size) in [(60, 8), (64, 1), (u32::MAX, 4), (0, 0)] {
            let error = rig.server.set_config(offset, &vec![0; size]).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{error}");
        }
    });
}

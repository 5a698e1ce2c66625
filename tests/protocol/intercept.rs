//! Messages that the device sees before the library: what it is shown, what it may do with them, and that the
//! front-end gets exactly one reply where one is due.

use std::os::fd::AsRawFd;
use std::time::Duration;

use vu_server::{Capabilities, Error, RawMessage, ServerBuilder, Verdict};

use super::device::{Event, SOON, Script, lock};
use super::rig::{Bad, Rig, acknowledging, alive, handled, run_device, run_device_in, works};
use crate::sim::wire::{self, FLAG_NEED_REPLY, req};
use crate::sim::{Deadline, EventFd, Frontend, eventually, process};

/// Long enough to notice what must not come; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);
/// Numbers that the specification does not know, and one that has a reply of its own.
const MINE: [u32; 6] = [0, 45, 1000, u32::MAX, req::GET_CONFIG, req::SET_VRING_NUM];

fn configure(builder: ServerBuilder) -> ServerBuilder {
    builder.intercept(MINE)
}

#[track_caller]
fn run(name: &str, test: impl FnOnce(&Rig)) {
    run_device(name, Script::able(Capabilities::all()), configure, test);
}

fn decide(
    rig: &Rig,
    verdict: impl Fn(&mut RawMessage) -> vu_server::Result<Verdict> + Send + 'static,
) {
    *lock(&rig.device.verdict) = Some(Box::new(verdict));
}

/// The next reply is this one, and no other is there.
#[track_caller]
fn one_reply(fe: &Frontend, request: u32) -> Vec<u8> {
    let reply = fe.recv_reply(request).unwrap();
    alive(fe);
    reply.body
}

#[test]
fn a_device_sees_what_it_asked_for_and_nothing_else() {
    run("sees", |rig| {
        let mut s = rig.session();
        let fds = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        let fds = fds.each_ref().map(|fd| fd.as_raw_fd());
        decide(rig, |_| Ok(Verdict::Handled));
        let before = process::open_fds();
        for (request, body, fds) in [
            (0, &b""[..], &fds[..0]),
            (45, b"body", &fds[..1]),
            (1000, &[7; 4096], &fds[..]),
            (u32::MAX, b"x", &[]),
        ] {
            for need_reply in [true, false] {
                let flags = if need_reply { FLAG_NEED_REPLY } else { 0 };
                s.fe().send(request, flags, body, fds).unwrap();
                rig.device.take_event(Event::Message {
                    request,
                    need_reply,
                    body: body.to_vec(),
                    fds: fds.len(),
                });
                if need_reply {
                    assert_eq!(one_reply(s.fe(), request), 0u64.to_ne_bytes());
                }
                alive(s.fe());
            }
        }
        assert_eq!(
            process::open_fds(),
            before,
            "what the device leaves is closed"
        );
        works(&mut s);
        rig.refused(s.fe(), &Bad::new(46, []));
        let seen = rig.device.count(|e| matches!(e, Event::Message { .. }));
        assert_eq!(seen, 2, "SET_VRING_NUM of two rings");
    });
}

#[test]
fn what_is_not_the_devices_the_library_handles_as_ever() {
    run("not_mine", |rig| {
        let mut s = rig.session();
        // SET_VRING_NUM and GET_CONFIG have passed the device; unknown numbers are refused.
        assert_eq!(s.fe().get_config(4, 4).unwrap(), [4, 5, 6, 7]);
        rig.all_refused(
            &mut s,
            &[
                Bad::new(45, b"body".to_vec()),
                Bad::new(0, []),
                Bad::state(req::SET_VRING_NUM, 0, 3),
                Bad::new(req::SET_VRING_NUM, [0; 7]),
            ],
        );
        // A device that has changed what it gives back does not confuse the library.
        decide(rig, |message| {
            message.body.push(0);
            Ok(Verdict::NotMine)
        });
        rig.refused(s.fe(), &Bad::state(req::SET_VRING_NUM, 0, 8));
    });
}

#[test]
fn a_device_answers_with_bytes_and_descriptors() {
    run("answers", |rig| {
        let fe = acknowledging(rig);
        decide(rig, |message| {
            let body = message.body.iter().rev().copied().collect();
            Ok(Verdict::Reply(body, std::mem::take(&mut message.fds)))
        });
        let event = EventFd::new().unwrap();
        event.add(9).unwrap();
        for flags in [0, FLAG_NEED_REPLY] {
            for request in [45, req::GET_CONFIG] {
                fe.send(request, flags, b"abc", &[event.as_raw_fd()])
                    .unwrap();
                let reply = fe.recv_reply(request).unwrap();
                assert_eq!(reply.body, b"cba");
                assert_eq!(reply.fds.len(), 1);
                alive(&fe);
            }
        }
        assert_eq!(event.take().unwrap(), 9);
        // An answer larger than any message is none.
        decide(rig, |_| Ok(Verdict::Reply(vec![0; 4097], Vec::new())));
        rig.refused(&fe, &Bad::new(45, []));
    });
}

#[test]
fn a_device_refuses_as_the_library_would() {
    run("refuses", |rig| {
        let fe = acknowledging(rig);
        decide(rig, |_| Err(Error::new(libc::EPERM, "not today")));
        let event = EventFd::new().unwrap();
        rig.refused(
            &fe,
            &Bad::new(1000, b"x".to_vec()).fds(&[event.as_raw_fd()]),
        );
        rig.refused(&fe, &Bad::state(req::SET_VRING_NUM, 0, 8));
        for flags in [0, FLAG_NEED_REPLY] {
            let body = wire::config(0, 0, &[0; 4]);
            fe.send(req::GET_CONFIG, flags, &body, &[]).unwrap();
            assert!(one_reply(&fe, req::GET_CONFIG).is_empty());
        }
        fe.send(1000, 0, &[], &[]).unwrap();
        fe.wait_closed().unwrap();
        decide(rig, |_| Ok(Verdict::NotMine));
        rig.left("a refusal that nobody hears", "not today");
    });
}

#[test]
fn a_reply_that_must_be_is_not_forgotten() {
    run("own_reply", |rig| {
        let fe = acknowledging(rig);
        decide(rig, |_| Ok(Verdict::Handled));
        let body = wire::config(0, 0, &[0; 4]);
        fe.send(req::GET_CONFIG, FLAG_NEED_REPLY, &body, &[])
            .unwrap();
        assert!(
            one_reply(&fe, req::GET_CONFIG).is_empty(),
            "its form of an error"
        );
    });
}

#[test]
fn no_other_message_waits_for_a_loop() {
    run_device_in("waits", Script::default(), configure, |rig, ctx| {
        // Nobody dispatches the context, and everything but what the device wants is answered.
        let fe = Frontend::connect(rig.path()).unwrap();
        alive(&fe);
        assert_eq!(fe.get_queue_num().unwrap(), 2);
        let body = wire::config(0, 0, &[0; 4]);
        fe.send(req::GET_CONFIG, 0, &body, &[]).unwrap();
        assert!(!fe.answered_within(EARLY).unwrap());
        eventually("answered", Deadline::after(SOON), true, || {
            ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
            fe.answered_within(Duration::ZERO).unwrap()
        });
        assert_eq!(
            fe.recv_reply(req::GET_CONFIG).unwrap().body.len(),
            body.len()
        );
        // Nor does a stop.
        fe.send(req::GET_CONFIG, 0, &body, &[]).unwrap();
        eventually("requests", Deadline::after(SOON), 2, || {
            handled(rig, req::GET_CONFIG)
        });
        rig.server.stop().unwrap();
        fe.wait_closed().unwrap();
    });
}

//! Section A: how bytes become messages.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use super::device::Event;
use super::rig::{Bad, acknowledging, alive, handled, run, works};
use crate::sim::frontend::Piece;
use crate::sim::wire::{self, FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, Header, req};
use crate::sim::{EventFd, Seg, echo};

const MAX_BODY: u32 = 4096;

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    Header {
        request,
        flags,
        size,
    }
    .encode()
    .to_vec()
}

#[test]
fn case_01_one_byte_at_a_time() {
    run("case_01", |rig| {
        let mut s = rig.session();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        let status = wire::message(req::SET_STATUS, flags, &7u64.to_ne_bytes());
        s.fe().send_bytewise(&status, &[], 0).unwrap();
        assert_eq!(
            s.fe().recv_reply(req::SET_STATUS).unwrap().u64().unwrap(),
            0
        );
        assert_eq!(s.fe().get_status().unwrap(), 7);
        // With a descriptor on every byte that can carry it.
        let call = EventFd::new().unwrap();
        let message = wire::message(req::SET_VRING_CALL, flags, &0u64.to_ne_bytes());
        for at in 0..message.len() {
            s.fe()
                .send_bytewise(&message, &[call.as_raw_fd()], at)
                .unwrap();
            let ack = s
                .fe()
                .recv_reply(req::SET_VRING_CALL)
                .unwrap()
                .u64()
                .unwrap();
            assert_eq!(ack, 0, "descriptor with byte {at}");
        }
        s.queues[0].call = call;
        works(&mut s);
    });
}

#[test]
fn case_02_a_body_in_two_writes() {
    run("case_02", |rig| {
        let mut s = rig.session();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        let message = wire::message(req::SET_STATUS, flags, &3u64.to_ne_bytes());
        for cut in 1..message.len() {
            s.fe().send_bytes(&message[..cut], &[]).unwrap();
            s.fe().wait_consumed().unwrap();
            // The data path does not wait for the other half.
            let queue = &mut s.queues[1];
            echo::round_trip(queue, b"in the middle of a message");
            s.fe().send_bytes(&message[cut..], &[]).unwrap();
            let ack = s.fe().recv_reply(req::SET_STATUS).unwrap().u64().unwrap();
            assert_eq!(ack, 0, "cut at {cut}");
        }
        works(&mut s);
    });
}

#[test]
fn case_03_closed_between_in_and_inside_messages() {
    run("case_03", |rig| {
        let message = wire::message(req::SET_VRING_KICK, wire::VERSION, &0u64.to_ne_bytes());
        for (end, errno, reason) in [
            (0, 0, "the front-end closed the connection"),
            (5, -libc::ENODATA, "after 5 of 12 bytes of a header"),
            (
                HEADER_LEN,
                -libc::ENODATA,
                "after 0 of 8 bytes of the body of request 12",
            ),
            (
                HEADER_LEN + 3,
                -libc::ENODATA,
                "after 3 of 8 bytes of the body of request 12",
            ),
        ] {
            let fe = rig.frontend();
            let kick = EventFd::new().unwrap();
            if end > 0 {
                fe.send_bytes(&message[..end], &[kick.as_raw_fd()]).unwrap();
            }
            drop(fe);
            let what = format!("end at {end}: {errno} {reason}");
            rig.device.take(&what, |event| {
                matches!(event, Event::Disconnected { errno: e, reason: r } if *e == errno && r.contains(reason))
            });
        }
        let mut s = rig.session();
        works(&mut s);
    });
}

#[test]
fn case_04_a_size_beyond_the_maximum() {
    run("case_04", |rig| {
        let fd = EventFd::new().unwrap();
        for size in [u32::MAX, MAX_BODY + 1] {
            let fe = acknowledging(rig);
            let bytes = header(req::SET_VRING_KICK, wire::VERSION | FLAG_NEED_REPLY, size);
            fe.send_bytes(&bytes, &[fd.as_raw_fd()]).unwrap();
            rig.dropped(
                "a header with a large size",
                fe,
                &format!("size {size} exceeds"),
            );
        }
    });
}

#[test]
fn case_05_a_body_smaller_than_the_structure() {
    run("case_05", |rig| {
        let mut s = rig.session();
        let region = s.memory.regions()[0].clone();
        let add = region.wire().encode_single();
        rig.all_refused(
            &mut s,
            &[
                Bad::new(req::SET_VRING_NUM, 0u32.to_ne_bytes()),
                Bad::new(req::ADD_MEM_REG, &add[..32]).fds(&[region.raw_fd()]),
                Bad::new(req::SET_LOG_BASE, 0u64.to_ne_bytes()).fds(&[region.raw_fd()]),
                Bad::new(req::SET_VRING_ADDR, vec![0; 32]),
                Bad::new(req::SET_FEATURES, vec![0; 4]),
                Bad::new(req::SET_STATUS, vec![]),
                Bad::new(req::SET_CONFIG, vec![0; 11]),
                Bad::new(req::SET_MEM_TABLE, vec![0; 4]),
            ],
        );
    });
}

#[test]
fn case_06_a_body_larger_than_the_structure() {
    run("case_06", |rig| {
        let mut s = rig.session();
        let bad = [
            Bad::u64(req::GET_FEATURES, 0),
            Bad::new(req::SET_VRING_NUM, vec![0; 12]),
            Bad::new(req::SET_OWNER, vec![0; MAX_BODY as usize]),
        ];
        for bad in &bad {
            // The next message comes in the same write.
            let flags = wire::VERSION | FLAG_NEED_REPLY;
            let both = [
                wire::message(bad.request, flags, &bad.body),
                wire::message(req::GET_QUEUE_NUM, wire::VERSION, &[]),
            ];
            s.fe().send_bytes(&both.concat(), &[]).unwrap();
            assert_ne!(
                s.fe().recv_reply(bad.request).unwrap().u64().unwrap(),
                0,
                "{}",
                bad.what
            );
            assert_eq!(
                s.fe()
                    .recv_reply(req::GET_QUEUE_NUM)
                    .unwrap()
                    .u64()
                    .unwrap(),
                2
            );
        }
        works(&mut s);
    });
}

#[test]
fn case_07_version_reserved_flags_and_replies() {
    run("case_07", |rig| {
        for (flags, reason) in [
            (0, "version 0"),
            (2, "version 2"),
            (3, "version 3"),
            (wire::VERSION | 1 << 4, "reserved bits"),
            (wire::VERSION | 1 << 31, "reserved bits"),
            (wire::VERSION | FLAG_REPLY, "as a reply"),
        ] {
            let fe = acknowledging(rig);
            fe.send_bytes(&header(req::GET_FEATURES, flags, 0), &[])
                .unwrap();
            rig.dropped(&format!("flags {flags:#x}"), fe, reason);
        }
    });
}

/// A body that would be a SET_STATUS if it were parsed as a message.
fn message_in_a_body() -> Vec<u8> {
    wire::message(req::SET_STATUS, wire::VERSION, &0x40u64.to_ne_bytes())
}

#[test]
fn case_08_unknown_requests() {
    run("case_08", |rig| {
        let mut s = rig.session();
        let status = s.fe().get_status().unwrap();
        for request in [45, 46, 255, 0x101, 0x0001_0002, 0x8000_0001, u32::MAX] {
            rig.refused(s.fe(), &Bad::new(request, message_in_a_body()));
            assert_eq!(
                s.fe().get_status().unwrap(),
                status,
                "the body of {request} was parsed"
            );
        }
        works(&mut s);
        s.disconnect();
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let fe = acknowledging(rig);
        fe.send(77, 0, &message_in_a_body(), &[]).unwrap();
        rig.dropped(
            "unknown request without need_reply",
            fe,
            "request 77: unknown",
        );
    });
}

#[test]
fn case_09_request_zero() {
    run("case_09", |rig| {
        let mut s = rig.session();
        rig.all_refused(&mut s, &[Bad::new(0, message_in_a_body()), Bad::new(0, [])]);
        s.disconnect();
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let fe = acknowledging(rig);
        fe.send(0, 0, &[], &[]).unwrap();
        rig.dropped("request 0 without need_reply", fe, "request 0: unknown");
    });
}

#[test]
fn case_10_need_reply_without_reply_ack() {
    run("case_10", |rig| {
        let mut fe = rig.frontend();
        fe.send(req::SET_OWNER, FLAG_NEED_REPLY, &[], &[]).unwrap();
        fe.send(
            req::SET_VRING_NUM,
            FLAG_NEED_REPLY,
            &wire::vring_state(0, 8),
            &[],
        )
        .unwrap();
        // The answer to the next request comes first: there was none before it.
        alive(&fe);
        assert_eq!(handled(rig, req::SET_VRING_NUM), 1);
        // The request that negotiates it is not acknowledged either.
        let bits = wire::protocol_feature::REPLY_ACK.to_ne_bytes();
        fe.send(req::SET_PROTOCOL_FEATURES, FLAG_NEED_REPLY, &bits, &[])
            .unwrap();
        alive(&fe);
        fe.acknowledged = true;
        fe.set_owner().unwrap();
        // A refusal cannot be told without it.
        drop(fe);
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let fe = rig.frontend();
        fe.send(
            req::SET_VRING_NUM,
            FLAG_NEED_REPLY,
            &wire::vring_state(9, 8),
            &[],
        )
        .unwrap();
        rig.dropped("a refusal without REPLY_ACK", fe, "queue 9");
    });
}

#[test]
fn case_11_exactly_one_reply() {
    run("case_11", |rig| {
        let mut s = rig.builder().not_started().connect(rig.path());
        let config = wire::config(0, 0, &[0; 4]);
        let bad_config = wire::config(u32::MAX, 0, &[0; 4]);
        for (request, body, size) in [
            (req::GET_FEATURES, &[][..], 8),
            (req::GET_PROTOCOL_FEATURES, &[], 8),
            (req::GET_QUEUE_NUM, &[], 8),
            (req::GET_MAX_MEM_SLOTS, &[], 8),
            (req::GET_STATUS, &[], 8),
            (req::GET_VRING_BASE, &wire::vring_state(1, 0), 8),
            (req::GET_CONFIG, &config, config.len()),
            (req::GET_CONFIG, &bad_config, 0),
        ] {
            s.fe().send(request, FLAG_NEED_REPLY, body, &[]).unwrap();
            s.fe()
                .send(req::SET_OWNER, FLAG_NEED_REPLY, &[], &[])
                .unwrap();
            let reply = s.fe().recv_reply(request).unwrap();
            assert_eq!(reply.body.len(), size, "reply to {}", wire::name(request));
            assert_eq!(s.fe().recv_reply(req::SET_OWNER).unwrap().u64().unwrap(), 0);
        }
        s.start_all();
        works(&mut s);
    });
}

#[test]
fn case_12_a_failure_is_acknowledged_with_a_failure() {
    run("case_12", |rig| {
        let mut s = rig.session();
        rig.all_refused(
            &mut s,
            &[
                Bad::state(req::SET_VRING_NUM, 2, 256),
                Bad::state(req::SET_VRING_NUM, 0, 3),
                Bad::u64(req::SET_FEATURES, u64::MAX),
                Bad::u64(req::SET_STATUS, 256),
                // Known, and not served.
                Bad::u64(req::SEND_RARP, 0),
                Bad::u64(req::NET_SET_MTU, 1500),
                Bad::state(req::VRING_KICK, 0, 0),
                Bad::state(req::SET_VRING_ENDIAN, 0, 0),
            ],
        );
    });
}

#[test]
fn refusals_without_need_reply_end_the_connection() {
    run("refusals_without_need_reply", |rig| {
        for (request, body, reason) in [
            (req::SET_VRING_NUM, wire::vring_state(0, 3), "size 3"),
            (
                req::SET_STATUS,
                256u64.to_ne_bytes().to_vec(),
                "device status",
            ),
            (req::GET_VRING_BASE, wire::vring_state(2, 0), "queue 2"),
            (req::REM_MEM_REG, vec![0xff; 40], "no memory region has"),
            (req::GET_FEATURES, vec![0; 8], "body size 8"),
        ] {
            let fe = acknowledging(rig);
            fe.send(request, 0, &body, &[]).unwrap();
            rig.dropped(wire::name(request), fe, reason);
        }
    });
}

#[test]
fn case_13_two_hundred_requests_in_one_write() {
    run("case_13", |rig| {
        let mut s = rig.session();
        s.stop_all();
        let (kicks, calls): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| (EventFd::new().unwrap(), EventFd::new().unwrap()))
            .unzip();
        let mut bytes = Vec::new();
        let mut fds = Vec::new();
        let mut ends = Vec::new();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        for round in 0..200usize {
            let index = round % 2;
            let (request, body, fd) = match round % 8 {
                0..2 => (
                    req::SET_VRING_NUM,
                    wire::vring_state(index as u32, 256),
                    None,
                ),
                2..4 => (
                    req::SET_VRING_CALL,
                    (index as u64).to_ne_bytes().to_vec(),
                    Some(&calls),
                ),
                4..6 => (req::SET_STATUS, (round as u64).to_ne_bytes().to_vec(), None),
                _ => (
                    req::SET_VRING_ERR,
                    (index as u64).to_ne_bytes().to_vec(),
                    Some(&kicks),
                ),
            };
            bytes.push(wire::message(request, flags, &body));
            fds.push(
                fd.map(|fds| fds[index].as_raw_fd())
                    .into_iter()
                    .collect::<Vec<_>>(),
            );
            ends.push(ends.last().unwrap_or(&0) + bytes[round].len());
        }
        let pieces: Vec<Piece<'_>> = ends
            .iter()
            .zip(&fds)
            .map(|(&end, fds)| Piece { end, fds })
            .collect();
        s.fe().send_pieces(&bytes.concat(), &pieces).unwrap();
        for (round, message) in bytes.iter().enumerate() {
            let request = wire::u32_at(message, 0);
            let ack = s.fe().recv_reply(request).unwrap().u64().unwrap();
            assert_eq!(ack, 0, "message {round}");
        }
        assert_eq!(s.fe().get_status().unwrap(), 197, "the last of them");
        // Without a descriptor in between, one write holds them all.
        let many = wire::message(req::SET_STATUS, flags, &5u64.to_ne_bytes()).repeat(200);
        s.fe().send_bytes(&many, &[]).unwrap();
        for _ in 0..200 {
            assert_eq!(
                s.fe().recv_reply(req::SET_STATUS).unwrap().u64().unwrap(),
                0
            );
        }
        // Each call fd went to its queue.
        for (index, call) in calls.into_iter().enumerate() {
            let addr = s.queues[index]
                .ring
                .layout()
                .vring_addr(&s.memory, index as u32)
                .unwrap();
            s.fe().set_vring_addr(&addr).unwrap();
            s.fe().set_vring_base(index as u32, s.bases[index]).unwrap();
            s.fe()
                .set_vring_kick(index as u32, Some(s.queues[index].kick.as_raw_fd()))
                .unwrap();
            s.fe().set_vring_enable(index as u32, true).unwrap();
            s.queues[index].call = call;
        }
        works(&mut s);
    });
}

#[test]
fn case_14_a_peer_that_does_not_read_its_replies() {
    run("case_14", |rig| {
        let mut s = rig.session();
        s.fe_mut().timeout = Duration::from_millis(300);
        let body = wire::config(0, 0, &[0; 256]);
        let blocked = (0..100_000).find_map(|_| s.fe().send(req::GET_CONFIG, 0, &body, &[]).err());
        assert!(
            blocked.is_some_and(|error| error.is_timeout()),
            "the server reads on and on"
        );
        echo::round_trip(&mut s.queues[0], b"the data path goes on");
        let before = thread_cpu("vu-protocol");
        // A window to measure in, not something to wait for.
        thread::sleep(Duration::from_millis(100));
        let spent = thread_cpu("vu-protocol") - before;
        assert!(
            spent < Duration::from_millis(30),
            "the internal thread spins: {spent:?}"
        );
        rig.server.stop().unwrap();
    });
}

/// CPU time of this process's thread of that name.
fn thread_cpu(name: &str) -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap();
        if comm.trim_end() == name {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            return Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap());
        }
    }
    panic!("no thread {name}");
}

#[test]
fn case_15_a_peer_that_closes_before_the_reply() {
    run("case_15", |rig| {
        for _ in 0..50 {
            let fe = rig.frontend();
            for _ in 0..20 {
                fe.send(req::GET_FEATURES, 0, &[], &[]).unwrap();
            }
            drop(fe);
            rig.device
                .take("end", |e| matches!(e, Event::Disconnected { .. }));
        }
        // Only the reading end is gone.
        let fe = rig.frontend();
        fe.shutdown(Shutdown::Read).unwrap();
        fe.send(req::GET_FEATURES, 0, &[], &[]).unwrap();
        rig.device.take(
            "end",
            |e| matches!(e, Event::Disconnected { errno, .. } if *errno != 0),
        );
        let mut s = rig.session();
        works(&mut s);
    });
}

#[test]
fn case_16_nothing_is_dispatched_after_stop() {
    run("case_16", |rig| {
        let mut s = rig.session();
        rig.device.hold(true);
        let buffer = s.memory.alloc(64, 8).unwrap();
        s.queues[0].submit(&[Seg::writable(buffer, 64)]).unwrap();
        rig.device.wait_held(1);
        // This keeps the internal thread busy; the rest stays in the socket.
        s.fe().send_get_vring_base(0).unwrap();
        s.fe().wait_consumed().unwrap();
        for _ in 0..3 {
            s.fe()
                .send(req::SET_CONFIG, 0, &wire::config(16, 0, &[0xee]), &[])
                .unwrap();
        }
        let config = rig.config();
        rig.server.request_stop().unwrap();
        rig.device.release();
        rig.server.stop().unwrap();
        assert_eq!(handled(rig, req::SET_CONFIG), 0);
        assert_eq!(
            rig.config(),
            config,
            "a message was dispatched after the stop"
        );
    });
}

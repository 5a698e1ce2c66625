//! Section A, second part: which answers there are, and none that waits for ever.

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use super::device::Event;
use super::rig::{Bad, acknowledging, alive, handled, run, works};
use crate::sim::wire::{self, FLAG_NEED_REPLY, req};
use crate::sim::{Seg, echo};

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

/// Also when it fails for its size, where the library has not even looked at it.
#[test]
fn case_11_exactly_one_reply_to_one_of_the_wrong_size() {
    run("case_11_size", |rig| {
        let mut s = rig.session();
        for request in [
            req::GET_FEATURES,
            req::SET_LOG_BASE,
            req::GET_PROTOCOL_FEATURES,
            req::GET_QUEUE_NUM,
            req::IOTLB_MSG,
            req::GET_CONFIG,
            req::CREATE_CRYPTO_SESSION,
            req::POSTCOPY_ADVISE,
            req::POSTCOPY_END,
            req::GET_INFLIGHT_FD,
            req::GET_MAX_MEM_SLOTS,
            req::GET_STATUS,
            req::GET_SHARED_OBJECT,
            req::SET_DEVICE_STATE_FD,
            req::CHECK_DEVICE_STATE,
            44,
        ] {
            s.fe().send(request, FLAG_NEED_REPLY, &[0; 9], &[]).unwrap();
            s.fe()
                .send(req::SET_OWNER, FLAG_NEED_REPLY, &[], &[])
                .unwrap();
            let reply = s.fe().recv_reply(request).unwrap();
            assert_ne!(reply.u64().ok(), Some(0), "{}", wire::name(request));
            assert_eq!(s.fe().recv_reply(req::SET_OWNER).unwrap().u64().unwrap(), 0);
        }
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
fn a_flood_of_bad_messages_leaves_a_few_log_lines() {
    run("log_flood", |rig| {
        let mut s = rig.session();
        for _ in 0..5000 {
            rig.refused(s.fe(), &Bad::state(req::SET_VRING_NUM, 0, 3));
        }
        works(&mut s);
        s.disconnect();
        for _ in 0..200 {
            let fe = rig.frontend();
            fe.send(77, 0, &[], &[]).unwrap();
        }
        let lines = rig.log_lines();
        assert!((1..100).contains(&lines.len()), "{} log lines", lines.len());
    });
}

#[test]
fn refusals_without_need_reply_end_the_connection() {
    run("refusals_without_need_reply", |rig| {
        for (request, body, reason) in [
            (req::SET_VRING_NUM, wire::vring_state(0, 0), "size 0"),
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

/// Out-of-band bytes are no part of the stream, and nothing to spin for.
#[test]
fn out_of_band_bytes_are_passed_over() {
    run("out_of_band", |rig| {
        let mut s = rig.session();
        for _ in 0..3 {
            // SAFETY: one readable byte.
            let sent =
                unsafe { libc::send(s.fe().raw_fd(), [0xffu8].as_ptr().cast(), 1, libc::MSG_OOB) };
            assert_eq!(sent, 1);
            let before = thread_cpu("vu-protocol");
            // A window to measure in, not something to wait for.
            thread::sleep(Duration::from_millis(100));
            let spent = thread_cpu("vu-protocol") - before;
            assert!(
                spent < Duration::from_millis(30),
                "the internal thread spins: {spent:?}"
            );
            works(&mut s);
        }
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

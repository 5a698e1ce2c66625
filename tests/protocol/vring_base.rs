//! GET_VRING_BASE: where a ring stands, once nothing is in flight on it.

use std::time::Duration;

use super::device::{Event, SOON};
use super::rig::{run, run_in, works};
use crate::sim::echo::{EchoLoad, EchoRequest};
use crate::sim::wire::req;
use crate::sim::{Deadline, eventually};

/// Long enough to notice an answer that comes too early; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);

#[test]
fn a_virgin_ring_and_twice() {
    run("virgin", |rig| {
        let mut s = rig.builder().not_started().connect(rig.path());
        for index in [0, 1, 0, 0] {
            assert_eq!(s.fe().get_vring_base(index).unwrap(), 0);
        }
        // A base that was set is there, started or not.
        s.fe().set_vring_base(0, 77).unwrap();
        assert_eq!(s.fe().get_vring_base(0).unwrap(), 77);
        s.fe().set_vring_base(0, 0).unwrap();
        s.start_all();
        works(&mut s);
        for _ in 0..3 {
            assert_eq!(s.stop_queue(0), 1);
            assert_eq!(s.stop_queue(1), 1);
        }
        s.start_all();
        works(&mut s);
        assert_eq!(s.stop_queue(0), 2);
    });
}

#[test]
fn a_ring_that_was_kicked_but_never_started() {
    run("kicked_only", |rig| {
        use std::os::fd::AsRawFd;
        let mut s = rig.builder().not_started().connect(rig.path());
        let kick = s.queues[0].kick.as_raw_fd();
        s.fe().set_vring_base(0, 5).unwrap();
        s.fe().set_vring_kick(0, Some(kick)).unwrap();
        assert_eq!(s.fe().get_vring_base(0).unwrap(), 5);
        s.start_all();
        works(&mut s);
    });
}

#[test]
fn the_index_after_wraps_and_stops() {
    run("wraps", |rig| {
        let mut s = rig.builder().queue_size(16).connect(rig.path());
        let mut sum = 0u32;
        for count in [1, 15, 16, 17, 1000, 40_000, 24_487, 3] {
            EchoLoad::new(&mut s.queues[0], 8, 16).run(count);
            sum += count as u32;
            assert_eq!(s.stop_queue(0), sum & 0xffff, "after {sum} requests");
            assert_eq!(s.queues[0].ring.used_idx().unwrap(), sum as u16);
            s.start_queue(0);
        }
        works(&mut s);
        // A started ring that got nothing since stands where it stood.
        assert_eq!(s.stop_queue(0), (sum + 1) & 0xffff);
    });
}

#[test]
fn the_reply_waits_for_what_is_in_flight_on_that_queue() {
    run("drain", |rig| {
        let mut s = rig.session();
        rig.device.hold(true);
        let mut requests = [0, 1, 2].map(|_| EchoRequest::new(&s.memory, 32, 32));
        for (seed, request) in requests.iter_mut().enumerate() {
            request.prepare(seed as u64);
            s.queues[0].submit(&request.segs()).unwrap();
        }
        rig.device.wait_held(3);
        rig.device.hold(false);
        s.fe().send_get_vring_base(0).unwrap();
        s.fe().wait_consumed().unwrap();
        assert!(
            !s.fe().answered_within(EARLY).unwrap(),
            "answered before the drain"
        );
        // The other queue does not wait.
        EchoLoad::new(&mut s.queues[1], 16, 64).run(1000);
        let mut held = rig.device.take_held();
        held.drain(..2).for_each(super::device::answer);
        assert!(
            !s.fe().answered_within(EARLY).unwrap(),
            "answered with one in flight"
        );
        held.into_iter().for_each(super::device::answer);
        assert_eq!(s.fe().recv_vring_base(0).unwrap(), 3);
        assert_eq!(
            s.queues[0].ring.used_idx().unwrap(),
            3,
            "all completed by then"
        );
        for _ in 0..3 {
            let used = s.queues[0].poll_used().unwrap().expect("a completion");
            requests[usize::from(used.head) / 2].check(used);
        }
        rig.device.take_event(Event::QueueStopped(0));
        s.bases[0] = 3;
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn stopping_under_load_loses_nothing() {
    run("stop_under_load", |rig| {
        let mut s = rig.session();
        for round in 0..100u64 {
            let mut requests: Vec<_> = (0..32)
                .map(|_| EchoRequest::new(&s.memory, 64, 64))
                .collect();
            let mut heads = std::collections::HashMap::new();
            for (seed, request) in requests.iter_mut().enumerate() {
                request.prepare(round << 8 | seed as u64);
                heads.insert(s.queues[0].add(&request.segs()).unwrap(), seed);
            }
            s.queues[0].publish().unwrap();
            s.queues[0].kick().unwrap();
            let base = s.stop_queue(0);
            assert_eq!(
                base as u16,
                s.queues[0].ring.used_idx().unwrap(),
                "popped and completed"
            );
            s.start_queue(0);
            for used in s.queues[0]
                .wait_used_all(32, Deadline::after(SOON))
                .unwrap()
            {
                requests[heads[&used.head]].check(used);
            }
        }
    });
}

#[test]
fn without_anybody_who_dispatches() {
    run_in(
        "no_dispatch",
        |builder| builder,
        |rig, ctx| {
            let mut s = rig.session();
            // Offered to a context that never looks: simply taken back.
            assert_eq!(s.stop_queue(0), 0);
            s.start_queue(0);
            s.queues[1].kick_always().unwrap();
            assert_eq!(s.stop_queue(1), 0);
            s.start_queue(1);
            // Now it does.
            let request = EchoRequest::new(&s.memory, 8, 8);
            s.queues[0].submit(&request.segs()).unwrap();
            let queue = &mut s.queues[0];
            eventually("completion", Deadline::after(SOON), true, || {
                ctx.dispatch(Some(Duration::ZERO)).unwrap();
                queue.poll_used().unwrap().is_some()
            });
            assert_eq!(super::rig::handled(rig, req::GET_VRING_BASE), 2);
        },
    );
}

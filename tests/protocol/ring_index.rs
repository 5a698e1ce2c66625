//! Section F, first part: the available ring.

use super::device::SOON;
use super::rig::{desc, offer, run, run_with, works};
use crate::sim::echo::{self, EchoRequest};
use crate::sim::wire::feature;
use crate::sim::{Deadline, Seg, eventually};

#[test]
fn case_69_the_available_index_far_ahead_or_going_back() {
    run("case_69", |rig| {
        let mut s = rig.session();
        for ahead in [257u16, 300, 0x8000, 0xffff, 0xff00] {
            works(&mut s);
            let index = s.queues[0].published().wrapping_add(ahead);
            s.queues[0].ring.set_avail_idx(index).unwrap();
            s.queues[0].kick_always().unwrap();
            rig.broken(
                &format!("{ahead} ahead"),
                &mut s,
                &format!("available index {index}"),
            );
        }
    });
}

#[test]
fn case_70_an_entry_that_is_no_descriptor() {
    run("case_70", |rig| {
        let mut s = rig.session();
        for head in [256, 257, 0x8000, 0xffff] {
            works(&mut s);
            offer(&mut s, head);
            rig.broken(
                &format!("head {head}"),
                &mut s,
                &format!("head {head} is not below"),
            );
        }
    });
}

#[test]
fn case_79_a_head_that_is_out_already() {
    run("case_79", |rig| {
        let mut s = rig.session();
        let request = EchoRequest::new(&s.memory, 16, 16);
        rig.device.hold(true);
        let head = s.queues[0].submit(&request.segs()).unwrap();
        rig.device.wait_held(1);
        offer(&mut s, head);
        rig.broke("the same head twice", &s, "is outstanding already");
        let held = rig.device.take_held();
        assert_eq!(held.len(), 1, "two live requests with one head");
        rig.device.hold(false);
        // What was popped from a ring that has broken since can still be completed.
        held.into_iter().for_each(super::device::answer);
        s.stop_queue(0);
        s.reset_rings_of_queue(0);
        s.start_queue(0);
        works(&mut s);
    });
}

impl crate::sim::Session {
    fn reset_rings_of_queue(&mut self, index: usize) {
        self.queues[index].reset(0).unwrap();
        self.bases[index] = 0;
    }
}

#[test]
fn case_79_twice_in_one_batch_and_more_than_the_ring_holds() {
    run("case_79_batch", |rig| {
        let mut s = rig.session();
        rig.device.hold(true);
        let gpa = s.memory.alloc(64, 8).unwrap();
        desc(&s, 3, gpa, 64, 2, 0);
        for head in [3, 3] {
            s.queues[0].publish_raw(head).unwrap();
        }
        s.queues[0].kick_always().unwrap();
        rig.broke("twice in one batch", &s, "head 3 is outstanding already");
        assert!(rig.device.take_held().len() <= 1);
        s.stop_queue(0);
        s.reset_rings_of_queue(0);
        s.start_queue(0);
        // All heads, then one more.
        for head in 0..256 {
            desc(&s, head, gpa, 1, 2, 0);
            s.queues[0].publish_raw(head).unwrap();
        }
        s.queues[0].kick_always().unwrap();
        rig.device.wait_held(256);
        offer(&mut s, 0);
        rig.broke("more heads than the ring has", &s, "outstanding");
        assert_eq!(rig.device.take_held().len(), 256);
        rig.device.hold(false);
        s.stop_queue(0);
        s.reset_rings_of_queue(0);
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn good_chains_before_a_bad_one_are_served() {
    run("good_before_bad", |rig| {
        let mut s = rig.session();
        let mut requests: Vec<_> = (0..5)
            .map(|_| EchoRequest::new(&s.memory, 16, 16))
            .collect();
        for (seed, request) in requests.iter_mut().enumerate() {
            request.prepare(seed as u64);
            s.queues[0].add(&request.segs()).unwrap();
        }
        offer(&mut s, 4000);
        rig.broke("a bad head behind good ones", &s, "head 4000");
        for request in &requests {
            let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            request.check(used);
        }
        // It stands before the bad one.
        assert_eq!(s.stop_queue(0), 5);
    });
}

#[test]
fn case_82_event_fields_and_flags_at_random() {
    run("case_82", |rig| {
        for features in [feature::EVENT_IDX, 0] {
            let masked = feature::EVENT_IDX & !features;
            let mut s = rig.builder().without_features(masked).connect(rig.path());
            for round in 0..300u64 {
                let mut request = EchoRequest::new(&s.memory, 8, 8);
                request.prepare(round);
                let noise = u64::from_le_bytes(echo::pattern(round, 8).try_into().unwrap());
                s.queues[0].ring.set_used_event(noise as u16).unwrap();
                s.queues[0]
                    .ring
                    .set_avail_flags((noise >> 16) as u16)
                    .unwrap();
                s.queues[0].add(&request.segs()).unwrap();
                s.queues[0].publish().unwrap();
                s.queues[0].kick_always().unwrap();
                let queue = &mut s.queues[0];
                eventually("completion", Deadline::after(SOON), true, || {
                    queue
                        .poll_used()
                        .unwrap()
                        .inspect(|used| request.check(*used))
                        .is_some()
                });
            }
            works(&mut s);
            s.disconnect();
        }
    });
}

#[test]
fn a_broken_ring_can_end_the_connection() {
    run_with(
        "disconnect_on_broken",
        |builder| builder.disconnect_on_broken_ring(true),
        |rig| {
            let mut s = rig.session();
            offer(&mut s, 1000);
            s.fe().wait_closed().unwrap();
            rig.left("a broken ring", "head 1000");
        },
    );
}

#[test]
fn a_driver_without_indirect_or_event_index() {
    run("plain", |rig| {
        let masked = feature::EVENT_IDX | feature::INDIRECT_DESC;
        let mut s = rig.builder().without_features(masked).connect(rig.path());
        echo::EchoLoad::new(&mut s.queues[0], 32, 128).run(5000);
        works(&mut s);
        let gpa = s.memory.alloc(64, 16).unwrap();
        s.queues[0]
            .submit_indirect(&[Seg::readable(gpa, 8)])
            .unwrap();
        rig.broken(
            "an indirect table",
            &mut s,
            "INDIRECT_DESC is not negotiated",
        );
    });
}

//! Section D, second part: the messages that start a ring, in any order.

use std::os::fd::AsRawFd;

use super::device::{Event, SOON};
use super::rig::{Rig, run, works};
use super::vring::addr_of;
use crate::sim::echo::{self, EchoRequest};
use crate::sim::{Deadline, EventFd, Session, SplitDriver};

/// The messages that start a ring, one by one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Memory,
    Num,
    Addr,
    Base,
    Kick,
    Call,
    Enable,
}

fn take(step: Step, s: &Session) {
    let fe = s.fe();
    let queue = &s.queues[0];
    match step {
        Step::Memory => {
            let regions = s.memory.regions();
            fe.set_mem_table(&regions.iter().map(|region| &**region).collect::<Vec<_>>())
                .unwrap();
        }
        Step::Num => fe.set_vring_num(0, 256).unwrap(),
        Step::Addr => fe.set_vring_addr(&addr_of(s)).unwrap(),
        Step::Base => fe.set_vring_base(0, 0).unwrap(),
        Step::Kick => fe.set_vring_kick(0, Some(queue.kick.as_raw_fd())).unwrap(),
        Step::Call => fe.set_vring_call(0, Some(queue.call.as_raw_fd())).unwrap(),
        Step::Enable => fe.set_vring_enable(0, true).unwrap(),
    }
}

/// Starts queue 0 step by step, with a buffer that waits in it. Nobody kicks.
#[track_caller]
fn in_order(rig: &Rig, steps: &[Step]) {
    let fe = super::rig::acknowledging(rig);
    let mut s = rig.builder().queues(0).not_started().over(fe);
    // Whatever the session said about memory is taken back.
    s.fe().rem_mem_reg(&s.memory.regions()[0]).unwrap();
    s.queues
        .push(SplitDriver::new(&s.memory, 256, true).unwrap());
    s.bases.push(0);
    let mut request = EchoRequest::new(&s.memory, 32, 32);
    request.prepare(1);
    s.queues[0].add(&request.segs()).unwrap();
    s.queues[0].publish().unwrap();
    for step in steps {
        assert_eq!(
            s.queues[0].ring.used_idx().unwrap(),
            0,
            "started before {step:?} of {steps:?}"
        );
        take(*step, &s);
    }
    let used = s.queues[0].wait_used(Deadline::after(SOON));
    request.check(used.unwrap_or_else(|error| panic!("{steps:?}: {error}")));
    works(&mut s);
    s.disconnect();
    rig.device
        .take("end", |event| matches!(event, Event::Disconnected { .. }));
}

#[test]
fn case_49_and_50_any_order() {
    use Step::{Addr, Base, Call, Enable, Kick, Memory, Num};
    run("case_49", |rig| {
        let all = [Memory, Num, Addr, Base, Kick, Call, Enable];
        // Each of them last, each of them first. The base must be known when the ring starts.
        for last in [Memory, Num, Addr, Kick, Enable] {
            let mut steps: Vec<Step> = all.into_iter().filter(|step| *step != last).collect();
            steps.push(last);
            in_order(rig, &steps);
            steps.reverse();
            steps.retain(|step| *step != last);
            steps.retain(|step| *step != Base);
            steps.insert(0, Base);
            steps.push(last);
            in_order(rig, &steps);
        }
        in_order(rig, &[Addr, Memory, Kick, Num, Call, Enable]);
        in_order(rig, &[Enable, Kick, Call, Base, Num, Addr, Memory]);
    });
}

#[test]
fn case_49_a_disconnect_at_every_step() {
    use Step::{Addr, Base, Call, Enable, Kick, Memory, Num};
    run("case_49_disconnect", |rig| {
        let all = [Memory, Num, Addr, Base, Kick, Call, Enable];
        for count in 0..=all.len() {
            let fe = rig.frontend();
            let mut s = rig.builder().queues(0).not_started().over(fe);
            s.queues
                .push(SplitDriver::new(&s.memory, 256, true).unwrap());
            all[..count].iter().for_each(|step| take(*step, &s));
            drop(s);
            rig.device
                .take("end", |event| matches!(event, Event::Disconnected { .. }));
        }
        works(&mut rig.session());
    });
}

#[test]
fn case_50_buffers_before_the_ring_is_enabled() {
    run("case_50", |rig| {
        let mut s = rig.session();
        s.fe().set_vring_enable(0, false).unwrap();
        let mut request = EchoRequest::new(&s.memory, 32, 32);
        request.prepare(5);
        s.queues[0].add(&request.segs()).unwrap();
        s.queues[0].publish().unwrap();
        s.queues[0].kick_always().unwrap();
        echo::round_trip(&mut s.queues[1], b"the other one");
        assert_eq!(
            s.queues[0].ring.used_idx().unwrap(),
            0,
            "a disabled ring was served"
        );
        // The kick is taken off meanwhile: only the enabling itself can make the device look.
        s.queues[0].kick.take().unwrap();
        s.fe().set_vring_enable(0, true).unwrap();
        request.check(s.queues[0].wait_used(Deadline::after(SOON)).unwrap());
        for _ in 0..100 {
            s.fe().set_vring_enable(0, false).unwrap();
            s.fe().set_vring_enable(0, true).unwrap();
            echo::round_trip(&mut s.queues[0], b"on and off");
        }
    });
}

#[test]
fn case_51_bases() {
    run("case_51", |rig| {
        let mut s = rig.session();
        // The low 16 bits count.
        s.stop_queue(0);
        s.queues[0].reset(0x1234).unwrap();
        s.bases[0] = 0xffff_1234;
        s.start_queue(0);
        works(&mut s);
        assert_eq!(s.stop_queue(0), 0x1235);
        // Behind the available index by more than the ring holds.
        s.queues[0].reset(0x1234).unwrap();
        s.bases[0] = 0x1000;
        s.start_queue(0);
        rig.broken("a base far behind", &mut s, "available index 4660");
        s.stop_queue(0);
        s.queues[0].reset(5).unwrap();
        s.bases[0] = 6;
        s.start_queue(0);
        rig.broken("a base ahead", &mut s, "available index 5");
    });
}

#[test]
fn a_call_descriptor_swapped_under_load() {
    run("swap_call", |rig| {
        let mut s = rig.session();
        for round in 0..200u64 {
            let mut request = EchoRequest::new(&s.memory, 16, 16);
            request.prepare(round);
            s.queues[0].enable_calls().unwrap();
            s.queues[0].submit(&request.segs()).unwrap();
            // The completion may signal the old one; the new one is signalled, too, because of that.
            let call = EventFd::new().unwrap();
            s.fe().set_vring_call(0, Some(call.as_raw_fd())).unwrap();
            s.queues[0].call = call;
            request.check(s.queues[0].wait_used(Deadline::after(SOON)).unwrap());
        }
        works(&mut s);
    });
}

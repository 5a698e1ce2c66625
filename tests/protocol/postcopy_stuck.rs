//! Postcopy migration: threads that are stuck in a page fault, whose page comes late or never. Each of these would hang
//! if something waited for such a thread without a way out.

use std::fs::read_to_string;
use std::thread;
use std::time::Duration;

use super::device::{SOON, answer};
use super::postcopy::{REGION, answered, arriving, made, pages_of};
use super::rig::{Rig, alive, run, works};
use crate::sim::echo::EchoRequest;
use crate::sim::postcopy::PAGE;
use crate::sim::wire::req;
use crate::sim::{Deadline, Region, RegionSpec, Seg, Session, eventually};

/// Long enough to notice an answer that comes too early; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);

/// What the owner is doing when it is stuck, in the order of `pages_of`.
const DOING: [&str; 7] = [
    "taking the ring",
    "looking at the ring",
    "popping",
    "reading a buffer",
    "writing a buffer",
    "publishing",
    "asking to be kicked",
];

const SECOND: RegionSpec = RegionSpec {
    gpa: 1 << 32,
    size: REGION,
    user_addr: 0x7100_0000_0000,
    mmap_offset: 0,
    sealed: false,
};

/// A guest with one request, whose device is stuck on the given of its pages.
#[track_caller]
fn stuck(rig: &Rig, at: usize) -> (Session, EchoRequest, u64) {
    let mut s = arriving(rig, &[RegionSpec::new(0, REGION), SECOND]);
    let request = made(&mut s);
    let pages = pages_of(&s, &request);
    s.evacuate();
    s.pages().hold(true);
    s.start_queue(0);
    s.queues[0].kick_always().unwrap();
    for &page in &pages[..at] {
        s.pages().wait_wanted(page);
        s.pages().supply(page);
    }
    s.pages().wait_wanted(pages[at]);
    (s, request, pages[at])
}

#[test]
fn a_stop_frees_who_is_stuck_and_leaves_the_page_alone() {
    for (at, doing) in DOING.iter().enumerate() {
        run(&format!("postcopy_stop_{at}"), |rig| {
            let (s, _, page) = stuck(rig, at);
            rig.server.stop().unwrap();
            assert!(s.pages().is_missing(page), "stopped while {doing}");
        });
    }
}

#[test]
fn a_disconnect_frees_who_is_stuck_and_leaves_the_page_alone() {
    for (at, doing) in DOING.iter().enumerate() {
        run(&format!("postcopy_disconnect_{at}"), |rig| {
            let (mut s, _, page) = stuck(rig, at);
            s.close();
            rig.left(doing, "closed");
            assert!(s.pages().is_missing(page), "gone while {doing}");
        });
    }
}

#[test]
fn messages_are_answered_while_the_owner_is_stuck() {
    for at in 0..DOING.len() {
        run(&format!("postcopy_messages_{at}"), |rig| {
            let (mut s, request, _) = stuck(rig, at);
            let fe = s.fe();
            alive(fe);
            fe.set_config(16, 0, &[1]).unwrap();
            fe.set_vring_call(0, Some(std::os::fd::AsRawFd::as_raw_fd(&s.queues[0].call)))
                .unwrap();
            fe.set_vring_err(0, None).unwrap();
            let third = Region::new(RegionSpec::new(2 << 32, REGION)).unwrap();
            fe.offer_mem_reg(&third).unwrap();
            fe.end_update(req::ADD_MEM_REG).unwrap();
            alive(fe);
            assert_eq!(rig.server.stats().memory_regions, 3);
            s.pages().hold(false);
            // The new call descriptor was signalled once when it was set.
            eventually("completions", Deadline::after(SOON), 1, || {
                rig.server.queue_stats(0).unwrap().completions
            });
            answered(&mut s, &request);
            s.pages().supply_all(true);
            assert_eq!(s.fe().postcopy_end().unwrap(), 0);
            s.start_queue(1);
            works(&mut s);
        });
    }
}

#[test]
fn a_ring_that_is_stopped_waits_for_the_page() {
    for at in 0..DOING.len() {
        run(&format!("postcopy_vring_base_{at}"), |rig| {
            let (s, _, _) = stuck(rig, at);
            s.fe().send_get_vring_base(0).unwrap();
            assert!(!s.fe().answered_within(EARLY).unwrap());
            s.pages().hold(false);
            s.fe().recv_vring_base(0).unwrap();
        });
    }
}

#[test]
fn who_waits_for_a_ring_to_stop_may_hang_up() {
    for (at, doing) in DOING.iter().enumerate() {
        run(&format!("postcopy_hang_up_{at}"), |rig| {
            let (mut s, _, _) = stuck(rig, at);
            s.fe().send_get_vring_base(0).unwrap();
            s.fe().wait_consumed().unwrap();
            s.close();
            rig.left(doing, "");
        });
    }
}

/// Removing memory waits for pops that may use it: here for one that is stuck elsewhere.
#[test]
fn a_removal_waits_for_a_pop_that_is_stuck() {
    run("postcopy_removal", |rig| {
        for end in ["page", "hang-up", "stop"] {
            let (mut s, request, _) = stuck(rig, 2);
            let second = s.memory.region_at(SECOND.gpa, 1).unwrap();
            let body = second.wire().encode_single();
            s.fe()
                .send(
                    req::REM_MEM_REG,
                    crate::sim::wire::FLAG_NEED_REPLY,
                    &body,
                    &[],
                )
                .unwrap();
            assert!(!s.fe().answered_within(EARLY).unwrap());
            match end {
                "page" => {
                    s.pages().hold(false);
                    let ack = s.fe().recv_reply(req::REM_MEM_REG).unwrap();
                    assert_eq!(ack.u64().unwrap(), 0);
                    answered(&mut s, &request);
                    s.close();
                    rig.left(end, "closed");
                }
                "hang-up" => {
                    s.close();
                    rig.left(end, "went away");
                }
                _ => rig.server.stop().unwrap(),
            }
        }
    });
}

/// The front-end supplies nothing any more in a region that it takes away.
#[test]
fn removing_a_region_frees_who_is_stuck_in_it() {
    run("postcopy_removed", |rig| {
        let mut s = arriving(rig, &[RegionSpec::new(0, REGION), SECOND]);
        let segs = [
            Seg::readable(SECOND.gpa, PAGE as u32),
            Seg::writable(SECOND.gpa + PAGE, PAGE as u32),
        ];
        s.queues[0].add(&segs).unwrap();
        s.queues[0].publish().unwrap();
        s.evacuate();
        s.start_queue(0);
        s.pages().hold(true);
        s.queues[0].kick_always().unwrap();
        // All that the ring needs, so that nothing but the buffers is missing.
        let layout = s.queues[0].ring.layout();
        let used = (0..3).map(|page| layout.used + page * PAGE);
        used.chain([layout.avail, layout.desc])
            .for_each(|page| s.pages().supply(page));
        s.pages().wait_wanted(SECOND.gpa);
        let second = s.memory.region_at(SECOND.gpa, 1).unwrap();
        s.fe().rem_mem_reg(&second).unwrap();
        let deadline = Deadline::after(SOON);
        s.queues[0].call.wait("call", deadline).unwrap();
        alive(s.fe());
    });
}

fn mappings() -> usize {
    let maps = read_to_string("/proc/self/maps").unwrap();
    maps.matches("sim-guest").count()
}

/// A device that has popped a request, whose queue is then taken from its context, completes it on another thread, which is
/// stuck while it publishes.
#[track_caller]
fn completes_elsewhere(rig: &Rig) -> (Session, EchoRequest, thread::JoinHandle<()>) {
    let mut s = arriving(rig, &[RegionSpec::new(0, REGION), SECOND]);
    let request = made(&mut s);
    let pages = pages_of(&s, &request);
    s.evacuate();
    s.pages().supply(pages[6]);
    rig.device.hold(true);
    s.start_queue(0);
    s.queues[0].kick_always().unwrap();
    rig.device.wait_held(1);
    rig.server.request_detach().unwrap();
    eventually("quiesced", Deadline::after(SOON), true, || {
        rig.server.is_quiesced()
    });
    s.pages().supply(pages[3]);
    s.pages().supply(pages[4]);
    s.pages().hold(true);
    let element = rig.device.take_held().pop().unwrap();
    let completing = thread::spawn(move || answer(element));
    s.pages().wait_wanted(pages[5]);
    (s, request, completing)
}

#[test]
fn memory_changes_under_a_completion_that_is_stuck() {
    run("postcopy_rebase", |rig| {
        let (mut s, request, completing) = completes_elsewhere(rig);
        let before = mappings();
        let second = s.memory.region_at(SECOND.gpa, 1).unwrap();
        s.fe().rem_mem_reg(&second).unwrap();
        alive(s.fe());
        s.pages().hold(false);
        completing.join().unwrap();
        answered(&mut s, &request);
        // What was pinned meanwhile is let go by itself.
        eventually("mappings", Deadline::after(SOON), before - 1, mappings);
    });
}

#[test]
fn a_completion_that_is_stuck_is_freed_by_the_end_of_the_connection() {
    for stop in [false, true] {
        run("postcopy_completion", |rig| {
            let (mut s, _, completing) = completes_elsewhere(rig);
            if stop {
                rig.server.stop().unwrap();
            } else {
                s.close();
            }
            completing.join().unwrap();
        });
    }
}

/// The ring goes with its region, and with both the completion's reason to wait.
#[test]
fn removing_the_rings_region_frees_a_completion_that_is_stuck() {
    run("postcopy_broken", |rig| {
        let (s, _, completing) = completes_elsewhere(rig);
        let first = s.memory.region_at(0, 1).unwrap();
        s.fe().rem_mem_reg(&first).unwrap();
        s.queues[0].wait_err(Deadline::after(SOON)).unwrap();
        completing.join().unwrap();
    });
}

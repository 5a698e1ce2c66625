//! In-flight tracking: what a successor finds and does again, and areas that nobody should believe.

use std::os::fd::AsRawFd;

use super::device::{Event, SOON};
use super::rig::{Bad, Rig, run, run_with, works};
use crate::sim::echo::{self, EchoLoad, EchoRequest};
use crate::sim::inflight::Inflight;
use crate::sim::wire::{self, protocol_feature, req};
use crate::sim::{Deadline, EventFd, Session, SharedFile, eventually, process};
use vu_server::StopReason;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH: usize = 12;
const USED_INDEX: usize = 14;

#[track_caller]
fn session(rig: &Rig) -> Session {
    rig.builder().queue_size(16).inflight().connect(&rig.path)
}

fn area(s: &Session) -> &Inflight {
    s.inflight.as_ref().expect("an in-flight area")
}

/// Requests on queue 0 that the device keeps; it has kept `held` before.
#[track_caller]
fn hold(rig: &Rig, s: &mut Session, count: usize, held: usize) -> Vec<(u16, EchoRequest)> {
    rig.device.hold(true);
    let requests = (0..count)
        .map(|number| {
            let mut request = EchoRequest::new(&s.memory, 40, 40);
            request.prepare(number as u64);
            (s.queues[0].submit(&request.segs()).unwrap(), request)
        })
        .collect();
    rig.device.wait_held(held + count);
    rig.device.hold(false);
    requests
}

/// The front-end goes, as if this process had died with what the device holds.
#[track_caller]
fn die(rig: &Rig, s: &mut Session) {
    s.abort();
    rig.device
        .take_event(Event::QueueStopping(0, StopReason::Disconnected));
    rig.device.take_held().into_iter().for_each(|element| {
        // Nobody hears of it any more.
        element.complete(0).unwrap();
    });
    rig.device
        .take("end", |event| matches!(event, Event::Disconnected { .. }));
}

/// All answered, each once, in this order.
#[track_caller]
fn answered(s: &mut Session, requests: &[(u16, EchoRequest)]) {
    for (head, request) in requests {
        let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(used.head, *head);
        request.check(used);
    }
}

#[test]
fn what_is_in_flight_is_marked() {
    run("inflight_marks", |rig| {
        let mut s = session(rig);
        assert!(area(&s).marked(0).is_empty());
        let requests = hold(rig, &mut s, 3, 0);
        let heads: Vec<u16> = requests.iter().map(|(head, _)| *head).collect();
        assert_eq!(area(&s).marked(0), heads);
        assert!(area(&s).marked(1).is_empty());
        rig.device.release();
        answered(&mut s, &requests);
        assert!(area(&s).marked(0).is_empty());
        assert_eq!(area(&s).field(0, USED_INDEX), 3);
        EchoLoad::new(&mut s.queues[0], 7, 64).run(500);
        assert!(area(&s).marked(0).is_empty());
        s.disconnect();
    });
}

#[test]
fn a_successor_does_what_was_in_flight() {
    run("inflight_successor", |rig| {
        let mut s = session(rig);
        works(&mut s);
        for _ in 0..20 {
            let requests = hold(rig, &mut s, 5, 0);
            die(rig, &mut s);
            // Made available while nobody was there.
            let mut more = EchoRequest::new(&s.memory, 24, 24);
            more.prepare(99);
            let head = s.queues[0].submit(&more.segs()).unwrap();
            s.reconnect(&rig.path);
            answered(&mut s, &requests);
            answered(&mut s, &[(head, more)]);
            works(&mut s);
            assert!(area(&s).marked(0).is_empty());
        }
        s.disconnect();
    });
}

#[test]
fn who_dies_while_recovering_leaves_it_to_the_next() {
    run("inflight_again", |rig| {
        let mut s = session(rig);
        let requests = hold(rig, &mut s, 6, 0);
        for _ in 0..3 {
            die(rig, &mut s);
            rig.device.hold(true);
            s.reconnect(&rig.path);
            rig.device.wait_held(6);
            // Not only popped: moved, put into another table and stopped in between.
            let region = s.add_region(crate::sim::RegionSpec::new(1 << 33, 4096));
            s.remove_region(region.spec().gpa);
            assert_eq!(area(&s).marked(0).len(), 6);
        }
        rig.device.release();
        answered(&mut s, &requests);
        assert_eq!(s.stop_queue(0), 6, "base");
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn a_front_end_that_knows_the_base_is_not_contradicted() {
    run("inflight_base", |rig| {
        let mut s = session(rig);
        for _ in 0..3 {
            works(&mut s);
            s.disconnect();
            s.reconnect(&rig.path);
        }
        assert_eq!(s.stop_queue(0), 3);
    });
}

#[test]
fn a_reset_begins_with_an_empty_area() {
    run("inflight_reset", |rig| {
        let mut s = session(rig);
        works(&mut s);
        s.fe().reset_device().unwrap();
        s.reset_rings();
        s.fe().set_features(s.features).unwrap();
        s.start_all();
        works(&mut s);
        assert_eq!(area(&s).field(0, USED_INDEX), 1);
    });
}

#[test]
fn case_61_areas_of_impossible_sizes() {
    run("case_61", |rig| {
        let mut s = session(rig);
        let zero = wire::inflight(0, 0, 0, 0);
        for (queues, size) in [
            (0, 16),
            (3, 16),
            (0xffff, 16),
            (2, 0),
            (2, 0xffff),
            (2, 32769),
        ] {
            let body = wire::inflight(0, 0, queues, size);
            let refusals = rig.server.stats().refusals;
            let reply = s.fe().request(req::GET_INFLIGHT_FD, &body, &[]).unwrap();
            assert_eq!(reply.body, zero, "{queues} queues of {size}");
            assert!(reply.fds.is_empty(), "{queues} queues of {size}");
            assert_eq!(rig.server.stats().refusals, refusals + 1);
            works(&mut s);
        }
        let (fds, maps) = (process::open_fds(), process::mappings("inflight"));
        for _ in 0..100_000 {
            s.fe().get_inflight_fd(2, 16).unwrap();
        }
        // The last reply's descriptor is closed when it is sent, which may be after it has arrived.
        eventually("descriptors", Deadline::after(SOON), fds, process::open_fds);
        assert_eq!(process::mappings("inflight"), maps);
        works(&mut s);
    });
}

#[test]
fn case_62_areas_that_cannot_be_used() {
    run("case_62", |rig| {
        let mut s = rig.builder().inflight().queue_size(16).connect(&rig.path);
        let (file, eventfd) = (SharedFile::new(0x3000).unwrap(), EventFd::new().unwrap());
        let needed = 2 * Inflight::region_size(16) as u64;
        s.stop_queue(0);
        s.stop_queue(1);
        let bad = |size, offset, queues, queue_size| {
            Bad::new(
                req::SET_INFLIGHT_FD,
                wire::inflight(size, offset, queues, queue_size),
            )
            .fds(&[file.raw_fd()])
            .named(format!(
                "{queues} x {queue_size} in {size:#x} at {offset:#x}"
            ))
        };
        for bad in [
            bad(needed, 0, 3, 16),
            bad(needed, 0, 0xffff, 16),
            bad(needed, 0, 0, 16),
            bad(needed, 0, 2, 0),
            bad(needed, 0, 2, 0xffff),
            bad(needed - 1, 0, 2, 16),
            bad(0, 0, 2, 16),
            bad(needed, 0x3000, 2, 16),
            bad(needed, 0x40, 2, 16),
            bad(needed, 1, 2, 16),
            bad(u64::MAX, 1, 2, 16),
            bad(1 << 40, 0, 2, 32768),
            bad(needed, 0, 2, 16).fds(&[]),
            Bad::new(req::SET_INFLIGHT_FD, wire::inflight(needed, 0, 2, 16))
                .fds(&[eventfd.as_raw_fd()]),
        ] {
            rig.refused(s.fe(), &bad);
        }
        // The area that was there is still in use, and not to be changed under a ring that runs.
        s.start_all();
        rig.refused(s.fe(), &bad(needed, 0, 2, 16));
        let requests = hold(rig, &mut s, 2, 0);
        assert_eq!(area(&s).marked(0).len(), 2);
        rig.device.release();
        answered(&mut s, &requests);
        works(&mut s);
    });
}

/// Starts queue 0 over what is in the area.
#[track_caller]
fn start_over(s: &mut Session) {
    s.stop_queue(0);
    s.queues[0].reset(0).unwrap();
    s.bases[0] = 0;
}

#[test]
fn case_63_hostile_contents() {
    run("case_63", |rig| {
        let mut s = session(rig);
        works(&mut s);
        for (field, value, reason) in [
            (VERSION, 7, "version 7"),
            (DESC_NUM, 15, "desc_num 15"),
            (DESC_NUM, 0, "desc_num 0"),
            (LAST_BATCH, 16, "last_batch_head 16"),
            (LAST_BATCH, 0xffff, "last_batch_head 65535"),
        ] {
            start_over(&mut s);
            let before = area(&s).field(0, field);
            area(&s).set_field(0, field, value);
            s.start_queue(0);
            rig.broke(reason, &s, reason);
            echo::round_trip(&mut s.queues[1], b"unharmed");
            area(&s).set_field(0, field, before);
        }
        // A cycle, wrapped and equal counters, nexts outside: bounded, and the ring works.
        start_over(&mut s);
        area(&s).set_field(0, LAST_BATCH, 3);
        area(&s).set_field(0, USED_INDEX, 0xfff0);
        for head in 0..16 {
            area(&s).set_entry(0, head, 0, 3, u64::MAX);
        }
        s.start_queue(0);
        works(&mut s);
        // Everything in flight of which nothing was ever made available: there is nothing to do again.
        start_over(&mut s);
        for head in 0..16 {
            area(&s).set_entry(0, head, 0xff, head ^ 1, u64::MAX - u64::from(head));
        }
        s.start_queue(0);
        let request = EchoRequest::new(&s.memory, 8, 8);
        s.queues[0].submit(&request.segs()).unwrap();
        s.stop_queue(0);
        echo::round_trip(&mut s.queues[1], b"unharmed");
    });
}

/// The area changes all the time while rings start over it.
#[test]
fn case_63_contents_that_change_while_they_are_read() {
    run("case_63_race", |rig| {
        let mut s = session(rig);
        let done = std::sync::atomic::AtomicBool::new(false);
        let shared = SharedFile::over(
            crate::sim::frontend::dup(area(&s).file.raw_fd()).unwrap(),
            area(&s).file.len(),
        )
        .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = 0x9e37_79b9u32;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = (random >> 8) as usize % Inflight::region_size(16);
                    shared.write(at, &[(random >> 24) as u8]);
                }
            });
            for _ in 0..200 {
                start_over(&mut s);
                s.start_queue(0);
                echo::round_trip(&mut s.queues[1], b"unharmed");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

#[test]
fn case_64_no_batch_was_ever_completed() {
    run("case_64", |rig| {
        let mut s = session(rig);
        // The ring has a history that the area knows nothing of.
        s.stop_queue(0);
        s.queues[0].reset(7).unwrap();
        s.bases[0] = 7;
        s.start_queue(0);
        let requests = hold(rig, &mut s, 2, 0);
        assert_eq!(requests[0].0, 0, "head 0 is in flight");
        area(&s).set_field(0, USED_INDEX, 0);
        area(&s).set_field(0, LAST_BATCH, 0);
        die(rig, &mut s);
        s.reconnect(&rig.path);
        answered(&mut s, &requests);
        assert_eq!(s.stop_queue(0), 9);
    });
}

#[test]
fn a_stop_leaves_in_flight_what_the_device_suspends() {
    run_with(
        "inflight_suspend",
        |builder| builder.suspends(true),
        |rig| {
            let mut s = rig
                .builder()
                .queue_size(16)
                .inflight()
                .protocol_features(protocol_feature::GET_VRING_BASE_INFLIGHT)
                .connect(&rig.path);
            let requests = hold(rig, &mut s, 3, 0);
            let mut held = rig.device.take_held();
            let (error, element) = held.pop().unwrap().suspend().unwrap_err();
            assert_eq!(error.errno(), libc::EBUSY, "while the ring runs");
            held.push(element);
            s.fe().send_get_vring_base(0).unwrap();
            rig.device
                .take_event(Event::QueueStopping(0, StopReason::VringBase));
            // The first is finished, the others are left.
            let mut held = held.into_iter();
            super::device::answer(held.next().unwrap());
            held.for_each(|element| element.suspend().map_err(|(error, _)| error).unwrap());
            assert_eq!(s.fe().recv_vring_base(0).unwrap(), 3);
            rig.device.take_event(Event::QueueStopped(0));
            let stats = rig.server.queue_stats(0).unwrap();
            assert_eq!((stats.suspended, stats.inflight), (2, 0));
            s.bases[0] = 3;
            answered(&mut s, &requests[..1]);
            let left: Vec<u16> = requests[1..].iter().map(|(head, _)| *head).collect();
            assert_eq!(area(&s).marked(0), left);
            s.start_queue(0);
            answered(&mut s, &requests[1..]);
            works(&mut s);
        },
    );
}

#[test]
fn suspending_needs_a_front_end_that_takes_over() {
    run_with(
        "inflight_no_suspend",
        |builder| builder.suspends(true),
        |rig| {
            let mut s = session(rig);
            hold(rig, &mut s, 1, 0);
            s.fe().send_get_vring_base(0).unwrap();
            rig.device
                .take_event(Event::QueueStopping(0, StopReason::VringBase));
            let element = rig.device.take_held().remove(0);
            let (error, element) = element.suspend().unwrap_err();
            assert_eq!(error.errno(), libc::ENOTSUP);
            super::device::answer(element);
            s.fe().recv_vring_base(0).unwrap();
            // One bit without the other makes no sense.
            let bits = s.protocol_features | protocol_feature::GET_VRING_BASE_INFLIGHT;
            let alone = bits & !protocol_feature::INFLIGHT_SHMFD;
            rig.refused(s.fe(), &Bad::u64(req::SET_PROTOCOL_FEATURES, alone));
        },
    );
}

#[test]
fn a_device_can_do_without_an_area() {
    run_with(
        "inflight_off",
        |builder| builder.inflight_area(false),
        |rig| {
            let fe = rig.frontend();
            let offered = fe.get_protocol_features().unwrap();
            assert_eq!(offered & protocol_feature::INFLIGHT_SHMFD, 0);
        },
    );
}

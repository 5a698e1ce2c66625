//! In-flight tracking of packed rings: what a successor finds and does again, and areas that nobody should believe.

use super::device::{Event, SOON};
use super::rig::{Bad, Rig, run, run_with, works};
use crate::sim::echo::{self, EchoLoad, EchoRequest};
use crate::sim::inflight::{Form, Inflight};
use crate::sim::packed_ring::Position;
use crate::sim::wire::{self, protocol_feature, req};
use crate::sim::{Deadline, Driver, PackedDriver, RegionSpec, Session, SharedFile};
use vu_server::StopReason;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const OLD_FREE_HEAD: usize = 14;
const USED_INDEX: usize = 16;
const OLD_USED_INDEX: usize = 18;

/// No power of two.
const SIZE: u16 = 14;

#[track_caller]
fn session(rig: &Rig) -> Session<PackedDriver> {
    rig.builder()
        .inflight()
        .packed()
        .queue_size(SIZE)
        .connect(rig.path())
}

fn area(s: &Session<PackedDriver>) -> &Inflight {
    s.inflight.as_ref().expect("an in-flight area")
}

type Requests = Vec<(u16, EchoRequest)>;

/// Requests on queue 0 that the device keeps; it has kept `held` before.
#[track_caller]
fn hold(rig: &Rig, s: &mut Session<PackedDriver>, count: usize, held: usize) -> Requests {
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

/// The front-end goes, as if this process had died with what the device holds; and knows nothing of where the rings stand.
#[track_caller]
fn die(rig: &Rig, s: &mut Session<PackedDriver>) {
    s.abort();
    s.bases.fill(PackedDriver::START);
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
fn answered<'a>(
    s: &mut Session<PackedDriver>,
    requests: impl IntoIterator<Item = &'a (u16, EchoRequest)>,
) {
    for (id, request) in requests {
        let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(used.head, *id);
        request.check(used);
    }
}

#[test]
fn what_is_in_flight_is_marked() {
    run("packed_marks", |rig| {
        let mut s = session(rig);
        let requests = hold(rig, &mut s, 3, 0);
        // Of each chain the first entry.
        assert_eq!(area(&s).marked(0), [0, 2, 4]);
        assert!(area(&s).marked(1).is_empty());
        rig.device.release();
        answered(&mut s, &requests);
        EchoLoad::new(&mut s.queues[0], 7, 64).run(500);
        // The last mark is cleared behind the flags of the used descriptor.
        s.stop_queue(0);
        assert!(area(&s).marked(0).is_empty());
        let used = (2 * 503 % SIZE, 2 * 503 % SIZE);
        let fields = [USED_INDEX, OLD_USED_INDEX].map(|at| area(&s).field(0, at));
        assert_eq!((fields[0], fields[1]), used);
        s.start_queue(0);
        works(&mut s);
        s.disconnect();
    });
}

#[test]
fn a_successor_does_what_was_in_flight() {
    run("packed_successor", |rig| {
        let mut s = session(rig);
        works(&mut s);
        for round in 0..30 {
            let mut requests = hold(rig, &mut s, 5, 0);
            // Some are returned, out of order: used descriptors lie over those of the others.
            let mut held = rig.device.take_held();
            let returned = [held.remove(4), held.remove(2)];
            returned.into_iter().for_each(super::device::answer);
            let returned = [requests.remove(4), requests.remove(2)];
            if round % 2 == 0 {
                answered(&mut s, &returned);
            }
            rig.device.keep(held);
            die(rig, &mut s);
            // Made available while nobody was there.
            let mut more = EchoRequest::new(&s.memory, 24, 24);
            more.prepare(99);
            let id = s.queues[0].submit(&more.segs()).unwrap();
            s.reconnect(rig.path());
            if round % 2 == 1 {
                answered(&mut s, &returned);
            }
            answered(&mut s, &requests);
            answered(&mut s, &[(id, more)]);
            works(&mut s);
        }
        s.disconnect();
    });
}

#[test]
fn chains_of_all_forms_come_back() {
    run("packed_forms", |rig| {
        let mut s = session(rig);
        for round in 0..20u64 {
            rig.device.hold(true);
            let mut requests: Vec<_> = (0..4)
                .map(|_| EchoRequest::new(&s.memory, 100, 100))
                .collect();
            let mut ids = Vec::new();
            for (number, request) in requests.iter_mut().enumerate() {
                request.prepare(round << 8 | number as u64);
                let queue = &mut s.queues[0];
                ids.push(match number % 2 {
                    0 => queue.submit(&request.segs()).unwrap(),
                    _ => queue.submit_indirect(&request.segs()).unwrap(),
                });
            }
            rig.device.wait_held(4);
            rig.device.hold(false);
            die(rig, &mut s);
            s.reconnect(rig.path());
            let requests: Vec<_> = ids.into_iter().zip(requests).collect();
            answered(&mut s, &requests);
        }
        works(&mut s);
    });
}

#[test]
fn who_dies_while_recovering_leaves_it_to_the_next() {
    run("packed_again", |rig| {
        let mut s = session(rig);
        let requests = hold(rig, &mut s, 6, 0);
        for _ in 0..3 {
            die(rig, &mut s);
            rig.device.hold(true);
            s.reconnect(rig.path());
            rig.device.wait_held(6);
            // Not only popped: put into another table in between.
            let region = s.add_region(RegionSpec::new(1 << 33, 4096));
            s.remove_region(region.spec().gpa);
            assert_eq!(area(&s).marked(0).len(), 6);
        }
        rig.device.release();
        answered(&mut s, &requests);
        assert_eq!(s.stop_queue(0), 0x800c_800c, "base");
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn who_dies_idle_leaves_where_the_ring_stands() {
    run("packed_idle", |rig| {
        let mut s = session(rig);
        for _ in 0..20 {
            works(&mut s);
            s.abort();
            s.bases.fill(PackedDriver::START);
            s.reconnect(rig.path());
            works(&mut s);
        }
        s.disconnect();
    });
}

#[test]
fn a_front_end_that_was_told_the_base_is_not_contradicted() {
    run("packed_told", |rig| {
        let mut s = session(rig);
        for index in [0, 5, 13] {
            works(&mut s);
            s.stop_queue(0);
            let at = Position { index, wrap: false };
            s.queues[0].reset(at).unwrap();
            s.bases[0] = u32::from(at.encode()) << 16 | u32::from(at.encode());
            s.start_queue(0);
            works(&mut s);
            s.disconnect();
            s.reconnect(rig.path());
        }
        works(&mut s);
        s.fe().reset_device().unwrap();
        s.reset_rings();
        s.fe().set_features(s.features).unwrap();
        s.start_all();
        works(&mut s);
    });
}

#[test]
fn a_stop_leaves_in_flight_what_the_device_suspends() {
    run_with(
        "packed_suspend",
        |builder| builder.suspends(true),
        |rig| {
            let mut s = rig
                .builder()
                .inflight()
                .protocol_features(protocol_feature::GET_VRING_BASE_INFLIGHT)
                .packed()
                .queue_size(SIZE)
                .connect(rig.path());
            let requests = hold(rig, &mut s, 3, 0);
            let held = rig.device.take_held();
            s.fe().send_get_vring_base(0).unwrap();
            rig.device
                .take_event(Event::QueueStopping(0, StopReason::VringBase));
            // The second is finished, the others are left.
            let mut held = held.into_iter();
            let first = held.next().unwrap();
            super::device::answer(held.next().unwrap());
            for element in [first, held.next().unwrap()] {
                element.suspend().map_err(|(error, _)| error).unwrap();
            }
            s.bases[0] = s.fe().recv_vring_base(0).unwrap();
            assert_eq!(s.bases[0], 0x8002_8006);
            answered(&mut s, &requests[1..2]);
            assert_eq!(area(&s).marked(0), [0, 4]);
            s.start_queue(0);
            answered(&mut s, [&requests[0], &requests[2]]);
            works(&mut s);
        },
    );
}

#[test]
fn case_61_and_62_areas_of_the_size_of_packed_regions() {
    run("packed_62", |rig| {
        let mut s = session(rig);
        s.stop_queue(0);
        s.stop_queue(1);
        let needed = 2 * Form::PACKED.region_size(SIZE) as u64;
        let file = SharedFile::new(needed as usize).unwrap();
        let body = |size| wire::inflight(size, 0, 2, SIZE);
        let small = Bad::new(req::SET_INFLIGHT_FD, body(needed - 1)).fds(&[file.raw_fd()]);
        rig.refused(s.fe(), &small);
        let split = 2 * Form::SPLIT.region_size(SIZE) as u64;
        let small = Bad::new(req::SET_INFLIGHT_FD, body(split)).fds(&[file.raw_fd()]);
        rig.refused(s.fe(), &small);
        s.start_all();
        works(&mut s);
    });
}

#[test]
fn case_63_hostile_contents_of_packed_regions() {
    run("packed_63", |rig| {
        let mut s = session(rig);
        works(&mut s);
        for (field, value, reason) in [
            (VERSION, 7, "version 7"),
            (DESC_NUM, SIZE - 1, "desc_num 13"),
            (USED_INDEX, SIZE, "used_idx 14"),
            (OLD_USED_INDEX, 0xffff, "old_used_idx 65535"),
        ] {
            // With a version, so that it is believed to be somebody's.
            s.stop_queue(0);
            area(&s).set_field(0, VERSION, 1);
            let before = area(&s).field(0, field);
            area(&s).set_field(0, field, value);
            s.start_queue(0);
            rig.broke(reason, &s, reason);
            echo::round_trip(&mut s.queues[1], b"unharmed");
            area(&s).set_field(0, field, before);
        }
        // Everything in flight, and a list that goes nowhere.
        s.stop_queue(0);
        area(&s).set_field(0, VERSION, 1);
        area(&s).set_field(0, OLD_FREE_HEAD, 0xffff);
        for entry in 0..SIZE {
            area(&s).set_desc(0, entry, 1, 0, 0x1000);
        }
        s.start_queue(0);
        rig.broke("no such chains", &s, "num 0");
        s.stop_queue(0);
        // Chains that the guest never made are checked as the guest's are.
        area(&s).set_desc(0, 3, 1, 1, 1 << 50);
        for entry in (0..SIZE).filter(|entry| *entry != 3) {
            area(&s).set_desc(0, entry, 0, 0, 0);
        }
        area(&s).set_field(0, VERSION, 1);
        s.start_queue(0);
        s.queues[0].kick.signal().unwrap();
        rig.broke("an address outside", &s, "is not all in guest memory");
        area(&s).clear();
        s.restart_queue(0);
        works(&mut s);
    });
}

/// The area changes all the time while rings start over it.
#[test]
fn case_63_contents_of_packed_regions_that_change_while_they_are_read() {
    run("packed_63_race", |rig| {
        let mut s = session(rig);
        let done = std::sync::atomic::AtomicBool::new(false);
        let fd = crate::sim::frontend::dup(area(&s).file.raw_fd()).unwrap();
        let shared = SharedFile::over(fd, area(&s).file.len()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = 0x9e37_79b9u32;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = (random >> 8) as usize % Form::PACKED.region_size(SIZE);
                    shared.write(at, &[(random >> 24) as u8]);
                    // Most of the time it looks as if somebody had used it.
                    shared.write(VERSION, &1u16.to_ne_bytes());
                    shared.write(DESC_NUM, &SIZE.to_ne_bytes());
                }
            });
            for _ in 0..200 {
                s.restart_queue(0);
                echo::round_trip(&mut s.queues[1], b"unharmed");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

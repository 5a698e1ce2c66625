//! Regions that hold buffers.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::move_device::{Answer, Event, answer_now};
use crate::move_load::{DriverThread, RegionRequest, descriptors_of, mappings_of};
use crate::move_loops::Kind;
use crate::move_rig::{Rig, under_load};
use crate::sim::echo::{self, EchoLoad};
use crate::sim::{Deadline, Region, RegionSpec, Session, eventually};

const PLUGGED: u64 = 0x4000_0000;
const SIZE: u64 = 1 << 20;
const KINDS: [Kind; 4] = [
    Kind::Epoll,
    Kind::Foreign,
    Kind::Polled,
    Kind::BusyPoll(Duration::from_micros(50)),
];

#[track_caller]
fn wait_unmapped(region: &Region) {
    eventually("unmapping", Deadline::secs(10), 1, || mappings_of(region));
}

/// Regions are plugged in and out while the queue pops at full speed, each time another file at the same
/// guest address; the driver uses them right after the acknowledgement. 2000 rounds leave nothing behind.
#[test]
fn a_region_is_used_right_after_its_acknowledgement() {
    for kind in KINDS {
        let rig = Rig::start("a_region_is_used_right_after", &[kind], 1, Answer::Mixed);
        let mut session = Session::builder().connect(&rig.path);
        let own = session.memory.regions().remove(0);
        let driver = session.queues.remove(0);
        let driver = DriverThread::start(driver, &own, 64);
        for _ in 0..500 {
            let region = session.add_region(RegionSpec::new(PLUGGED, SIZE));
            assert_eq!(descriptors_of(&region), 1, "a region costs a descriptor");
            driver.use_region(&region);
            session.remove_region(PLUGGED);
            wait_unmapped(&region);
        }
        let (_, answered) = driver.stop();
        rig.assert_exactly_once(&[answered]);
        assert_eq!(mappings_of(&own), 2);
    }
}

/// The same with SET_MEM_TABLE, which repeats the regions that stay: those keep their mapping.
#[test]
fn tables_change_under_load() {
    let rig = Rig::start(
        "tables_change_under_load",
        &[Kind::Epoll, Kind::Polled],
        2,
        Answer::Mixed,
    );
    rig.server.attach_queue(1, Some(rig.ctx(1))).unwrap();
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let own = session.memory.regions().remove(0);
    let second = session.queues.remove(1);
    let first = session.queues.remove(0);
    let drivers = [first, second].map(|driver| DriverThread::start(driver, &own, 32));
    for round in 0..500 {
        let region = Arc::new(Region::new(RegionSpec::new(PLUGGED, SIZE)).unwrap());
        session.fe().set_mem_table(&[&own, &region]).unwrap();
        drivers[round % 2].use_region(&region);
        session.fe().set_mem_table(&[&own]).unwrap();
        wait_unmapped(&region);
        assert_eq!(
            mappings_of(&own),
            2,
            "the region that stays is mapped again"
        );
    }
    let counts = drivers.map(|driver| driver.stop().1);
    rig.assert_exactly_once(&counts);
}

/// How a region leaves.
#[derive(Clone, Copy, Debug)]
enum Removal {
    Slot,
    Table,
}

/// Requests hold buffers in a region that is removed: the acknowledgement does not wait for them, the
/// mapping stays until the last of them is completed, and each late completion finds its memory.
fn removal_under_requests(removal: Removal, detached: bool) {
    let name = format!("removal_under_requests {removal:?} {detached}");
    let rig = Rig::start(&name, &[Kind::Epoll], 2, Answer::Hold);
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let own = session.memory.regions().remove(0);
    for round in 0..20 {
        let region = session.add_region(RegionSpec::new(PLUGGED, SIZE));
        assert_eq!(mappings_of(&region), 2);
        let mut requests: Vec<_> = (0..3).map(|_| RegionRequest::new(&region, 4000)).collect();
        let driver = &mut session.queues[0];
        let heads: Vec<u16> = (0..)
            .zip(&mut requests)
            .map(|(i, request)| driver.submit(&request.prepare(round * 3 + i)).unwrap())
            .collect();
        rig.echo.wait_held(3);
        if detached {
            rig.server.request_detach().unwrap();
            rig.wait_quiesced();
        }
        match removal {
            Removal::Slot => session.fe().rem_mem_reg(&region).unwrap(),
            Removal::Table => session.fe().set_mem_table(&[&own]).unwrap(),
        }
        session.memory.remove(PLUGGED).unwrap();
        if !detached {
            rig.echo.set_answer(Answer::Inline);
            // The owner dispatches, and so does queue 0's next pop.
            for queue in &mut session.queues[..] {
                if queue.outstanding() == 0 {
                    echo::round_trip(queue, b"elsewhere");
                }
            }
        }
        let mut held = rig.echo.take_held(0);
        assert_eq!(held.len(), 3);
        while let Some(element) = held.pop() {
            assert_eq!(
                mappings_of(&region),
                2,
                "{} requests are out",
                held.len() + 1
            );
            answer_now(element).unwrap();
        }
        wait_unmapped(&region);
        for _ in 0..3 {
            let used = session.queues[0].wait_used(Deadline::secs(10)).unwrap();
            let index = heads.iter().position(|head| *head == used.head).unwrap();
            requests[index].check(used);
        }
        if detached {
            rig.server.attach(rig.ctx(0)).unwrap();
        }
        rig.echo.set_answer(Answer::Hold);
    }
    assert_eq!(rig.server.stats().broken_rings, 0);
    assert_eq!((rig.stats(0).pops, rig.stats(0).completions), (60, 60));
}

#[test]
fn a_slot_is_removed_under_requests() {
    removal_under_requests(Removal::Slot, false);
}

#[test]
fn a_table_is_replaced_under_requests() {
    removal_under_requests(Removal::Table, false);
}

#[test]
fn a_slot_is_removed_under_requests_while_detached() {
    removal_under_requests(Removal::Slot, true);
}

#[test]
fn a_table_is_replaced_under_requests_while_detached() {
    removal_under_requests(Removal::Table, true);
}

/// The queue wanders between contexts while regions come and go: whoever holds it, or nobody, old memory is
/// let go of and new memory is found.
#[test]
fn regions_change_while_queues_move() {
    let rig = Rig::start("regions_change_while_queues_move", &KINDS, 1, Answer::Mixed);
    let mut session = Session::builder().connect(&rig.path);
    let own = session.memory.regions().remove(0);
    let driver = session.queues.remove(0);
    let driver = DriverThread::start(driver, &own, 32);
    for round in 0..1000 {
        let moves = || {
            rig.server
                .attach_queue(0, Some(rig.ctx(round % KINDS.len())))
                .unwrap()
        };
        moves();
        let region = session.add_region(RegionSpec::new(PLUGGED, SIZE));
        driver.use_region(&region);
        rig.server
            .attach_queue(0, Some(rig.ctx((round + 1) % KINDS.len())))
            .unwrap();
        session.remove_region(PLUGGED);
        wait_unmapped(&region);
    }
    let (_, answered) = driver.stop();
    rig.assert_exactly_once(&[answered]);
}

/// Taken out of its contexts in the very moment in which memory is removed: the mapping goes even though no
/// context comes to look.
#[test]
fn memory_goes_when_a_detach_meets_its_removal() {
    let rig = Rig::start(
        "memory_goes_when_a_detach_meets",
        &[Kind::Epoll],
        2,
        Answer::Inline,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    for round in 0..1500u32 {
        let region = session.add_region(RegionSpec::new(PLUGGED, SIZE));
        echo::round_trip(&mut session.queues[0], &round.to_ne_bytes());
        thread::scope(|scope| {
            scope.spawn(|| {
                // Not to synchronise: the detach shall meet the removal at each of its steps.
                let until = Instant::now() + Duration::from_nanos(u64::from(round % 300) * 200);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                rig.server.request_detach().unwrap();
            });
            session.remove_region(PLUGGED);
        });
        rig.wait_quiesced();
        wait_unmapped(&region);
        rig.server.attach(rig.ctx(0)).unwrap();
    }
}

/// A request over memory that was never announced breaks its ring; memory that is gone by the time of the
/// pop does as well, and nothing else.
#[test]
fn a_buffer_outside_of_memory_breaks_its_ring_alone() {
    let rig = Rig::start(
        "a_buffer_outside_of_memory",
        &[Kind::Epoll],
        2,
        Answer::Inline,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let region = session.add_region(RegionSpec::new(PLUGGED, SIZE));
    session.remove_region(PLUGGED);
    let mut request = RegionRequest::new(&region, 64);
    let (first, second) = session.queues.split_at_mut(1);
    let ((), counts) = under_load(second, 16, || {
        first[0].submit(&request.prepare(1)).unwrap();
        first[0].wait_err(Deadline::secs(10)).unwrap();
        rig.echo.wait_log("ring_broken", |log| {
            log.iter().any(|e| matches!(e, Event::Broken(0, _)))
        });
        rig.wait_progress(1, 500);
    });
    assert_eq!(rig.stats(1).completions, counts[0]);
    assert_eq!(rig.stats(0).completions, 0);
    let mut load = EchoLoad::new(&mut second[0], 4, 64);
    load.run(10);
}

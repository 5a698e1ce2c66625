//! The region that holds a ring itself.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::move_device::{Answer, Event};
use crate::move_load::{RegionRequest, mappings_of};
use crate::move_loops::Kind;
use crate::move_rig::{Rig, RingPlan, under_load};
use crate::sim::echo;
use crate::sim::{Deadline, Region, RegionSpec, RingLayout, Session, SplitDriver, eventually};

const SIZE: u64 = 1 << 20;
const ENTRIES: u16 = 64;

fn home(round: u64) -> RegionSpec {
    RegionSpec::new(0x4000_0000 + round % 5 * 0x1000_0000, SIZE)
}

/// A driver whose ring lies in `region`.
fn driver_in(session: &Session, region: &Arc<Region>) -> SplitDriver {
    let size = u64::from(ENTRIES);
    let layout = RingLayout {
        size: ENTRIES,
        desc: region.alloc(16 * size, 16).unwrap(),
        avail: region.alloc(RingLayout::avail_len(ENTRIES), 2).unwrap(),
        used: region.alloc(RingLayout::used_len(ENTRIES), 4).unwrap(),
    };
    SplitDriver::with_layout(&session.memory, layout, true).unwrap()
}

/// Two queues; queue 0 is not started, queue 1 runs.
fn session_with_one_ring_to_place(rig: &Rig) -> Session {
    let mut session = Session::builder()
        .queues(2)
        .not_started()
        .connect(&rig.path);
    session.start_queue(1);
    session
}

fn count_broken(rig: &Rig) -> usize {
    rig.echo.count(|e| matches!(e, Event::Broken(0, _)))
}

/// The ring's memory is removed under it: that ring breaks, the other goes on. Placed elsewhere and started
/// again, it works.
#[test]
fn a_ring_loses_its_memory() {
    for kind in [Kind::Epoll, Kind::Foreign, Kind::Polled] {
        let rig = Rig::start("a_ring_loses_its_memory", &[kind], 2, Answer::Mixed);
        let mut session = session_with_one_ring_to_place(&rig);
        let mut queues = std::mem::take(&mut session.queues);
        let ((), counts) = under_load(&mut queues[1..], 16, || {
            for round in 0..20 {
                let region = session.add_region(home(round));
                let mut driver = driver_in(&session, &region);
                let plan = RingPlan::of(0, &driver);
                plan.start(&session, 0);
                echo::round_trip(&mut driver, b"placed");

                session.remove_region(home(round).gpa);
                driver.wait_err(Deadline::secs(10)).unwrap();
                let broken = round as usize + 1;
                eventually("ring_broken", Deadline::secs(10), broken, || {
                    count_broken(&rig)
                });
                rig.wait_progress(1, 50);
                session.fe().get_vring_base(0).unwrap();
                eventually("unmapping", Deadline::secs(10), 1, || mappings_of(&region));
            }
        });
        let stats = rig.stats(1);
        assert_eq!((stats.completions, stats.breaks), (counts[0], 0));
        assert_eq!(rig.server.stats().broken_rings, 20);
    }
}

/// With requests in flight: they keep the old mapping and are completed into nothing.
#[test]
fn a_ring_loses_its_memory_with_requests_in_flight() {
    let rig = Rig::start(
        "a_ring_loses_its_memory_in_flight",
        &[Kind::Epoll],
        2,
        Answer::Hold,
    );
    let mut session = session_with_one_ring_to_place(&rig);
    let own = session.memory.regions().remove(0);
    for round in 0..10 {
        rig.echo.set_answer(Answer::Hold);
        let region = session.add_region(home(round));
        let mut driver = driver_in(&session, &region);
        RingPlan::of(0, &driver).start(&session, 0);
        let mut requests: Vec<_> = (0..4).map(|_| RegionRequest::new(&own, 64)).collect();
        for (seed, request) in (0..).zip(&mut requests) {
            driver.submit(&request.prepare(seed)).unwrap();
        }
        rig.echo.wait_held(4);
        session.remove_region(home(round).gpa);
        driver.wait_err(Deadline::secs(10)).unwrap();
        assert_eq!(mappings_of(&region), 2, "four requests are out");
        let used = driver.ring.used_idx().unwrap();
        assert_eq!(rig.echo.answer_held(0), 4);
        assert_eq!(
            driver.ring.used_idx().unwrap(),
            used,
            "a ring without memory was written"
        );
        eventually("unmapping", Deadline::secs(10), 1, || mappings_of(&region));
        assert_eq!(session.fe().get_vring_base(0).unwrap(), 4);
        rig.echo.set_answer(Answer::Inline);
        echo::round_trip(&mut session.queues[1], b"goes on");
    }
}

/// In nobody's hands: the break is noticed without a context and reported when there is one again.
#[test]
fn a_detached_ring_loses_its_memory() {
    let rig = Rig::start(
        "a_detached_ring_loses_its_memory",
        &[Kind::Epoll],
        2,
        Answer::Inline,
    );
    let mut session = session_with_one_ring_to_place(&rig);
    for round in 0..20 {
        let region = session.add_region(home(round));
        let mut driver = driver_in(&session, &region);
        RingPlan::of(0, &driver).start(&session, 0);
        echo::round_trip(&mut driver, b"placed");
        rig.server.request_detach().unwrap();
        rig.wait_quiesced();
        session.remove_region(home(round).gpa);
        driver.wait_err(Deadline::secs(10)).unwrap();
        eventually("unmapping", Deadline::secs(10), 1, || mappings_of(&region));
        assert_eq!(
            count_broken(&rig),
            round as usize,
            "a callback without a context"
        );
        rig.server.attach(rig.ctx(0)).unwrap();
        let broken = round as usize + 1;
        eventually("ring_broken", Deadline::secs(10), broken, || {
            count_broken(&rig)
        });
        session.fe().get_vring_base(0).unwrap();
        echo::round_trip(&mut session.queues[1], b"goes on");
    }
}

/// A ring that is stopped has no use for its memory: taking it away is not the ring's affair.
#[test]
fn a_stopped_ring_does_not_miss_its_memory() {
    let rig = Rig::build(
        "a_stopped_ring_does_not_miss",
        &[Kind::Epoll],
        Answer::Inline,
        |builder| builder.queues(2).disconnect_on_broken_ring(true),
    );
    let mut session = session_with_one_ring_to_place(&rig);
    for round in 0..10 {
        let region = session.add_region(home(round));
        let mut driver = driver_in(&session, &region);
        RingPlan::of(0, &driver).start(&session, 0);
        echo::round_trip(&mut driver, b"placed");
        assert_eq!(session.fe().get_vring_base(0).unwrap(), 1);
        session.remove_region(home(round).gpa);
        echo::round_trip(&mut session.queues[1], b"goes on");
        assert!(
            !driver.err.is_signalled().unwrap(),
            "err for a ring that is stopped"
        );
        eventually("unmapping", Deadline::secs(10), 1, || mappings_of(&region));
    }
    assert_eq!(
        (count_broken(&rig), rig.server.stats().broken_rings),
        (0, 0)
    );
}

/// Disabled but started: its memory is still its own.
#[test]
fn a_disabled_ring_loses_its_memory() {
    let rig = Rig::start(
        "a_disabled_ring_loses_its_memory",
        &[Kind::Epoll],
        2,
        Answer::Inline,
    );
    let mut session = session_with_one_ring_to_place(&rig);
    let region = session.add_region(home(0));
    let mut driver = driver_in(&session, &region);
    RingPlan::of(0, &driver).start(&session, 0);
    echo::round_trip(&mut driver, b"placed");
    session.fe().set_vring_enable(0, false).unwrap();
    session.remove_region(home(0).gpa);
    driver.wait_err(Deadline::secs(10)).unwrap();
    rig.echo.wait_log("ring_broken", |log| {
        log.iter().any(|e| matches!(e, Event::Broken(0, _)))
    });
    echo::round_trip(&mut session.queues[1], b"goes on");
}

/// The same guest addresses, another file: a ring that is started again uses the new one.
#[test]
fn a_ring_comes_back_in_other_memory_at_the_same_address() {
    let rig = Rig::start(
        "a_ring_comes_back_in_other_memory",
        &[Kind::Epoll],
        2,
        Answer::Mixed,
    );
    let session = session_with_one_ring_to_place(&rig);
    for round in 0..100u32 {
        let region = session.add_region(home(0));
        let mut driver = driver_in(&session, &region);
        session
            .fe()
            .set_vring_call(0, Some(driver.call.as_raw_fd()))
            .unwrap();
        RingPlan::of(0, &driver).start(&session, 0);
        echo::round_trip(&mut driver, &round.to_ne_bytes());
        session.fe().get_vring_base(0).unwrap();
        session.remove_region(home(0).gpa);
    }
    assert_eq!(rig.server.stats().broken_rings, 0);
}

//! A ring that the driver breaks: that ring only, until it is started anew.

use vu_server::StopReason;

use crate::move_device::{Answer, Event};
use crate::move_loops::Kind;
use crate::move_rig::{Rig, RingPlan, under_load};
use crate::sim::echo::{self, EchoLoad};
use crate::sim::{Deadline, Session, SplitDriver};

const BAD_HEAD: u16 = 9999;

fn break_ring(driver: &mut SplitDriver) {
    driver.publish_raw(BAD_HEAD).unwrap();
    driver.kick_always().unwrap();
}

/// Queue 0 breaks and is restarted, over and over, while queue 1 is at full load.
#[test]
fn a_broken_ring_leaves_the_others_alone() {
    for kind in [Kind::Epoll, Kind::Foreign, Kind::Polled] {
        let rig = Rig::start("a_broken_ring_leaves_the_others", &[kind], 2, Answer::Mixed);
        let mut session = Session::builder().queues(2).connect(&rig.path);
        let mut queues = std::mem::take(&mut session.queues);
        let plan = RingPlan::of(0, &queues[0]);
        let (bad, good) = queues.split_at_mut(1);
        let bad = &mut bad[0];
        let ((), counts) = under_load(good, 32, || {
            for round in 1..=20 {
                echo::round_trip(bad, b"sound");
                break_ring(bad);
                bad.wait_err(Deadline::secs(10)).unwrap();
                let broken = |e: &Event| *e == Event::Broken(0, libc::EBADMSG);
                rig.echo.wait_log("ring_broken", |log| {
                    log.iter().filter(|e| broken(e)).count() == round
                });
                let stopping = Event::Stopping(0, StopReason::Broken);
                assert_eq!(rig.echo.count(|e| *e == stopping), round);
                assert_eq!(rig.server.stats().broken_rings, round as u64);
                assert_eq!(rig.stats(0).breaks, round as u64);

                // It stays down, whatever is kicked.
                let pops = rig.stats(0).pops;
                bad.kick_always().unwrap();
                rig.wait_progress(1, 100);
                assert_eq!(rig.stats(0).pops, pops, "a broken ring is served");

                session.fe().get_vring_base(0).unwrap();
                bad.reset(0).unwrap();
                bad.err.take().unwrap();
                bad.kick.take().unwrap();
                plan.start(&session, 0);
                echo::round_trip(bad, b"sound again");
            }
        });
        let stats = rig.stats(1);
        assert_eq!(
            (stats.pops, stats.completions, stats.breaks),
            (counts[0], counts[0], 0)
        );
        assert!(
            !good[0].err.is_signalled().unwrap(),
            "err of the queue that is sound"
        );
    }
}

/// Requests that were in flight when their ring broke are completed into nothing and hold nothing up.
#[test]
fn a_ring_breaks_with_requests_in_flight() {
    let rig = Rig::start(
        "a_ring_breaks_with_requests_in_flight",
        &[Kind::Epoll],
        2,
        Answer::Hold,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let mut load = EchoLoad::new(&mut session.queues[0], 4, 64);
    load.fill();
    rig.echo.wait_held(4);
    drop(load);
    break_ring(&mut session.queues[0]);
    session.queues[0].wait_err(Deadline::secs(10)).unwrap();
    rig.echo.wait_event(Event::Broken(0, libc::EBADMSG));
    let used_idx = session.queues[0].ring.used_idx().unwrap();

    session.fe().send_get_vring_base(0).unwrap();
    let soon = std::time::Duration::from_millis(50);
    assert!(
        !session.fe().answered_within(soon).unwrap(),
        "answered with four in flight"
    );
    assert_eq!(rig.echo.answer_held(0), 4);
    assert_eq!(session.fe().recv_vring_base(0).unwrap(), 4);
    assert_eq!(
        session.queues[0].ring.used_idx().unwrap(),
        used_idx,
        "a dead ring was written"
    );

    rig.echo.set_answer(Answer::Inline);
    let plan = RingPlan::of(0, &session.queues[0]);
    session.queues[0].reset(0).unwrap();
    plan.start(&session, 0);
    echo::round_trip(&mut session.queues[0], b"anew");
}

#[test]
fn a_new_connection_clears_a_broken_ring() {
    let rig = Rig::start("a_new_connection_clears", &[Kind::Epoll], 1, Answer::Inline);
    for round in 0..10 {
        let mut session = Session::builder().connect(&rig.path);
        echo::round_trip(&mut session.queues[0], b"sound");
        break_ring(&mut session.queues[0]);
        session.queues[0].wait_err(Deadline::secs(10)).unwrap();
        assert!(
            session.fe().get_features().is_ok(),
            "the connection lives on"
        );
        drop(session);
        rig.echo.wait_log("the disconnect", |log| {
            log.iter()
                .filter(|e| matches!(e, Event::Disconnected(_)))
                .count()
                == round + 1
        });
    }
    assert_eq!(rig.server.stats().broken_rings, 10);
}

#[test]
fn a_broken_ring_can_end_the_connection() {
    let rig = Rig::build(
        "a_broken_ring_can_end",
        &[Kind::Epoll],
        Answer::Inline,
        |builder| builder.queues(2).disconnect_on_broken_ring(true),
    );
    for _ in 0..10 {
        let mut session = Session::builder().queues(2).connect(&rig.path);
        echo::round_trip(&mut session.queues[1], b"sound");
        break_ring(&mut session.queues[0]);
        session.fe().wait_closed().unwrap();
    }
    rig.echo.wait_event(Event::Disconnected(-libc::EBADMSG));
}

/// What breaks while its connection ends is nobody's business in the next one.
#[test]
fn a_ring_that_breaks_as_the_connection_ends_is_forgotten() {
    let rig = Rig::build(
        "a_ring_that_breaks_as_the_connection_ends",
        &[Kind::Epoll],
        Answer::Inline,
        |builder| builder.queues(2).disconnect_on_broken_ring(true),
    );
    for _ in 0..200 {
        let mut session = Session::builder().queues(2).connect(&rig.path);
        break_ring(&mut session.queues[0]);
        drop(session);
        let mut session = Session::builder().queues(2).connect(&rig.path);
        for queue in &mut session.queues {
            echo::round_trip(queue, b"sound");
        }
        session.disconnect();
    }
}

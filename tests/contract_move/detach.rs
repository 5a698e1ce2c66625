//! Leaving contexts and arriving in others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vu_server::StopReason;

use crate::move_device::{Answer, Event, answer_now, echo};
use crate::move_loops::Kind;
use crate::move_pool::Random;
use crate::move_rig::{Rig, SetOnDrop, under_load};
use crate::sim::echo::EchoLoad;
use crate::sim::{Deadline, Session};

const BUSY: Kind = Kind::BusyPoll(Duration::from_micros(50));
const ALL: [Kind; 4] = [Kind::Epoll, Kind::Foreign, Kind::Polled, BUSY];

/// A third thread asks; `wake` says when the contexts have let go. After that no callback runs until the
/// server is attached again, somewhere else.
#[test]
fn request_detach_under_load() {
    const ROUNDS: u64 = 300;
    let rig = Rig::start("request_detach_under_load", &ALL, 2, Answer::Mixed);
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let ((), counts) = under_load(&mut session.queues, 32, || {
        for round in 0..ROUNDS {
            rig.wait_progress((round % 2) as u32, 1);
            rig.server.request_detach().unwrap();
            rig.wait_quiesced();
            let (callbacks, pops) = (rig.echo.callbacks(), rig.stats(0).pops + rig.stats(1).pops);
            assert_eq!(
                rig.loops[1].watches.as_ref().unwrap().count(),
                1,
                "only the doorbell"
            );
            rig.wake
                .wait("nothing in flight", || !rig.server.has_inflight());
            let now = (rig.echo.callbacks(), rig.stats(0).pops + rig.stats(1).pops);
            assert_eq!(
                now,
                (callbacks, pops),
                "round {round}: served while detached"
            );
            rig.server
                .attach(rig.ctx((round as usize + 1) % ALL.len()))
                .unwrap();
        }
        rig.wait_progress(0, 1);
        rig.wait_progress(1, 1);
    });
    rig.assert_exactly_once(&counts);
    let detached = |e: &Event| matches!(e, Event::Stopping(_, StopReason::Detached));
    let count = rig.echo.count(detached) as u64;
    // A queue that was not taken yet when the next detach came has nothing to give back.
    assert!(count > ROUNDS && count <= 2 * ROUNDS, "{count} times");
}

#[test]
fn detach_by_a_stranger_changes_nothing() {
    let rig = Rig::start(
        "detach_by_a_stranger",
        &[Kind::Epoll, Kind::Foreign],
        2,
        Answer::Inline,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    rig.server.attach_queue(1, Some(rig.ctx(1))).unwrap();
    for index in 0..2 {
        let there = rig.loops[index as usize].thread_id;
        rig.echo.wait_event(Event::Started(index, there));
    }
    let ((), counts) = under_load(&mut session.queues, 16, || {
        let events = rig.echo.log().len();
        for _ in 0..200 {
            assert_eq!(rig.server.detach().unwrap_err().errno(), libc::EBUSY);
        }
        // A thread that owns one of the two contexts does not own the server's.
        let server = rig.server.clone();
        let refused = rig.loops[1].on(move || server.detach().map_err(|e| e.errno()));
        assert_eq!(refused, Err(libc::EBUSY));
        rig.wait_progress(0, 100);
        rig.wait_progress(1, 100);
        assert_eq!(rig.echo.log().len(), events, "{:?}", rig.echo.log());
    });
    rig.assert_exactly_once(&counts);
}

/// When detach returns on the owner's thread no callback runs and no watch exists, at once.
#[test]
fn detach_by_the_owner_is_complete_when_it_returns() {
    const ROUNDS: usize = 200;
    let kinds = [Kind::Foreign, Kind::Epoll, Kind::Polled];
    let rig = Rig::start("detach_by_the_owner", &kinds, 2, Answer::Mixed);
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let ((), counts) = under_load(&mut session.queues, 32, || {
        for round in 0..ROUNDS {
            rig.wait_progress(0, 1);
            let (server, echo) = (rig.server.clone(), rig.echo.clone());
            let at = rig.loops[round % kinds.len()].on(move || {
                server.detach().unwrap();
                assert!(server.is_quiesced(), "right after detach");
                echo.callbacks()
            });
            assert_eq!(
                rig.loops[0].watches.as_ref().unwrap().count(),
                1,
                "only the doorbell"
            );
            rig.wake
                .wait("nothing in flight", || !rig.server.has_inflight());
            assert_eq!(
                rig.echo.callbacks(),
                at,
                "a callback after detach had returned"
            );
            rig.server
                .attach(rig.ctx((round + 1) % kinds.len()))
                .unwrap();
        }
        rig.wait_progress(0, 1);
    });
    rig.assert_exactly_once(&counts);
}

/// Begin, poll and end of a drained section, as a VMM does it: what is held keeps `has_inflight` true, the
/// last completion fires `wake`, what the driver adds meanwhile is served afterwards.
#[test]
fn a_drained_section() {
    let rig = Rig::start(
        "a_drained_section",
        &[Kind::Epoll, Kind::Foreign],
        2,
        Answer::Hold,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let mut loads: Vec<_> = session
        .queues
        .iter_mut()
        .map(|queue| EchoLoad::new(queue, 12, 64))
        .collect();
    for round in 0..50 {
        rig.echo.set_answer(Answer::Hold);
        loads.iter_mut().for_each(|load| load.fill_up_to(8));
        rig.echo.wait_held(16);
        assert!(!rig.server.is_quiesced() && rig.server.has_inflight());

        rig.server.request_detach().unwrap();
        rig.wait_quiesced();
        assert!(rig.server.has_inflight());
        loads.iter_mut().for_each(|load| load.fill_up_to(4));

        assert_eq!(rig.echo.answer_held(0), 8);
        let mut last = rig.echo.take_held(1);
        let kept = last.pop().unwrap();
        for element in last {
            answer_now(element).unwrap();
        }
        assert!(rig.server.has_inflight(), "one is held");
        let other = thread::spawn(move || answer_now(kept).unwrap());
        rig.wake.wait("idle", || !rig.server.has_inflight());
        other.join().unwrap();
        assert_eq!(rig.echo.held(), 0, "popped while detached");

        rig.echo.set_answer(Answer::Inline);
        rig.server.attach(rig.ctx((round + 1) % 2)).unwrap();
        loads.iter_mut().for_each(EchoLoad::drain);
    }
    rig.assert_exactly_once(&[50 * 12, 50 * 12]);
}

/// One request at a time, each with its own kick, while the queue wanders without a pause: a kick that is
/// lost in a gap is a request that never completes.
#[test]
fn kicks_that_fall_into_the_gap() {
    const REQUESTS: u64 = 4000;
    const ARRIVALS: usize = 500;
    let rig = Rig::start("kicks_that_fall_into_the_gap", &ALL, 1, Answer::Inline);
    let mut session = Session::builder().connect(&rig.path);
    let driver = &mut session.queues[0];
    let done = AtomicBool::new(false);
    let requests = thread::scope(|scope| {
        let server = &rig.server;
        scope.spawn(|| {
            let mut random = Random::new(1);
            while !done.load(Ordering::Relaxed) {
                let to = rig.ctx(random.below(ALL.len() as u64) as usize);
                server.attach_queue(0, Some(to)).unwrap();
                // Not to synchronise: between none and a few moves for each request.
                thread::sleep(Duration::from_micros(random.below(150)));
            }
        });
        let _done = SetOnDrop(&done);
        let mut load = EchoLoad::new(driver, 1, 64);
        let arrivals = || rig.echo.count(|e| matches!(e, Event::Started(..)));
        // How many requests it takes until the queue has moved often enough is the machine's affair.
        while load.completed < REQUESTS || arrivals() < ARRIVALS {
            load.run(REQUESTS / 8);
        }
        load.completed
    });
    rig.assert_exactly_once(&[requests]);
}

/// Elements popped in one context are completed by the old owner, the new owner and a third thread.
#[test]
fn elements_in_flight_over_a_move() {
    let rig = Rig::start("elements_in_flight_over_a_move", &ALL, 1, Answer::Hold);
    let mut session = Session::builder().connect(&rig.path);
    let mut load = EchoLoad::new(&mut session.queues[0], 48, 300);
    for round in 0..60 {
        let (from, to) = (round % ALL.len(), (round + 1) % ALL.len());
        load.fill();
        rig.echo.wait_held(48);
        rig.server.attach_queue(0, Some(rig.ctx(to))).unwrap();
        let there = rig.loops[to].thread_id;
        rig.echo.wait_log("the move", |log| {
            log.last() == Some(&Event::Started(0, there))
        });

        let mut held = rig.echo.take_held(0);
        let for_old = held.split_off(32);
        let for_new = held.split_off(16);
        let finish =
            |elements: Vec<_>| move || elements.into_iter().try_for_each(answer_now).unwrap();
        rig.loops[from].on(finish(for_old));
        let ctx = rig.loops[to].ctx.clone();
        rig.loops[to].on(move || {
            for (i, element) in for_new.into_iter().enumerate() {
                // Staging an element of an earlier owner's is completing it.
                if i % 2 == 0 {
                    let written = echo(&element);
                    ctx.stage(element, written).unwrap();
                } else {
                    answer_now(element).unwrap();
                }
            }
        });
        finish(held)();
        load.drain();
    }
    drop(load);
    rig.assert_exactly_once(&[60 * 48]);
    rig.server.request_detach().unwrap();
    rig.wait_quiesced();
    assert!(
        !rig.server.has_inflight(),
        "something of a former owner's is left"
    );
}

/// What a device stages as its queue leaves is published before it is gone, and counts as done.
#[test]
fn staged_while_leaving() {
    for kind in ALL {
        let rig = Rig::start(
            "staged_while_leaving",
            &[kind, Kind::Epoll],
            1,
            Answer::Hold,
        );
        rig.echo.stage_at_stopping.store(true, Ordering::Relaxed);
        let mut session = Session::builder().connect(&rig.path);
        for round in 0..50u64 {
            let mut load = EchoLoad::new(&mut session.queues[0], 7, 64);
            load.fill();
            rig.echo.wait_held(7);
            match round % 3 {
                0 => {
                    rig.server.attach_queue(0, Some(rig.ctx(1))).unwrap();
                    load.drain();
                }
                1 => {
                    rig.server.request_detach().unwrap();
                    rig.wait_quiesced();
                    assert!(!rig.server.has_inflight());
                    load.drain();
                    rig.server.attach(rig.ctx(0)).unwrap();
                }
                _ => {
                    drop(load);
                    assert_eq!(session.stop_queue(0), 7 * (round as u32 + 1));
                    assert_eq!(rig.stats(0).inflight, 0);
                    session.queues[0]
                        .wait_used_all(7, Deadline::secs(10))
                        .unwrap();
                    session.start_queue(0);
                }
            }
        }
        rig.assert_exactly_once(&[350]);
    }
}

/// A move asked for again and again before it happens: the last target wins, and nothing is left attached
/// to the others.
#[test]
fn the_last_target_wins() {
    let mut rig = Rig::start("the_last_target_wins", &ALL, 1, Answer::Inline);
    let mut session = Session::builder().connect(&rig.path);
    let ((), counts) = under_load(&mut session.queues, 8, || {
        for round in 0..200 {
            for target in [1, 2, 3, round % 4] {
                rig.server.attach_queue(0, Some(rig.ctx(target))).unwrap();
            }
            rig.wait_progress(0, 1);
        }
        rig.server.attach_queue(0, Some(rig.ctx(0))).unwrap();
        let home = rig.loops[0].thread_id;
        rig.echo.wait_log("the last move", |log| {
            log.iter().rev().find(|e| matches!(e, Event::Started(..)))
                == Some(&Event::Started(0, home))
        });
    });
    rig.assert_exactly_once(&counts);
    // A context that something is attached to could not be freed.
    for looper in rig.loops.drain(1..) {
        let ctx = looper.ctx.clone();
        drop(looper);
        let ctx = Arc::into_inner(ctx).expect("the only reference");
        ctx.free().map_err(|(error, _)| error).unwrap();
    }
    let mut load = EchoLoad::new(&mut session.queues[0], 1, 64);
    load.timeout = Deadline::secs(10).limit();
    load.run(10);
}

//! Kinds of contexts, several servers in one, one server over several, and who is served when.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use vu_server::Context;

use crate::move_device::{Answer, Event, echo};
use crate::move_loops::{Kind, Looper};
use crate::move_pool::Random;
use crate::move_rig::{Rig, under_load};
use crate::sim::echo::{EchoLoad, EchoRequest, round_trip};
use crate::sim::{Deadline, HangGuard, Session, eventually};

const BUSY: Kind = Kind::BusyPoll(Duration::from_micros(100));

/// Requests come in bursts with pauses around the length of the busy-poll window, so that kicks meet a loop
/// that looks, one that is about to sleep and one that sleeps.
#[test]
fn busy_polling_sleeps_and_wakes() {
    let rig = Rig::start("busy_polling_sleeps_and_wakes", &[BUSY], 2, Answer::Mixed);
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let mut random = Random::new(5);
    let [first, second] = &mut session.queues[..] else {
        unreachable!()
    };
    let mut loads = [EchoLoad::new(first, 16, 64), EchoLoad::new(second, 16, 64)];
    for _ in 0..2000 {
        let load = &mut loads[random.below(2) as usize];
        load.run(1 + random.below(20));
        // Not to synchronise: the pause is what is tested.
        thread::sleep(Duration::from_micros(random.below(250)));
    }
    let counts = [loads[0].completed, loads[1].completed];
    drop(loads);
    rig.assert_exactly_once(&counts);
}

/// A program that polls the context's descriptor by itself and dispatches without waiting.
#[test]
fn busy_polling_behind_the_program_s_own_poll() {
    let guard = HangGuard::secs("busy_polling_behind_the_program_s_own_poll", 120);
    let ctx = Context::epoll().unwrap();
    ctx.set_busy_poll(Duration::from_micros(50)).unwrap();
    let rig = Rig::without_loops(guard, Answer::Inline, Some(&ctx), |builder| builder);
    let path = rig.path.clone();
    let driver = thread::spawn(move || {
        let mut session = Session::builder().connect(&path);
        EchoLoad::new(&mut session.queues[0], 4, 64).run(2000);
        session.disconnect();
    });
    while !driver.is_finished() {
        // A bounded wait, to see the end of the driver's thread.
        let ready =
            Deadline::after(Duration::from_millis(100)).poll_fd(ctx.as_raw_fd(), libc::POLLIN);
        if ready.unwrap() != 0 {
            ctx.dispatch(Some(Duration::ZERO)).unwrap();
        }
    }
    driver.join().unwrap();
    rig.server.stop().unwrap();
    rig.assert_exactly_once(&[2000]);
}

#[test]
fn a_polled_context_wants_no_kicks() {
    let rig = Rig::start(
        "a_polled_context_wants_no_kicks",
        &[Kind::Polled],
        2,
        Answer::Mixed,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let ((), counts) = under_load(&mut session.queues, 32, || {
        rig.wait_progress(0, 5000);
        rig.wait_progress(1, 5000);
    });
    rig.assert_exactly_once(&counts);
    for queue in &session.queues {
        assert!(
            queue.kicks <= 2,
            "{} kicks, {} suppressed",
            queue.kicks,
            queue.kicks_suppressed
        );
    }
}

#[test]
fn several_servers_in_one_context() {
    for kind in [Kind::Epoll, Kind::Foreign, Kind::Polled, BUSY] {
        let _guard = HangGuard::secs("several_servers_in_one_context", 120);
        let looper = Looper::start(kind);
        let rigs: Vec<Rig> = (0..3)
            .map(|i| {
                let guard = HangGuard::secs("one of several servers", 120);
                let answer = [Answer::Inline, Answer::Stage, Answer::Pool][i];
                Rig::without_loops(guard, answer, Some(&looper.ctx), |b| b.queues(2))
            })
            .collect();
        thread::scope(|scope| {
            for rig in &rigs {
                scope.spawn(move || {
                    for _ in 0..3 {
                        let before = [rig.stats(0).pops, rig.stats(1).pops];
                        let mut session = Session::builder().queues(2).connect(&rig.path);
                        let ((), counts) = under_load(&mut session.queues, 16, || {
                            rig.wait_progress(0, 500);
                            rig.wait_progress(1, 500);
                        });
                        session.disconnect();
                        rig.assert_exactly_once(&[before[0] + counts[0], before[1] + counts[1]]);
                    }
                });
            }
        });
        drop(rigs);
        let ctx = looper.ctx.clone();
        drop(looper);
        let ctx = Arc::into_inner(ctx).expect("the only reference");
        ctx.free().map_err(|(error, _)| error).unwrap();
    }
}

#[test]
fn one_server_over_four_contexts() {
    let kinds = [Kind::Epoll, Kind::Foreign, Kind::Polled, BUSY];
    let rig = Rig::start("one_server_over_four_contexts", &kinds, 4, Answer::Mixed);
    for queue in 1..4 {
        rig.server
            .attach_queue(queue, Some(rig.ctx(queue as usize)))
            .unwrap();
    }
    let mut session = Session::builder().queues(4).connect(&rig.path);
    let ((), counts) = under_load(&mut session.queues, 16, || {
        for queue in 0..4 {
            rig.wait_progress(queue, 1000);
        }
    });
    rig.assert_exactly_once(&counts);
    for (queue, looper) in rig.loops.iter().enumerate() {
        assert!(
            rig.echo
                .log()
                .contains(&Event::Started(queue as u32, looper.thread_id))
        );
    }
    session.disconnect();
}

/// A queue that always wants to be called again keeps nobody from being served: the other queue, mail, a
/// move.
#[test]
fn again_is_fair() {
    for kind in [Kind::Epoll, Kind::Foreign, Kind::Polled, BUSY] {
        let rig = Rig::start("again_is_fair", &[kind, Kind::Epoll], 2, Answer::Inline);
        rig.echo.again.store(1, Ordering::Relaxed);
        let mut session = Session::builder().queues(2).connect(&rig.path);
        round_trip(&mut session.queues[0], b"begins to ask for more");
        for round in 0u32..200 {
            let before = rig.echo.kicks[0].load(Ordering::Relaxed);
            round_trip(&mut session.queues[1], &round.to_ne_bytes());
            eventually("the greedy queue", Deadline::secs(10), true, || {
                rig.echo.kicks[0].load(Ordering::Relaxed) > before
            });
        }
        rig.server.attach_queue(0, Some(rig.ctx(1))).unwrap();
        rig.echo
            .wait_event(Event::Started(0, rig.loops[1].thread_id));
        rig.echo.again.store(0, Ordering::Relaxed);
        round_trip(&mut session.queues[0], b"is content");
        rig.assert_exactly_once(&[2, 200]);
    }
}

/// Staged on the owner's thread outside of any dispatch: the loop, about to sleep, publishes it.
#[test]
fn staged_outside_of_a_dispatch() {
    for kind in [Kind::Epoll, Kind::Foreign, Kind::Polled] {
        let rig = Rig::start("staged_outside_of_a_dispatch", &[kind], 1, Answer::Hold);
        let mut session = Session::builder().connect(&rig.path);
        let mut load = EchoLoad::new(&mut session.queues[0], 5, 64);
        for _ in 0..300 {
            load.fill();
            rig.echo.wait_held(5);
            let (state, ctx) = (rig.echo.clone(), rig.loops[0].ctx.clone());
            rig.loops[0].on(move || {
                for element in state.take_held(0) {
                    let written = echo(&element);
                    ctx.stage(element, written).unwrap();
                }
            });
            load.drain();
        }
        drop(load);
        rig.assert_exactly_once(&[300 * 5]);
    }
}

/// The same by hand: nothing is published by staging, the context's descriptor becomes ready, the dispatch
/// publishes; so does an explicit flush.
#[test]
fn staging_rings_the_doorbell() {
    let guard = HangGuard::secs("staging_rings_the_doorbell", 120);
    let ctx = Context::epoll().unwrap();
    let rig = Rig::without_loops(guard, Answer::Hold, Some(&ctx), |builder| builder);
    let path = rig.path.clone();
    let connecting = thread::spawn(move || Session::builder().connect(&path));
    while !connecting.is_finished() {
        ctx.dispatch(Some(Duration::from_millis(5))).unwrap();
    }
    let mut session = connecting.join().unwrap();
    let mut load = EchoLoad::new(&mut session.queues[0], 3, 64);
    for round in 0..50 {
        load.fill();
        while rig.echo.held() < 3 {
            ctx.dispatch(Some(Duration::from_secs(10))).unwrap();
        }
        while ctx.dispatch(Some(Duration::ZERO)).unwrap() > 0 {}
        let used = load.driver.ring.used_idx().unwrap();
        for element in rig.echo.take_held(0) {
            let written = echo(&element);
            ctx.stage(element, written).unwrap();
        }
        assert_eq!(
            load.driver.ring.used_idx().unwrap(),
            used,
            "published while staging"
        );
        if round % 2 == 0 {
            let ready = Deadline::secs(10)
                .poll_fd(ctx.as_raw_fd(), libc::POLLIN)
                .unwrap();
            assert_ne!(ready, 0, "the doorbell is silent");
            ctx.dispatch(Some(Duration::ZERO)).unwrap();
        } else {
            ctx.flush().unwrap();
        }
        assert_eq!(load.driver.ring.used_idx().unwrap(), used.wrapping_add(3));
        load.drain();
    }
    drop(load);
    rig.assert_exactly_once(&[150]);
    let stranger = thread::scope(|s| {
        s.spawn(|| ctx.flush().map_err(|e| e.errno()))
            .join()
            .unwrap()
    });
    assert_eq!(stranger, Err(libc::EXDEV));
    rig.server.stop().unwrap();
}

/// Staging on a thread that does not own the queue is completing.
#[test]
fn staged_by_a_stranger() {
    let rig = Rig::start("staged_by_a_stranger", &[Kind::Epoll], 1, Answer::Hold);
    let mut session = Session::builder().connect(&rig.path);
    let mut load = EchoLoad::new(&mut session.queues[0], 5, 64);
    for _ in 0..100 {
        load.fill();
        rig.echo.wait_held(5);
        let used = load.driver.ring.used_idx().unwrap();
        for element in rig.echo.take_held(0) {
            let written = echo(&element);
            rig.ctx(0).stage(element, written).unwrap();
        }
        assert_eq!(
            load.driver.ring.used_idx().unwrap(),
            used.wrapping_add(5),
            "at once"
        );
        load.drain();
    }
    drop(load);
    rig.assert_exactly_once(&[500]);
}

/// Completions come from two threads in random order, at full load, with chains in indirect tables too.
#[test]
fn completions_from_a_pool_in_random_order() {
    let rig = Rig::start("completions_from_a_pool", &[Kind::Epoll], 1, Answer::Pool);
    let mut session = Session::builder().connect(&rig.path);
    let mut request = EchoRequest::new(&session.memory, 64, 64);
    request.prepare(1);
    session.queues[0].submit_indirect(&request.segs()).unwrap();
    request.check(session.queues[0].wait_used(Deadline::secs(10)).unwrap());
    let mut load = EchoLoad::new(&mut session.queues[0], 128, 1024).indirect();
    load.run(20_000);
    drop(load);
    rig.assert_exactly_once(&[20_001]);
}

/// A ring that is refilled without a pause keeps a busy-polling loop neither from its mail nor from the
/// program's own thread, which stops the server with the loop in its hands.
#[test]
fn stopping_a_busy_polling_loop_under_a_load_without_a_pause() {
    let guard = HangGuard::secs("stopping_a_busy_polling_loop", 120);
    let ctx = Context::epoll().unwrap();
    ctx.set_busy_poll(Duration::from_millis(1)).unwrap();
    let rig = Rig::without_loops(guard, Answer::Inline, Some(&ctx), |builder| builder);
    let path = rig.path.clone();
    let driver = thread::spawn(move || {
        let mut session = Session::builder().connect(&path);
        let mut request = EchoRequest::new(&session.memory, 64, 64);
        request.prepare(1);
        let queue = &mut session.queues[0];
        // The socket file is gone when the server is down; what is out then stays unanswered.
        while path.exists() {
            while queue.outstanding() < 64 {
                queue.submit(&request.segs()).unwrap();
            }
            while queue.poll_used().unwrap().is_some() {}
        }
    });
    let started = std::time::Instant::now();
    while rig.stats(0).completions < 20_000 {
        ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    rig.server.stop().unwrap();
    driver.join().unwrap();
}

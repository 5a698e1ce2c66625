//! GET_VRING_BASE, disabling and enabling while other queues and connections go on.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use vu_server::{Address, Context, Server};

use crate::move_device::{Answer, Echo, EchoDevice, Event, answer_now};
use crate::move_loops::Kind;
use crate::move_rig::{Rig, RingPlan, socket_path, under_load};
use crate::sim::echo::{self, EchoLoad};
use crate::sim::{Deadline, HangGuard, Session, eventually};

/// Long enough for an answer that is not held up.
const SOON: Duration = Duration::from_millis(50);

/// Queue 0 stops and starts at the reported base, over and over, while both queues are at full load; queue 1
/// lives in the same context or in another one.
fn base_of_one_queue_under_load(name: &str, kinds: &[Kind], answer: Answer) {
    let rig = Rig::start(name, kinds, 2, answer);
    if kinds.len() > 1 {
        rig.server.attach_queue(1, Some(rig.ctx(1))).unwrap();
    }
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let mut queues = std::mem::take(&mut session.queues);
    let plan = RingPlan::of(0, &queues[0]);
    let used = queues[0].ring.layout().used;
    let ((), counts) = under_load(&mut queues, 64, || {
        for round in 0..150 {
            rig.wait_progress(0, 1);
            let base = session.fe().get_vring_base(0).unwrap();
            let stats = rig.stats(0);
            assert_eq!(stats.inflight, 0, "in flight after GET_VRING_BASE");
            assert_eq!(base, stats.pops as u32 & 0xffff, "round {round}: base");
            let region = session.memory.region_at(used, 4).unwrap();
            let used_idx = region.atomic_u16(used + 2).unwrap();
            // Acquire: pairs with the device's release; it is the last one of this ring.
            let used_idx = used_idx.load(Ordering::Acquire);
            assert_eq!(
                base,
                u32::from(used_idx),
                "everything popped is in the used ring"
            );
            rig.wait_progress(1, 20);
            assert_eq!(rig.stats(0).pops, stats.pops, "popped while stopped");
            plan.start(&session, base);
        }
        rig.wait_progress(0, 1);
    });
    rig.assert_exactly_once(&counts);
    assert_eq!(rig.server.stats().broken_rings, 0);
}

#[test]
fn base_of_one_queue_in_the_same_context() {
    base_of_one_queue_under_load("base_same_context", &[Kind::Epoll], Answer::Mixed);
}

#[test]
fn base_of_one_queue_in_different_contexts() {
    let kinds = [Kind::Foreign, Kind::Polled];
    base_of_one_queue_under_load("base_different_contexts", &kinds, Answer::Mixed);
}

/// A slow request holds GET_VRING_BASE up, and nothing else: not the other queue, not another server in the
/// same context.
#[test]
fn base_waits_for_a_slow_request_alone() {
    let rig = Rig::start(
        "base_waits_for_a_slow_request",
        &[Kind::Epoll],
        2,
        Answer::Hold,
    );
    let other = second_server(&rig);
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let mut queues = std::mem::take(&mut session.queues);
    let plan = RingPlan::of(0, &queues[0]);
    let (slow, busy) = queues.split_at_mut(1);
    let mut slow = EchoLoad::new(&mut slow[0], 3, 64);
    for round in 0..5 {
        rig.echo.set_answer(Answer::Hold);
        slow.fill();
        rig.echo.wait_held(3);
        rig.echo.set_answer(Answer::Inline);

        session.fe().send_get_vring_base(0).unwrap();
        rig.echo.wait_log("the recall", |log| {
            log.iter()
                .filter(|e| matches!(e, Event::Stopping(0, _)))
                .count()
                > round
        });
        under_load(busy, 32, || {
            rig.wait_progress(1, 1000);
            // Another connection begins, works and ends in the meantime.
            let mut session = Session::builder().connect(&other.path);
            echo::round_trip(&mut session.queues[0], b"beside");
            session.disconnect();
        });
        let last = {
            let mut held = rig.echo.take_held(0);
            let last = held.pop().unwrap();
            held.into_iter().try_for_each(answer_now).unwrap();
            last
        };
        assert!(
            !session.fe().answered_within(SOON).unwrap(),
            "answered with one in flight"
        );
        thread::spawn(move || answer_now(last).unwrap());
        let base = session.fe().recv_vring_base(0).unwrap();
        assert_eq!(base, 3 * (round as u32 + 1));
        slow.drain();
        plan.start(&session, base);
    }
    rig.echo.assert_no_violations();
}

struct Second {
    server: Server,
    path: std::path::PathBuf,
}

impl Drop for Second {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.server.stop().unwrap();
        }
    }
}

/// One more server in the first context of `rig`.
fn second_server(rig: &Rig) -> Second {
    let path = socket_path();
    let device = EchoDevice(Echo::new(Answer::Inline));
    let server = Server::builder().name("second").build(device).unwrap();
    server
        .start(Address::Listen(path.clone()), Some(rig.ctx(0)))
        .unwrap();
    Second { server, path }
}

/// Stop does not wait for a front-end that waits for a request that never ends: the drain time-out cuts it.
#[test]
fn stop_while_a_base_is_awaited() {
    let rig = Rig::build(
        "stop_while_a_base_is_awaited",
        &[Kind::Epoll],
        Answer::Hold,
        |builder| builder.drain_timeout(Some(Duration::from_millis(100))),
    );
    let mut session = Session::builder().connect(&rig.path);
    let mut load = EchoLoad::new(&mut session.queues[0], 2, 64);
    load.fill();
    rig.echo.wait_held(2);
    drop(load);
    session.fe().send_get_vring_base(0).unwrap();
    rig.echo.wait_log("the recall", |log| {
        log.iter().any(|e| matches!(e, Event::Stopping(0, _)))
    });
    rig.server.stop().unwrap();
    session.fe().wait_closed().unwrap();
    assert_eq!(rig.echo.answer_held(0), 2, "late completions are legal");
    assert!(!rig.path.exists());
}

/// A ring that is stopped right after it was started is not broken by the race with the context that takes
/// it.
#[test]
fn stop_right_after_start() {
    let rig = Rig::start("stop_right_after_start", &[Kind::Epoll], 1, Answer::Inline);
    let mut session = Session::builder().connect(&rig.path);
    let plan = RingPlan::of(0, &session.queues[0]);
    for round in 0..6000 {
        // Not to synchronise: the recall shall meet the arrival at each of its steps.
        let until = Instant::now() + Duration::from_nanos(round % 600 * 100);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let base = session.fe().get_vring_base(0).unwrap();
        assert_eq!(base, 0);
        plan.start(&session, base);
    }
    echo::round_trip(&mut session.queues[0], b"still there");
    assert_eq!(
        rig.echo.count(|e| matches!(e, Event::Broken(..))),
        0,
        "ring_broken without a cause"
    );
    assert_eq!(rig.stats(0).breaks, 0);
    assert!(!session.queues[0].err.is_signalled().unwrap());
}

#[test]
fn disable_and_enable_under_load() {
    let rig = Rig::start(
        "disable_and_enable_under_load",
        &[Kind::Epoll],
        2,
        Answer::Mixed,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    let mut queues = std::mem::take(&mut session.queues);
    let ((), counts) = under_load(&mut queues, 32, || {
        for _ in 0..300 {
            rig.wait_progress(0, 1);
            session.fe().set_vring_enable(0, false).unwrap();
            let pops = rig.stats(0).pops;
            rig.wait_progress(1, 5);
            assert_eq!(rig.stats(0).pops, pops, "popped while disabled");
            session.fe().set_vring_enable(0, true).unwrap();
        }
    });
    rig.assert_exactly_once(&counts);
}

/// Buffers that were there before the ring ran are found without any kick.
#[test]
fn buffers_from_before_the_start_need_no_kick() {
    for kind in [Kind::Epoll, Kind::Foreign, Kind::Polled] {
        let rig = Rig::start("buffers_from_before_the_start", &[kind], 1, Answer::Stage);
        let mut session = Session::builder().not_started().connect(&rig.path);
        let plan = RingPlan::of(0, &session.queues[0]);
        let mut request = echo::EchoRequest::new(&session.memory, 100, 100);
        request.prepare(7);
        session.queues[0].add(&request.segs()).unwrap();
        session.queues[0].publish().unwrap();
        plan.start_disabled(&session, 0);
        assert_eq!(
            rig.stats(0).pops,
            0,
            "{kind:?}: served before it was enabled"
        );
        session.fe().set_vring_enable(0, true).unwrap();
        let used = session.queues[0].wait_used(Deadline::secs(10)).unwrap();
        request.check(used);

        session.fe().set_vring_enable(0, false).unwrap();
        request.prepare(8);
        session.queues[0].add(&request.segs()).unwrap();
        session.queues[0].publish().unwrap();
        session.fe().set_vring_enable(0, true).unwrap();
        let used = session.queues[0].wait_used(Deadline::secs(10)).unwrap();
        request.check(used);
        rig.assert_exactly_once(&[2]);
    }
}

/// A device that wants them runs queues that are not enabled, and sees that they are not.
#[test]
fn queues_run_while_disabled() {
    let rig = Rig::build(
        "queues_run_while_disabled",
        &[Kind::Epoll],
        Answer::Inline,
        |builder| builder.run_disabled_queues(true),
    );
    let mut session = Session::builder().not_started().connect(&rig.path);
    let plan = RingPlan::of(0, &session.queues[0]);
    plan.start_disabled(&session, 0);
    let enabled = |rig: &Rig| rig.echo.enabled[0].load(Ordering::Relaxed) == 2;
    for on in [false, true, false, true] {
        session.fe().set_vring_enable(0, on).unwrap();
        echo::round_trip(&mut session.queues[0], b"served");
        assert_eq!(enabled(&rig), on, "what the device sees");
    }
    let queue = &mut session.queues[0];
    let mut load = EchoLoad::new(queue, 16, 64);
    load.run(500);
    rig.assert_exactly_once(&[504]);
}

/// Resets under load: what was in flight is drained, the rings start from nothing, memory stays.
#[test]
fn reset_with_requests_in_flight() {
    let rig = Rig::start(
        "reset_with_requests_in_flight",
        &[Kind::Epoll],
        2,
        Answer::Pool,
    );
    let mut session = Session::builder().queues(2).connect(&rig.path);
    for round in 1..=100 {
        for queue in &mut session.queues {
            let mut request = echo::EchoRequest::new(&session.memory, 64, 64);
            request.prepare(round);
            queue.submit(&request.segs()).unwrap();
        }
        session.fe().reset_device().unwrap();
        assert_eq!((rig.stats(0).inflight, rig.stats(1).inflight), (0, 0));
        session.reset_rings();
        session.start_all();
        echo::round_trip(&mut session.queues[1], b"after the reset");
    }
    eventually("resets", Deadline::secs(10), 100, || {
        rig.echo.count(|e| *e == Event::Reset)
    });
    assert_eq!(rig.server.stats().broken_rings, 0);
}

/// An attach that meets the end of a stop either comes before it or is refused: a server that is down names no
/// context, so that it can be freed.
#[test]
fn an_attach_that_meets_a_stop_leaves_nothing_behind() {
    let _guard = HangGuard::secs("an_attach_that_meets_a_stop_leaves_nothing_behind", 120);
    let server = Server::builder()
        .queues(256)
        .build(EchoDevice(Echo::new(Answer::Inline)))
        .unwrap();
    for _ in 0..200 {
        let ctx = Context::polled().unwrap();
        server.start(Address::Listen(socket_path()), None).unwrap();
        thread::scope(|scope| {
            let (begun, begins) = channel();
            let (server, ctx) = (&server, &ctx);
            scope.spawn(move || {
                while server.attach(ctx).is_ok() && server.request_detach().is_ok() {
                    // Whoever listens has heard it by the first time.
                    let _ = begun.send(());
                }
            });
            begins.recv().unwrap();
            server.stop().unwrap();
        });
        ctx.free().map_err(|(error, _)| error).unwrap();
    }
}

//! A nested loop inside `kick`: other queues are served, this one's readiness is remembered.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vu_server::{Address, Context, Kick, Server, Virtqueue};

use crate::sim::echo::EchoRequest;
use crate::sim::{Deadline, Session, eventually};
use crate::stop::*;

/// Dispatches `ctx`, inside a callback of it, until `done`. False if that did not come true.
fn nest(ctx: &Context, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(3) {
            return false;
        }
        ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
    }
    true
}

fn answer_one(vq: &mut Virtqueue<'_>) {
    if let Some(element) = vq.pop_one().unwrap() {
        reply(element);
    }
}

#[test]
fn readiness_of_the_queue_whose_kick_is_on_the_stack_is_remembered() {
    let _guard = guard("readiness_is_remembered", 40);
    let journal = Journal::new();
    let ctx = Arc::new(Context::epoll().unwrap());
    let (inside, leave) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (nested_ok, deepest) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (in_kick, in_kicks) = mpsc::channel();
    let device = {
        let (ctx, inside, leave) = (ctx.clone(), inside.clone(), leave.clone());
        let (nested_ok, deepest) = (nested_ok.clone(), deepest.clone());
        Probe::new(&journal, move |_, call| {
            let Call::Kick(vq) = call else { return None };
            if vq.index() == 1 {
                return None;
            }
            let depth = inside.fetch_add(1, Ordering::Relaxed) + 1;
            deepest.fetch_max(depth, Ordering::Relaxed);
            answer_one(vq);
            if !leave.load(Ordering::Acquire) {
                in_kick.send(()).unwrap();
                let ok = nest(&ctx, || leave.load(Ordering::Acquire));
                nested_ok.store(ok, Ordering::Relaxed);
            }
            inside.fetch_sub(1, Ordering::Relaxed);
            Some(Kick::Done)
        })
    };
    let server = Server::builder().queues(2).build(device).unwrap();
    let path = socket_path("nested");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let heard = journal.clone();
    let looping = ctx.clone();
    let driver = thread::spawn(move || {
        let mut session = Session::builder().queues(2).connect(&path);
        let request = EchoRequest::new(&session.memory, 8, 8);
        session.queues[0].submit(&request.segs()).unwrap();
        in_kicks.recv_timeout(SOON).unwrap();
        // Another queue of the same device is served by the nested loop.
        crate::sim::echo::round_trip(&mut session.queues[1], b"served");
        // This one is not, though its readiness is taken off the descriptor.
        let second = EchoRequest::new(&session.memory, 8, 8);
        session.queues[0].add(&second.segs()).unwrap();
        session.queues[0].publish().unwrap();
        session.queues[0].kick_always().unwrap();
        eventually("the kick is seen", Deadline::secs(10), false, || {
            session.queues[0].kick.is_signalled().unwrap()
        });
        assert_eq!(heard.count("kick 0"), 1);
        leave.store(true, Ordering::Release);
        session.queues[0]
            .wait_used_all(2, Deadline::secs(10))
            .unwrap();
        looping.quit();
        session
    });
    ctx.run().unwrap();
    let session = driver.join().unwrap();
    assert!(
        nested_ok.load(Ordering::Relaxed),
        "the nested loop did not come to its end"
    );
    assert_eq!(
        deepest.load(Ordering::Relaxed),
        1,
        "a kick inside its own kick"
    );
    assert!(journal.count("kick 0") >= 2);
    server.stop().unwrap();
    drop((session, server));
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
}

/// A queue that has asked to be called again is served by a loop that nests in another one's kick, also if
/// both had asked at the same time.
#[test]
fn a_nested_loop_serves_queues_that_asked_to_be_called_again() {
    let _guard = guard(
        "a_nested_loop_serves_queues_that_asked_to_be_called_again",
        40,
    );
    let journal = Journal::new();
    let ctx = Arc::new(Context::epoll().unwrap());
    let again = Arc::new(AtomicBool::new(true));
    let done = Arc::new(AtomicUsize::new(0));
    let failed = Arc::new(AtomicBool::new(false));
    let device = {
        let (ctx, again, done, failed) = (ctx.clone(), again.clone(), done.clone(), failed.clone());
        Probe::new(&journal, move |_, call| {
            let Call::Kick(vq) = call else { return None };
            if again.load(Ordering::Relaxed) {
                return Some(Kick::Again);
            }
            let me = vq.index() as usize;
            let other = 1 - me;
            answer_one(vq);
            // The first to get here waits for the other.
            if done.fetch_or(1 << me, Ordering::Relaxed) == 0
                && !nest(&ctx, || done.load(Ordering::Relaxed) & 1 << other != 0)
            {
                failed.store(true, Ordering::Relaxed);
            }
            Some(Kick::Done)
        })
    };
    let server = Server::builder().queues(2).build(device).unwrap();
    let path = socket_path("again");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let heard = journal.clone();
    let (asking, asked) = mpsc::channel();
    let driver = thread::spawn(move || {
        let mut session = Session::builder().queues(2).connect(&path);
        for queue in 0..2 {
            let request = EchoRequest::new(&session.memory, 8, 8);
            session.queues[queue].submit(&request.segs()).unwrap();
            // Again and again.
            heard.wait_for_count(&format!("kick {queue}"), 3);
        }
        asking.send(()).unwrap();
        for queue in 0..2 {
            session.queues[queue].wait_used(Deadline::secs(10)).unwrap();
        }
        session
    });
    while !driver.is_finished() {
        ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
        if asked.try_recv().is_ok() {
            // Between two dispatches, with both in the list of those that asked.
            again.store(false, Ordering::Relaxed);
        }
    }
    let session = driver.join().unwrap();
    assert!(
        !failed.load(Ordering::Relaxed),
        "the other queue was not served"
    );
    server.stop().unwrap();
    drop((session, server));
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
}

/// Mail that came together with the one whose callback nests is read by the nested loop.
#[test]
fn a_nested_loop_reads_the_mail_that_came_along() {
    let _guard = guard("a_nested_loop_reads_the_mail_that_came_along", 40);
    let journal = Journal::new();
    let ctx = Arc::new(Context::epoll().unwrap());
    let nest_now = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(AtomicBool::new(false));
    let device = {
        let (ctx, nest_now, failed) = (ctx.clone(), nest_now.clone(), failed.clone());
        let heard = journal.clone();
        Probe::new(&journal, move |_, call| {
            if let Call::QueueStarted(vq) = call
                && nest_now.swap(false, Ordering::Relaxed)
            {
                let other = format!("queue_started {}", 1 - vq.index());
                if !nest(&ctx, || heard.count(&other) == 2) {
                    failed.store(true, Ordering::Relaxed);
                }
            }
            None
        })
    };
    let server = Server::builder().queues(2).build(device).unwrap();
    let path = socket_path("mail");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let heard = journal.clone();
    let (turn, turns) = mpsc::channel();
    let (still, stills) = mpsc::channel();
    let driver = thread::spawn(move || {
        let session = Session::builder().queues(2).connect(&path);
        for queue in 0..2 {
            heard.wait_for(&format!("queue_started {queue}"));
        }
        for queue in 0..2 {
            session.fe().set_vring_enable(queue, false).unwrap();
        }
        turn.send(()).unwrap();
        stills.recv_timeout(SOON).unwrap();
        // Nobody dispatches, so both offers wait in the mailbox.
        for queue in 0..2 {
            session.fe().set_vring_enable(queue, true).unwrap();
        }
        session.fe().get_features().unwrap();
        session
    });
    while turns.try_recv().is_err() {
        assert!(!driver.is_finished(), "the driver has failed");
        ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
    }
    still.send(()).unwrap();
    let session = driver.join().unwrap();
    nest_now.store(true, Ordering::Relaxed);
    while journal.count("queue_started 0") + journal.count("queue_started 1") < 4 {
        ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
    }
    assert!(
        !failed.load(Ordering::Relaxed),
        "the other queue's mail was not read"
    );
    server.stop().unwrap();
    drop((session, server));
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
}

/// The loop was told to end while a callback that it ran before its sleep nested, and the nested loop took the
/// doorbell.
#[test]
fn a_loop_that_is_told_to_end_under_a_nested_one_ends() {
    let _guard = guard("a_loop_that_is_told_to_end_under_a_nested_one_ends", 20);
    let journal = Journal::new();
    let ctx = Arc::new(Context::epoll().unwrap());
    let device = {
        let ctx = ctx.clone();
        Probe::new(&journal, move |name, _| {
            if name == "connected" {
                ctx.quit();
                ctx.dispatch(Some(Duration::ZERO)).unwrap();
            }
            None
        })
    };
    let server = Server::builder().build(device).unwrap();
    let path = socket_path("quit");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let session = Session::builder().not_started().connect(&path);
    // The event lies in the mailbox: the loop delivers it before it sleeps for the first time.
    assert_eq!(journal.count("connected"), 0);
    ctx.run().unwrap();
    assert_eq!(journal.count("connected"), 1);
    server.stop().unwrap();
    drop((session, server));
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
}

/// A stop that comes while a nested loop runs takes the queue when `kick` returns, and pop says so before.
#[test]
fn a_recall_takes_effect_when_the_kick_returns() {
    let _guard = guard("a_recall_takes_effect_when_the_kick_returns", 40);
    let journal = Journal::new();
    let looper = Looper::new();
    let (in_kick, in_kicks) = mpsc::channel();
    let ctx = looper.ctx.clone();
    let heard = journal.clone();
    let device = Probe::new(&journal, move |_, call| {
        let Call::Kick(vq) = call else { return None };
        if vq.index() != 0 {
            return None;
        }
        answer_one(vq);
        in_kick.send(()).unwrap();
        let left = nest(&ctx, || heard.count("queue_stopping 1 ServerStopping") == 1);
        let error = vq.pop_one().map(|_| ()).unwrap_err();
        heard.note(format_args!("pop {left} {}", error.errno()));
        Some(Kick::Again)
    });
    let server = Server::builder().queues(2).build(device).unwrap();
    let path = socket_path("recall");
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut session = Session::builder().queues(2).connect(&path);
    crate::sim::echo::round_trip(&mut session.queues[1], b"up");
    let request = EchoRequest::new(&session.memory, 8, 8);
    session.queues[0].submit(&request.segs()).unwrap();
    in_kicks.recv_timeout(SOON).unwrap();
    within(Duration::from_secs(5), "the stop", || server.stop()).unwrap();
    session.queues[0].wait_used(Deadline::secs(10)).unwrap();
    let events = journal.events();
    let at = |what: &str| events.iter().position(|event| event == what).expect(what);
    assert!(at("queue_stopping 1 ServerStopping") < at(&format!("pop true {}", libc::ESHUTDOWN)));
    assert!(at(&format!("pop true {}", libc::ESHUTDOWN)) < at("queue_stopping 0 ServerStopping"));
    assert_eq!(server.stats().orphaned_queues, 0);
    drop(server);
    // The device, and with it the hook's handle of the context, went with the server.
    looper.finish();
}

//! Stopping on a thread that must itself serve what the stop waits for.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vu_server::{Address, Context, Kick, Server};

use crate::sim::{Deadline, EventFd, Frontend, Session, eventually};
use crate::stop::*;
use crate::stop_loop::PollLoop;

/// Well below the drain time-out, which would end a stop that nobody serves.
const SERVED: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(20);

/// Requests of `len` bytes that are answered in full.
fn submit(session: &mut Session, queue: usize, count: usize) {
    let memory = session.memory.clone();
    for _ in 0..count {
        let request = crate::sim::echo::EchoRequest::new(&memory, 16, 16);
        session.queues[queue].submit(&request.segs()).unwrap();
    }
}

/// Watches an eventfd in `ctx` and completes one held element for each signal, as an application does whose
/// own requests complete in the same loop.
fn complete_in_loop(ctx: &Context, held: &Arc<Held>) -> Arc<EventFd> {
    let done = Arc::new(EventFd::new().unwrap());
    let (fd, elements) = (done.clone(), held.clone());
    ctx.watch(done.as_raw_fd(), libc::POLLIN as u32, move |_| {
        for _ in 0..fd.take().unwrap() {
            if let Some(element) = elements.take_one() {
                reply(element);
            }
        }
    })
    .unwrap();
    done
}

#[test]
fn run_then_stop_in_one_thread() {
    let _guard = guard("run_then_stop_in_one_thread", 40);
    const REQUESTS: usize = 8;
    let path = socket_path("run-stop");
    let journal = Journal::new();
    let (device, held) = Probe::holding(&journal);
    let server = Server::builder()
        .drain_timeout(Some(DRAIN))
        .build(device)
        .unwrap();
    let ctx = Arc::new(Context::epoll().unwrap());
    let done = complete_in_loop(&ctx, &held);
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();

    let driver = {
        let (ctx, journal, done, held) = (ctx.clone(), journal.clone(), done.clone(), held.clone());
        thread::spawn(move || {
            let mut session = Session::builder().connect(&path);
            submit(&mut session, 0, REQUESTS);
            held.wait_for(REQUESTS);
            ctx.quit();
            // Only inside the stop, and only the loop can hear it: one at a time.
            journal.wait_for("queue_stopping 0 ServerStopping");
            for left in (0..REQUESTS).rev() {
                done.signal().unwrap();
                eventually("completions in the loop", Deadline::secs(10), left, || {
                    held.len()
                });
            }
            let used = session.queues[0]
                .wait_used_all(REQUESTS, Deadline::secs(10))
                .unwrap();
            assert!(used.iter().all(|used| used.len == 16), "{used:?}");
        })
    };
    ctx.run().unwrap();
    within(SERVED, "the stop", || server.stop()).unwrap();
    assert!(server.is_stopped());
    assert_eq!(server.stats().orphaned_queues, 0);
    driver.join().unwrap();
    assert_eq!(
        journal.events(),
        [
            "connected",
            "features_acked",
            "queue_started 0",
            "queue_stopping 0 ServerStopping",
            "queue_stopped 0",
            "disconnected 0"
        ]
    );
    let main = thread::current().id();
    assert!(journal.entries().iter().all(|entry| entry.thread == main));
    server.free().map_err(|(error, _)| error).unwrap();
    ctx.unwatch(done.as_raw_fd()).unwrap();
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
}

#[test]
fn a_stop_does_not_wait_for_a_context_that_never_dispatches() {
    let _guard = guard(
        "a_stop_does_not_wait_for_a_context_that_never_dispatches",
        40,
    );
    let path = socket_path("never");
    let journal = Journal::new();
    let server = Server::builder()
        .queues(2)
        .drain_timeout(None)
        .build(Probe::echo(&journal))
        .unwrap();
    // Its owner is a thread that does something else.
    let (give, take) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let idle = thread::spawn(move || {
        let ctx = Arc::new(Context::epoll().unwrap());
        give.send(ctx.clone()).unwrap();
        let _ = left.recv();
        ctx
    });
    let ctx = take.recv().unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    // Set-up is a count of round trips, whoever dispatches or not.
    let mut session = within(SERVED, "set-up", || {
        Session::builder().queues(2).connect(&path)
    });
    submit(&mut session, 0, 4);
    session.fe().get_features().unwrap();
    within(SERVED, "the stop", || server.stop()).unwrap();
    session.fe().wait_closed().unwrap();
    assert!(journal.entries().is_empty(), "{:?}", journal.entries());
    server.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(journal.events(), ["destroy"]);
    drop(leave);
    drop(idle.join().unwrap());
    // Nothing of the server is attached any more, though nobody read the mail.
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
}

#[test]
fn a_stop_on_the_thread_of_a_context_that_was_never_dispatched() {
    let _guard = guard(
        "a_stop_on_the_thread_of_a_context_that_was_never_dispatched",
        40,
    );
    let path = socket_path("own-never");
    let journal = Journal::new();
    let server = Server::builder()
        .drain_timeout(None)
        .build(Probe::echo(&journal))
        .unwrap();
    let ctx = Context::epoll().unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let session = Session::builder().connect(&path);
    within(SERVED, "the stop", || server.stop()).unwrap();
    session.fe().wait_closed().unwrap();
    drop(server);
    ctx.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn two_contexts_stop_each_others_servers() {
    let _guard = guard("two_contexts_stop_each_others_servers", 60);
    const ROUNDS: usize = 20;
    const REQUESTS: usize = 4;
    for _ in 0..ROUNDS {
        let barrier = Arc::new(Barrier::new(2));
        let (contexts, servers): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let journal = Journal::new();
                let (device, held) = Probe::holding(&journal);
                let builder = Server::builder().drain_timeout(Some(DRAIN));
                let server = Arc::new(builder.build(device).unwrap());
                let path = socket_path("each-other");
                ((journal, held), (server, path))
            })
            .unzip();
        let threads: Vec<_> = contexts
            .into_iter()
            .enumerate()
            .map(|(me, (journal, held))| {
                let (own, path) = servers[me].clone();
                let other = servers[1 - me].0.clone();
                let barrier = barrier.clone();
                thread::spawn(move || {
                    let ctx = Arc::new(Context::epoll().unwrap());
                    let done = complete_in_loop(&ctx, &held);
                    own.start(Address::Listen(path.clone()), Some(&ctx))
                        .unwrap();
                    let driver = {
                        let (ctx, held, done) = (ctx.clone(), held.clone(), done.clone());
                        thread::spawn(move || {
                            let mut session = Session::builder().connect(&path);
                            submit(&mut session, 0, REQUESTS);
                            held.wait_for(REQUESTS);
                            ctx.quit();
                            journal.wait_for("queue_stopping 0 ServerStopping");
                            done.add(REQUESTS as u64).unwrap();
                            session.queues[0]
                                .wait_used_all(REQUESTS, Deadline::secs(10))
                                .unwrap();
                        })
                    };
                    ctx.run().unwrap();
                    barrier.wait();
                    within(SERVED, "the other's stop", || other.stop()).unwrap();
                    // This thread's own server may still need it.
                    dispatch_until(&ctx, || own.is_stopped() && driver.is_finished());
                    driver.join().unwrap();
                    ctx.unwatch(done.as_raw_fd()).unwrap();
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(servers.iter().all(|(server, _)| server.is_stopped()));
        assert!(
            servers
                .iter()
                .all(|(server, _)| server.stats().orphaned_queues == 0)
        );
    }
}

fn dispatch_until(ctx: &Context, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < SOON,
            "the other thread did not stop this one's server"
        );
        ctx.dispatch(Some(Duration::from_millis(5))).unwrap();
    }
}

// ---- foreign loops --------------------------------------------------------------------------------------

/// Turns `foreign` on this thread while `f` runs on another.
fn while_turning<R: Send + 'static>(
    foreign: &PollLoop,
    f: impl FnOnce() -> R + Send + 'static,
) -> R {
    let other = thread::spawn(f);
    foreign.turn_until("the other thread", || other.is_finished());
    other.join().unwrap()
}

#[test]
fn a_foreign_loop_without_poll_refuses_to_stop_and_goes_on() {
    let _guard = guard(
        "a_foreign_loop_without_poll_refuses_to_stop_and_goes_on",
        60,
    );
    let path = socket_path("foreign");
    let foreign = PollLoop::new();
    let ctx = Context::foreign(foreign.adapter(false)).unwrap();
    let journal = Journal::new();
    let server = Server::builder().build(Probe::echo(&journal)).unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let mut session = while_turning(&foreign, move || {
        let mut session = Session::builder().connect(&path);
        crate::sim::echo::round_trip(&mut session.queues[0], b"before");
        session
    });
    let heard = journal.entries().len();
    assert_errno(server.stop(), libc::EDEADLK);
    assert_eq!(journal.entries().len(), heard, "something was called");
    assert!(!server.is_stopped());
    // It goes on as if nothing had been asked.
    let session = while_turning(&foreign, move || {
        crate::sim::echo::round_trip(&mut session.queues[0], b"after");
        session
    });
    server.request_stop().unwrap();
    foreign.turn_until("stopped", || journal.count("stopped") == 1);
    assert!(server.is_stopped());
    session.fe().wait_closed().unwrap();
    // Now there is nothing to wait for.
    server.stop().unwrap();
    server.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(foreign.watches(), 1, "the doorbell is left");
    ctx.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(
        (foreign.watches(), foreign.destroyed.load(Ordering::Relaxed)),
        (0, 1)
    );
}

#[test]
fn a_foreign_loop_with_poll_serves_the_stop() {
    let _guard = guard("a_foreign_loop_with_poll_serves_the_stop", 60);
    let path = socket_path("foreign-poll");
    let foreign = PollLoop::new();
    let ctx = Context::foreign(foreign.adapter(true)).unwrap();
    let journal = Journal::new();
    // Both queues live in the loop. What the first holds is completed when the second gets its request:
    // by the loop, inside the stop.
    let held = Held::new();
    let keep = held.clone();
    let device = Probe::new(&journal, move |_, call| match call {
        Call::Kick(vq) => {
            keep.pop_all(vq);
            Some(Kick::Done)
        }
        _ => None,
    });
    let server = Server::builder()
        .drain_timeout(Some(DRAIN))
        .build(device)
        .unwrap();
    let other_journal = Journal::new();
    let release = held.clone();
    let other_device = Probe::new(&other_journal, move |_, call| match call {
        Call::Kick(vq) => {
            release.reply_to_all();
            echo(vq, &Held::new());
            Some(Kick::Done)
        }
        _ => None,
    });
    let other = Server::builder().build(other_device).unwrap();
    let other_path = socket_path("foreign-other");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    other
        .start(Address::Listen(other_path.clone()), Some(&ctx))
        .unwrap();
    let (mut session, mut other_session, held) = while_turning(&foreign, move || {
        let mut session = Session::builder().connect(&path);
        let other_session = Session::builder().connect(&other_path);
        submit(&mut session, 0, 3);
        held.wait_for(3);
        (session, other_session, held)
    });
    let driver = {
        let journal = journal.clone();
        thread::spawn(move || {
            journal.wait_for("queue_stopping 0 ServerStopping");
            assert_eq!(held.len(), 3);
            // Another server's queue is served inside `poll`.
            crate::sim::echo::round_trip(&mut other_session.queues[0], b"release");
            session.queues[0]
                .wait_used_all(3, Deadline::secs(10))
                .unwrap();
            other_session
        })
    };
    within(SERVED, "the stop", || server.stop()).unwrap();
    assert_eq!(server.stats().orphaned_queues, 0);
    foreign.turn_until("the driver", || driver.is_finished());
    drop(driver.join().unwrap());
    within(SERVED, "the other's stop", || other.stop()).unwrap();
    drop((server, other));
    ctx.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn a_loop_without_poll_does_not_keep_its_thread_from_stopping_other_servers() {
    let _guard = guard(
        "a_loop_without_poll_does_not_keep_its_thread_from_stopping",
        60,
    );
    // This thread owns a foreign loop with a server in it, and stops one that lives elsewhere, whose own
    // thread stops the first: the queue in this thread's loop must be given back meanwhile.
    let foreign = PollLoop::new();
    let ctx = Context::foreign(foreign.adapter(false)).unwrap();
    let (here, there) = (Journal::new(), Journal::new());
    let builder = || Server::builder().drain_timeout(Some(DRAIN));
    let mine = Arc::new(builder().build(Probe::echo(&here)).unwrap());
    let other = Arc::new(builder().build(Probe::echo(&there)).unwrap());
    let (path, other_path) = (socket_path("mine"), socket_path("other"));
    let looper = Looper::new();
    mine.start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    other
        .start(Address::Listen(other_path.clone()), Some(&looper.ctx))
        .unwrap();
    let sessions = while_turning(&foreign, move || {
        let mut sessions = [&path, &other_path].map(|path| Session::builder().connect(path));
        for session in &mut sessions {
            crate::sim::echo::round_trip(&mut session.queues[0], b"up");
        }
        sessions
    });
    // The device of the other one is not done before the first server is down.
    other.inflight_inc().unwrap();
    let stopper = {
        let (mine, other) = (mine.clone(), other.clone());
        thread::spawn(move || {
            there.wait_for("queue_stopping 0 ServerStopping");
            within(SERVED, "stopping the foreign loop's", || mine.stop()).unwrap();
            other.inflight_dec().unwrap();
        })
    };
    within(SERVED, "the stop", || other.stop()).unwrap();
    stopper.join().unwrap();
    assert_eq!(
        mine.stats().orphaned_queues + other.stats().orphaned_queues,
        0
    );
    assert_eq!(here.count("queue_stopping 0 ServerStopping"), 1);
    assert_eq!(here.count("disconnected 0"), 1);
    drop((sessions, mine, other));
    looper.finish();
    ctx.free().map_err(|(error, _)| error).unwrap();
}

// ---- polled ---------------------------------------------------------------------------------------------

#[test]
fn a_polled_context_stops_on_its_own_thread() {
    let _guard = guard("a_polled_context_stops_on_its_own_thread", 60);
    let path = socket_path("polled");
    let ctx = Context::polled().unwrap();
    let journal = Journal::new();
    let held = Held::new();
    let keep = held.clone();
    let device = Probe::new(&journal, move |_, call| match call {
        Call::Kick(vq) => {
            keep.pop_all(vq);
            Some(Kick::Done)
        }
        Call::QueueStopping(..) => {
            keep.reply_to_all();
            None
        }
        _ => None,
    });
    let server = Server::builder()
        .drain_timeout(Some(DRAIN))
        .build(device)
        .unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let driver = {
        let (ready, held) = (ready.clone(), held.clone());
        thread::spawn(move || {
            let mut session = Session::builder().connect(&path);
            submit(&mut session, 0, 5);
            held.wait_for(5);
            ready.store(true, Ordering::Release);
            session.queues[0]
                .wait_used_all(5, Deadline::secs(10))
                .unwrap();
            session.fe().wait_closed().unwrap();
        })
    };
    let start = Instant::now();
    while !ready.load(Ordering::Acquire) {
        assert!(start.elapsed() < SOON, "nothing is held");
        ctx.poll().unwrap();
        thread::yield_now();
    }
    within(SERVED, "the stop", || server.stop()).unwrap();
    driver.join().unwrap();
    assert_eq!(server.stats().orphaned_queues, 0);
    let main = thread::current().id();
    assert!(journal.entries().iter().all(|entry| entry.thread == main));
    assert_eq!(journal.count("disconnected 0"), 1);
    drop(server);
    ctx.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn a_server_without_context_stops_on_any_thread() {
    let _guard = guard("a_server_without_context_stops_on_any_thread", 30);
    let path = socket_path("detached");
    let journal = Journal::new();
    let server = Server::builder()
        .drain_timeout(None)
        .build(Probe::echo(&journal))
        .unwrap();
    server.start(Address::Listen(path.clone()), None).unwrap();
    let session = Session::builder().connect(&path);
    let second = Frontend::connect(&path).unwrap();
    within(SERVED, "the stop", || server.stop()).unwrap();
    session.fe().wait_closed().unwrap();
    second.wait_closed().unwrap();
    assert!(journal.entries().is_empty());
}

//! Calls that other threads make at the same time: each is whole, whichever comes first.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use vu_server::{Address, Context, Server};

use crate::sim::echo::round_trip;
use crate::sim::{Frontend, Session};
use crate::stop::*;

/// Long enough to notice what comes too early; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(200);

#[test]
fn a_stop_while_detached_waits_for_the_callback_that_still_runs() {
    let _guard = guard("a_stop_while_detached_waits_for_the_callback", 60);
    let journal = Journal::new();
    let (open, gate) = mpsc::channel::<()>();
    let (gate, left) = (Mutex::new(gate), Arc::new(AtomicBool::new(false)));
    let leaves = left.clone();
    let device = Probe::new(&journal, move |name, _| {
        if name == "connected" {
            lock(&gate).recv_timeout(SOON).unwrap();
            leaves.store(true, Ordering::SeqCst);
        }
        None
    });
    let server = Arc::new(Server::builder().build(device).unwrap());
    let (looper, path) = (Looper::new(), socket_path("race"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let _frontend = Frontend::connect(&path).unwrap();
    journal.wait_for("connected");
    server.request_detach().unwrap();
    let (stopped, is_stopped) = mpsc::channel();
    let stopper = {
        let (server, left) = (server.clone(), left.clone());
        thread::spawn(move || {
            server.stop().unwrap();
            stopped.send(left.load(Ordering::SeqCst)).unwrap();
        })
    };
    assert!(
        is_stopped.recv_timeout(EARLY).is_err(),
        "stopped inside a callback"
    );
    open.send(()).unwrap();
    assert!(is_stopped.recv_timeout(SOON).unwrap());
    stopper.join().unwrap();
    drop(server);
    looper.finish();
}

#[test]
fn a_server_is_not_freed_while_a_loop_tells_that_it_is_stopped() {
    let _guard = guard("a_server_is_not_freed_while_a_loop_tells", 60);
    let journal = Journal::new();
    let own = journal.clone();
    let device = Probe::new(&journal, move |name, _| {
        if name == "stopped" {
            // The server is freed in the middle of it.
            thread::sleep(EARLY);
            own.note("left stopped");
        }
        None
    });
    let server = Server::builder().build(device).unwrap();
    let (looper, path) = (Looper::new(), socket_path("race"));
    server
        .start(Address::Listen(path), Some(&looper.ctx))
        .unwrap();
    server.request_stop().unwrap();
    journal.wait_for("stopped");
    server.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(journal.events(), ["stopped", "left stopped", "destroy"]);
    looper.finish();
}

/// Also the context that has told of the end of the connection has let go.
#[test]
fn when_a_stop_returns_nobody_holds_the_server() {
    let _guard = guard("when_a_stop_returns_nobody_holds_the_server", 60);
    let looper = Looper::new();
    let server = Server::builder()
        .build(Probe::echo(&Journal::new()))
        .unwrap();
    for round in 0..3000 {
        let path = socket_path("let_go");
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let fe = Frontend::connect(&path).unwrap();
        fe.get_features().unwrap();
        // The stop comes while the end of the connection is told.
        drop(fe);
        for _ in 0..round % 300 {
            std::hint::spin_loop();
        }
        server.stop().unwrap();
        assert!(
            server.is_quiesced() && !server.has_inflight(),
            "round {round}"
        );
    }
    looper.finish();
}

/// Without anybody's order: a stop, and a start as soon as the server is stopped.
#[test]
fn a_stop_is_not_held_up_by_the_next_start() {
    let _guard = guard("a_stop_is_not_held_up_by_the_next_start", 60);
    let server = Arc::new(
        Server::builder()
            .build(Probe::echo(&Journal::new()))
            .unwrap(),
    );
    let start = || {
        let (_, ours) = UnixStream::pair().unwrap();
        server.start(Address::ConnectedFd(ours.into()), None)
    };
    start().unwrap();
    for round in 0..500 {
        let (stopped, is_stopped) = mpsc::channel();
        let stopping = server.clone();
        let stopper = thread::spawn(move || {
            stopping.stop().unwrap();
            stopped.send(()).unwrap();
        });
        while !server.is_stopped() {
            std::hint::spin_loop();
        }
        start().unwrap();
        assert!(
            is_stopped.recv_timeout(SOON).is_ok(),
            "round {round}: the stop waits for the next run"
        );
        stopper.join().unwrap();
    }
    server.stop().unwrap();
}

#[test]
fn of_two_that_attach_one_is_first() {
    let _guard = guard("of_two_that_attach_one_is_first", 60);
    let server = Server::builder()
        .queues(64)
        .build(Probe::echo(&Journal::new()))
        .unwrap();
    let (_front_end, ours) = UnixStream::pair().unwrap();
    server
        .start(Address::ConnectedFd(ours.into()), None)
        .unwrap();
    let contexts = [Context::epoll().unwrap(), Context::epoll().unwrap()];
    let together = Barrier::new(2);
    for round in 0..500 {
        let attached: usize = thread::scope(|scope| {
            let attach = |ctx| {
                let (server, together) = (&server, &together);
                scope.spawn(move || {
                    together.wait();
                    usize::from(server.attach(ctx).is_ok())
                })
            };
            let threads = contexts.each_ref().map(attach);
            threads.map(|thread| thread.join().unwrap()).iter().sum()
        });
        assert_eq!(attached, 1, "round {round}");
        server.request_detach().unwrap();
    }
    server.stop().unwrap();
    for ctx in contexts {
        ctx.free().map_err(|(error, _)| error).unwrap();
    }
}

#[test]
fn an_attach_that_meets_a_stop_leaves_nothing_attached() {
    let _guard = guard("an_attach_that_meets_a_stop", 60);
    let server = Server::builder()
        .queues(16)
        .build(Probe::echo(&Journal::new()))
        .unwrap();
    for round in 0..500 {
        let ctx = Context::epoll().unwrap();
        let (_front_end, ours) = UnixStream::pair().unwrap();
        server
            .start(Address::ConnectedFd(ours.into()), None)
            .unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                while server.attach(&ctx).is_ok() {
                    // The stop that comes in between refuses one of the two.
                    let _ = server.attach_queue(round % 16, Some(&ctx));
                    let _ = server.request_detach();
                }
            });
            server.stop().unwrap();
        });
        assert!(server.is_stopped());
        ctx.free()
            .map_err(|(error, _)| format!("round {round}: {error}"))
            .unwrap();
    }
}

/// A thread is not the owner of what one owned whose place in memory it has.
#[test]
fn a_thread_inherits_nothing_from_one_that_has_ended() {
    let _guard = guard("a_thread_inherits_nothing", 60);
    // SAFETY: it has no preconditions.
    let identity = || unsafe { libc::pthread_self() } as usize;
    let journal = Journal::new();
    let server = Server::builder().build(Probe::echo(&journal)).unwrap();
    let path = socket_path("inherit");
    let ctx = Arc::new(Context::epoll().unwrap());
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let mut session = Session::builder().connect(&path);
    let dead = thread::scope(|scope| {
        scope
            .spawn(|| {
                ctx.adopt().unwrap();
                while journal.count("queue_started 0") == 0 {
                    ctx.dispatch(Some(Duration::from_millis(50))).unwrap();
                }
                identity()
            })
            .join()
            .unwrap()
    });
    let heir = |_| {
        thread::scope(|scope| {
            let heir = scope.spawn(|| {
                if identity() != dead {
                    return false;
                }
                assert_errno(ctx.flush(), libc::EXDEV);
                assert_errno(server.detach(), libc::EBUSY);
                assert!(!server.is_quiesced());
                ctx.adopt().unwrap();
                ctx.flush().unwrap();
                server.detach().unwrap();
                server.attach(&ctx).unwrap();
                true
            });
            heir.join().unwrap()
        })
    };
    assert!(
        (0..1000).any(heir),
        "no thread got the identity of the dead"
    );
    ctx.adopt().unwrap();
    let looper = thread::spawn({
        let ctx = ctx.clone();
        move || ctx.run().unwrap()
    });
    round_trip(&mut session.queues[0], b"served by the next owner");
    ctx.quit();
    looper.join().unwrap();
    ctx.adopt().unwrap();
    server.stop().unwrap();
}

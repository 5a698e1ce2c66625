//! Every row of the table of states: what each call does in each state.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vu_server::{Address, Context, Device, Kick, Server, Virtqueue};

use crate::sim::echo::{EchoRequest, round_trip};
use crate::sim::{Deadline, Session, eventually};
use crate::stop::*;

/// What the calls answer in a state that they do not change.
struct Row {
    start: i32,
    attach: i32,
    detach: i32,
    request_detach: i32,
    attach_queue: i32,
    no_such_queue: i32,
    free: i32,
    stopped: bool,
}

const IDLE: Row = Row {
    start: 0,
    attach: libc::ESHUTDOWN,
    detach: libc::ESHUTDOWN,
    request_detach: libc::ESHUTDOWN,
    attach_queue: libc::ESHUTDOWN,
    no_such_queue: libc::ESHUTDOWN,
    free: 0,
    stopped: true,
};

const RUNNING: Row = Row {
    start: libc::EBUSY,
    // To a second context; the detached case is a test of its own.
    attach: libc::EBUSY,
    detach: 0,
    request_detach: 0,
    attach_queue: 0,
    no_such_queue: libc::EINVAL,
    free: libc::EBUSY,
    stopped: false,
};

const STOPPING: Row = Row {
    start: libc::EBUSY,
    attach: libc::ESHUTDOWN,
    detach: libc::ESHUTDOWN,
    request_detach: libc::ESHUTDOWN,
    attach_queue: libc::ESHUTDOWN,
    no_such_queue: libc::ESHUTDOWN,
    free: libc::EBUSY,
    stopped: false,
};

fn errno<T>(result: vu_server::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.errno())
}

/// Makes every call that must be refused, and those that leave the state as it is.
#[track_caller]
fn check(server: Server, row: &Row, ctx: &vu_server::Context) -> Server {
    assert_eq!(server.is_stopped(), row.stopped);
    if row.start != 0 {
        let path = socket_path("table");
        assert_eq!(
            errno(server.start(Address::Listen(path.clone()), Some(ctx))),
            row.start
        );
        assert!(!path.exists(), "a refused start has bound its address");
    }
    for (got, want) in [
        (errno(server.attach(ctx)), row.attach),
        (errno(server.attach_queue(0, Some(ctx))), row.attach_queue),
    ] {
        assert_eq!(got, want);
    }
    for asks in [false, true] {
        let (result, want) = if asks {
            (server.request_detach(), row.request_detach)
        } else {
            (server.detach(), row.detach)
        };
        assert_eq!(errno(result), want);
        if want == 0 {
            server.attach(ctx).unwrap();
        }
    }
    assert_eq!(errno(server.attach_queue(9, Some(ctx))), row.no_such_queue);
    if row.free == 0 {
        return server;
    }
    let (error, server) = server.free().unwrap_err();
    assert_eq!(error.errno(), row.free);
    assert_eq!(server.is_stopped(), row.stopped);
    server
}

#[test]
fn the_table_of_states() {
    let _guard = guard("the_table_of_states", 30);
    let journal = Journal::new();
    let (device, held) = Probe::holding(&journal);
    let looper = Looper::new();
    let ctx = vu_server::Context::epoll().unwrap();
    let server = Server::builder().drain_timeout(None).build(device).unwrap();

    // New.
    let server = check(server, &IDLE, &ctx);
    server.request_stop().unwrap();
    server.stop().unwrap();
    let path = socket_path("states");
    for round in 1..=2 {
        // Running, in a context of this thread's.
        server
            .start(Address::Listen(path.clone()), Some(&ctx))
            .unwrap();
        assert!(path.exists());
        server.detach().unwrap();
        server.attach(&looper.ctx).unwrap();
        let mut session = Session::builder().connect(&path);
        let request = EchoRequest::new(&session.memory, 8, 8);
        session.queues[0].submit(&request.segs()).unwrap();
        held.wait_for(1);
        assert_errno(
            server.start(Address::Listen(socket_path("second")), None),
            libc::EBUSY,
        );
        assert_errno(server.attach(&ctx), libc::EBUSY);
        assert_errno(server.detach(), libc::EBUSY);

        // Stopping, as long as the element is in flight.
        server.request_stop().unwrap();
        journal.wait_for_count("queue_stopping 0 ServerStopping", round);
        server.request_stop().unwrap();
        held.wait_for(1);
        for what in [
            errno(server.attach(&ctx)),
            errno(server.detach()),
            errno(server.request_detach()),
            errno(server.attach_queue(0, None)),
        ] {
            assert_eq!(what, STOPPING.attach);
        }
        assert_errno(
            server.start(Address::Listen(path.clone()), None),
            STOPPING.start,
        );
        assert!(!server.is_stopped());

        // Stopped: told once, though asked twice and joined.
        held.reply_to_all();
        server.stop().unwrap();
        journal.wait_for_count("stopped", round);
        assert!(server.is_stopped() && !path.exists());
        server.request_stop().unwrap();
        server.stop().unwrap();
        assert_eq!(journal.count("stopped"), round);
        // The loop's thread may still be on its way out of `stopped`, and a detach would say so.
        eventually("quiesced", Deadline::secs(5), true, || server.is_quiesced());
    }
    let server = check(server, &IDLE, &ctx);
    server.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(journal.count("destroy"), 1);
    ctx.free().map_err(|(error, _)| error).unwrap();
    looper.finish();
}

#[test]
fn what_a_running_server_refuses() {
    let _guard = guard("what_a_running_server_refuses", 30);
    let journal = Journal::new();
    let ctx = vu_server::Context::epoll().unwrap();
    let server = Server::builder().build(Probe::echo(&journal)).unwrap();
    let path = socket_path("running");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let server = check(server, &RUNNING, &ctx);
    assert!(path.exists());
    server.stop().unwrap();
    drop(server);
    ctx.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn what_a_stopping_server_refuses() {
    let _guard = guard("what_a_stopping_server_refuses", 30);
    let journal = Journal::new();
    let looper = Looper::new();
    let ctx = vu_server::Context::epoll().unwrap();
    let server = Server::builder()
        .drain_timeout(None)
        .build(Probe::echo(&journal))
        .unwrap();
    let path = socket_path("stopping");
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let session = Session::builder().connect(&path);
    journal.wait_for("queue_started 0");
    server.inflight_inc().unwrap();
    server.request_stop().unwrap();
    journal.wait_for("queue_stopping 0 ServerStopping");
    let server = check(server, &STOPPING, &ctx);
    server.inflight_dec().unwrap();
    server.stop().unwrap();
    let server = check(server, &IDLE, &ctx);
    session.fe().wait_closed().unwrap();
    drop(server);
    looper.finish();
    ctx.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn restart_at_the_same_and_at_another_address() {
    let _guard = guard("restart_at_the_same_and_at_another_address", 60);
    let journal = Journal::new();
    let looper = Looper::new();
    let other = Looper::new();
    let server = Server::builder().build(Probe::echo(&journal)).unwrap();
    let paths = [socket_path("restart"), socket_path("restart")];
    for round in 0..12 {
        let path = &paths[round / 2 % 2];
        let home = if round % 3 == 0 { &other } else { &looper };
        server
            .start(Address::Listen(path.clone()), Some(&home.ctx))
            .unwrap();
        let mut session = Session::builder().connect(path);
        round_trip(&mut session.queues[0], b"again");
        // Told, and told inside a callback, and blocking: each of the ways down, whoever is connected.
        if round % 2 == 0 {
            server.request_stop().unwrap();
            journal.wait_for_count("stopped", round / 2 + 1);
        } else {
            server.stop().unwrap();
        }
        assert!(server.is_stopped() && !path.exists());
        session.fe().wait_closed().unwrap();
    }
    assert_eq!(journal.count("connected"), 12);
    assert_eq!(journal.count("disconnected 0"), 12);
    drop(server);
    assert_eq!(journal.count("destroy"), 1);
    looper.finish();
    other.finish();
}

/// A start that comes as soon as the server says that it is stopped, while `stopped` may still be delivered,
/// attaches to its context for good.
#[test]
fn a_restart_may_come_while_stopped_is_delivered() {
    let _guard = guard("a_restart_may_come_while_stopped_is_delivered", 60);
    let journal = Journal::new();
    let looper = Looper::new();
    let server = Server::builder().build(Probe::echo(&journal)).unwrap();
    let path = socket_path("at-once");
    for _ in 0..200 {
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let mut session = Session::builder().connect(&path);
        round_trip(&mut session.queues[0], b"attached");
        server.request_stop().unwrap();
        while !server.is_stopped() {
            std::thread::yield_now();
        }
    }
    drop(server);
    looper.finish();
}

#[test]
fn a_failed_start_leaves_the_server_as_it_was() {
    let _guard = guard("a_failed_start_leaves_the_server_as_it_was", 30);
    let journal = Journal::new();
    let ctx = vu_server::Context::epoll().unwrap();
    let server = Server::builder().build(Probe::echo(&journal)).unwrap();
    let nowhere = std::path::PathBuf::from("/nonexistent/dir/socket");
    let error = server
        .start(Address::Listen(nowhere.clone()), Some(&ctx))
        .unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT);
    assert!(
        error.message().contains("/nonexistent/dir/socket"),
        "{error}"
    );
    assert!(server.is_stopped());
    let path = socket_path("then");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    server.stop().unwrap();
    assert_errno(server.start(Address::Listen(nowhere), None), libc::ENOENT);
    assert!(server.is_stopped());
    drop(server);
    ctx.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn destroy_is_called_exactly_once() {
    let _guard = guard("destroy_is_called_exactly_once", 30);
    let built = || {
        let journal = Journal::new();
        let server = Server::builder().build(Probe::echo(&journal)).unwrap();
        (journal, server)
    };
    // Never started, freed and dropped.
    let (journal, server) = built();
    server.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(journal.events(), ["destroy"]);
    let (journal, server) = built();
    drop(server);
    assert_eq!(journal.events(), ["destroy"]);
    assert_eq!(Arc::strong_count(&journal), 1);
    // Dropped while it runs, with a front-end.
    let looper = Looper::new();
    let (journal, server) = built();
    let path = socket_path("dropped");
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut session = Session::builder().connect(&path);
    round_trip(&mut session.queues[0], b"up");
    drop(server);
    session.fe().wait_closed().unwrap();
    assert!(!path.exists());
    let events = journal.events();
    assert_eq!(events.last_chunk().unwrap(), &["disconnected 0", "destroy"]);
    assert_eq!(journal.count("destroy"), 1);
    let here = std::thread::current().id();
    assert_eq!(
        journal.entries().last().unwrap().thread,
        here,
        "on the freeing thread"
    );
    looper.finish();
}

/// However quickly the end follows on `disconnected`: inside `stopped` the server is down, and it comes once.
#[test]
fn inside_stopped_the_server_is_stopped() {
    let _guard = guard("inside_stopped_the_server_is_stopped", 60);
    const ROUNDS: usize = 200;
    let journal = Journal::new();
    let (handle, heard) = (Handle::default(), journal.clone());
    let own = handle.clone();
    let device = Probe::new(&journal, move |name, _| {
        if name == "stopped" {
            let down = own.get().is_some_and(|server| server.is_stopped());
            heard.note(format_args!("down {down}"));
        }
        None
    });
    let server = handle.build(Server::builder(), device);
    let (looper, path) = (Looper::new(), socket_path("down"));
    for round in 1..=ROUNDS {
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let mut session = Session::builder().connect(&path);
        round_trip(&mut session.queues[0], b"up");
        server.request_stop().unwrap();
        journal.wait_for_count("down true", round);
    }
    assert_eq!(journal.count("stopped"), ROUNDS);
    drop(server);
    looper.finish();
}

/// Holds its own server, and lets go of it when a front-end comes.
struct Suicidal {
    server: Arc<Mutex<Option<Server>>>,
    destroyed: Arc<AtomicU32>,
}

impl Device for Suicidal {
    fn kick(&self, _: &mut Virtqueue<'_>) -> Kick {
        Kick::Done
    }

    fn connected(&self) {
        let server = self.server.lock().unwrap().take();
        drop(server);
    }

    fn destroy(&self) {
        self.destroyed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running server that is dropped inside a callback cannot stop there; it ends on its own.
#[test]
fn dropped_inside_a_callback() {
    let _guard = guard("dropped_inside_a_callback", 60);
    let path = std::env::temp_dir().join(format!("vu-dropped-{}.sock", std::process::id()));
    let (place, destroyed) = (Arc::new(Mutex::new(None)), Arc::new(AtomicU32::new(0)));
    let device = Suicidal {
        server: place.clone(),
        destroyed: destroyed.clone(),
    };
    let ctx = Context::epoll().unwrap();
    let server = Server::builder().build(device).unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    *place.lock().unwrap() = Some(server);
    let front_end = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let deadline = Deadline::secs(30);
    while destroyed.load(Ordering::Relaxed) == 0 {
        assert!(!deadline.expired(), "never destroyed");
        ctx.dispatch(Some(std::time::Duration::from_millis(20)))
            .unwrap();
    }
    assert_eq!(destroyed.load(Ordering::Relaxed), 1);
    assert!(!path.exists());
    drop(front_end);
    ctx.free().map_err(|(error, _)| error).unwrap();
}

/// For reports about a server that does not get on.
#[test]
fn the_debug_form_says_who_has_what() {
    let server = Server::builder()
        .name("told")
        .queues(2)
        .build(Probe::new(&Journal::new(), |_, _| None))
        .unwrap();
    let idle = "Internal context 0 target 0";
    assert_eq!(
        format!("{server:?}"),
        format!("Server(told, New, events {idle}, queue 0 {idle}, queue 1 {idle})")
    );
}

//! One front-end after the other, what the device hears of them, and that nothing is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vu_server::{Address, Context, Device, Kick, Server, Virtqueue};

use crate::sim::echo::{EchoRequest, round_trip};
use crate::sim::wire::req;
use crate::sim::{Deadline, Frontend, Session, eventually, process};
use crate::stop::*;

#[test]
fn a_second_front_end_is_served_after_complete_clean_up() {
    let _guard = guard("a_second_front_end_is_served_after_complete_clean_up", 30);
    let journal = Journal::new();
    let device = Probe::echo(&journal);
    let held = device.held.clone();
    let server = Server::builder().drain_timeout(None).build(device).unwrap();
    let (looper, path) = (Looper::new(), socket_path("second"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut first = Session::builder().connect(&path);
    let mut request = EchoRequest::new(&first.memory, 8, 8);
    request.send(b"hold\0\0\0\0");
    first.queues[0].submit(&request.segs()).unwrap();
    held.wait_for(1);

    // The backlog takes them; nobody answers.
    let waiting: Vec<_> = (0..3).map(|_| Frontend::connect(&path).unwrap()).collect();
    for frontend in &waiting {
        frontend.send(req::GET_FEATURES, 0, &[], &[]).unwrap();
    }
    round_trip(&mut first.queues[0], b"still the first's");
    first.abort();
    journal.wait_for("queue_stopping 0 Disconnected");
    // The first one's request is in flight: it is not cleaned up.
    for frontend in &waiting {
        assert!(!frontend.answered_within(Duration::from_millis(20)).unwrap());
    }
    assert_eq!(
        (journal.count("connected"), journal.count("disconnected 0")),
        (1, 0)
    );
    held.reply_to_all();
    for (served, frontend) in waiting.into_iter().enumerate() {
        frontend.recv_reply(req::GET_FEATURES).unwrap();
        // By now the one before is gone in every respect. The loop need not have heard of this one yet, and
        // hears nothing at all of one that goes before it has.
        let open = journal.count("connected") - journal.count("disconnected 0");
        assert!(open <= 1, "{:?}", journal.events());
        assert!(journal.count("disconnected 0") >= 1);
        assert_eq!(server.stats().connections, served as u64 + 2);
        assert_eq!(server.stats().memory_regions, 0);
        drop(frontend);
    }
    server.stop().unwrap();
    let events = journal.events();
    assert_eq!(
        events[..6],
        [
            "connected",
            "features_acked",
            "queue_started 0",
            "queue_stopping 0 Disconnected",
            "queue_stopped 0",
            "disconnected 0"
        ]
    );
    // A connection that comes and goes before the loop has heard of it is told in both halves or not at all.
    let rest = &events[6..];
    assert!(
        rest.chunks(2)
            .all(|pair| pair == ["connected", "disconnected 0"]),
        "{rest:?}"
    );
    drop(server);
    looper.finish();
}

#[test]
fn callbacks_come_in_order_on_the_thread_of_their_context() {
    let _guard = guard("callbacks_come_in_order_on_the_thread_of_their_context", 30);
    let journal = Journal::new();
    let (home, other) = (Looper::new(), Looper::new());
    let server = Server::builder()
        .queues(2)
        .config_space([0; 8], [1; 8])
        .build(Probe::echo(&journal))
        .unwrap();
    let path = socket_path("order");
    server
        .start(Address::Listen(path.clone()), Some(&home.ctx))
        .unwrap();
    server.attach_queue(1, Some(&other.ctx)).unwrap();

    let mut session = Session::builder().queues(2).not_started().connect(&path);
    session.fe().set_config(0, 0, &[1]).unwrap();
    session.start_queue(0);
    round_trip(&mut session.queues[0], b"zero");
    session.start_queue(1);
    round_trip(&mut session.queues[1], b"one");
    session.fe().set_vring_enable(1, false).unwrap();
    session.fe().set_vring_enable(1, true).unwrap();
    round_trip(&mut session.queues[1], b"one");
    session.stop_queue(0);
    journal.wait_for("queue_stopped 0");
    session.start_queue(0);
    round_trip(&mut session.queues[0], b"zero");
    session.fe().reset_device().unwrap();
    journal.wait_for("reset");
    drop(session);
    journal.wait_for("disconnected 0");
    server.request_stop().unwrap();
    journal.wait_for("stopped");
    server.stop().unwrap();
    drop(server);

    // Queue 1 lives on another thread, so each thread's order is a list of its own.
    let heard = |thread| -> Vec<String> {
        let entries = journal.entries();
        let mine = entries.iter().filter(|entry| entry.thread == thread);
        mine.map(|entry| entry.what.clone())
            .filter(|what| !what.starts_with("kick"))
            .collect()
    };
    let mut at_home = heard(home.thread_id());
    // These two have one answer between them, in the order in which the front-end took its rings back.
    at_home.retain(|what| what != "queue_stopped 1");
    assert_eq!(
        at_home,
        [
            "connected",
            "features_acked",
            "config_written 0 1",
            "queue_started 0",
            "queue_stopping 0 VringBase",
            "queue_stopped 0",
            "queue_started 0",
            "queue_stopping 0 Reset",
            "queue_stopped 0",
            "reset",
            "disconnected 0",
            "stopped"
        ]
    );
    assert_eq!(journal.count("queue_stopped 1"), 1);
    assert_eq!(
        heard(other.thread_id()),
        [
            "queue_started 1",
            "queue_stopping 1 Disabled",
            "queue_started 1",
            "queue_stopping 1 Reset"
        ]
    );
    let kicks = journal.entries();
    for kick in kicks.iter().filter(|entry| entry.what.starts_with("kick")) {
        let owner = if kick.what == "kick 0" { &home } else { &other };
        assert_eq!(kick.thread, owner.thread_id(), "{}", kick.what);
    }
    assert_eq!(
        journal.entries().last().unwrap().thread,
        std::thread::current().id()
    );
    home.finish();
    other.finish();
}

/// What the process holds that must not grow.
#[derive(Debug, PartialEq)]
struct Holdings {
    fds: usize,
    guest_mappings: usize,
    internal_threads: usize,
}

impl Holdings {
    fn within(&self, other: &Holdings) -> bool {
        self.fds <= other.fds
            && self.guest_mappings <= other.guest_mappings
            && self.internal_threads <= other.internal_threads
    }
}

fn holdings() -> Holdings {
    Holdings {
        fds: process::open_fds(),
        guest_mappings: process::mappings("sim-guest"),
        internal_threads: process::threads_named("vu-flat").len(),
    }
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let _guard = guard_alone("a_thousand_connections_leave_nothing_behind", 120);
    const ROUNDS: u32 = 1000;
    const WARM: u32 = 20;
    let journal = Journal::new();
    let before = holdings();
    let server = Server::builder()
        .name("flat")
        .queues(2)
        .build(Probe::echo(&journal))
        .unwrap();
    let (looper, path) = (Looper::new(), socket_path("thousand"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut warm = None;
    let mut lines = 0;
    for round in 0..ROUNDS {
        let mut session = Session::builder().queues(2).connect(&path);
        round_trip(
            &mut session.queues[(round % 2) as usize],
            &round.to_ne_bytes(),
        );
        // By the book, in the middle of everything, and after half a set-up.
        match round % 3 {
            0 => session.disconnect(),
            1 => session.abort(),
            _ => {
                session.abort();
                drop(Session::builder().not_started().connect(&path));
            }
        }
        drop(session);
        if round + 1 == WARM || round + 1 == ROUNDS {
            eventually("connections ended", Deadline::secs(10), true, || {
                journal.count("connected") == journal.count("disconnected 0")
                    && server.stats().memory_regions == 0
            });
        }
        if round + 1 == WARM {
            warm = Some(holdings());
            lines = process::mappings("");
        }
    }
    // A connection's own descriptor is closed just after `disconnected` was heard, so the first count may have
    // one that the last has not.
    let warm = warm.unwrap();
    eventually("holdings within the first", Deadline::secs(5), true, || {
        holdings().within(&warm)
    });
    let grown = process::mappings("").saturating_sub(lines);
    // Stacks and heaps of the test's own threads come and go.
    assert!(
        grown < 30,
        "{grown} mappings more after {ROUNDS} connections"
    );
    server.stop().unwrap();
    drop(server);
    looper.finish();
    eventually("holdings at the end", Deadline::secs(5), before, holdings);
}

#[test]
fn a_hundred_lives_leave_nothing_behind() {
    let _guard = guard_alone("a_hundred_lives_leave_nothing_behind", 120);
    let live = |round: u32| {
        let journal = Journal::new();
        let server = Server::builder()
            .name("flat")
            .queues(2)
            .build(Probe::echo(&journal))
            .unwrap();
        let (looper, path) = (Looper::new(), socket_path("lives"));
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let mut session = Session::builder().queues(2).connect(&path);
        round_trip(&mut session.queues[1], &round.to_ne_bytes());
        match round % 3 {
            0 => server.stop().unwrap(),
            1 => {
                server.request_stop().unwrap();
                journal.wait_for("stopped");
            }
            _ => {}
        }
        drop(server);
        assert_eq!(journal.count("destroy"), 1);
        looper.finish();
        assert_eq!(
            std::sync::Arc::strong_count(&journal),
            1,
            "the server's memory stays"
        );
    };
    live(0);
    let before = holdings();
    for round in 0..100 {
        live(round);
    }
    eventually("holdings", Deadline::secs(5), before, holdings);
}

/// Counts the two ends of each connection.
#[derive(Default)]
struct Ends {
    connected: AtomicU64,
    disconnected: AtomicU64,
}

struct Counting(Arc<Ends>);

impl Device for Counting {
    fn kick(&self, _: &mut Virtqueue<'_>) -> Kick {
        Kick::Done
    }

    fn connected(&self) {
        self.0.connected.fetch_add(1, Ordering::Relaxed);
    }

    fn disconnected(&self, _: i32, _: &str) {
        self.0.disconnected.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that is gone before anybody has looked is heard of all the same: a program may live on it.
#[test]
fn a_connection_of_no_length_is_heard_of() {
    let _guard = guard("a_connection_of_no_length", 60);
    let ends = Arc::new(Ends::default());
    let ctx = Context::epoll().unwrap();
    let server = Server::builder().build(Counting(ends.clone())).unwrap();
    for round in 1..=200 {
        let (front_end, back_end) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(front_end);
        server
            .start(Address::ConnectedFd(back_end.into()), Some(&ctx))
            .unwrap();
        let deadline = Deadline::secs(20);
        while ends.disconnected.load(Ordering::Relaxed) < round {
            assert!(!deadline.expired(), "round {round}: nobody heard of it");
            ctx.dispatch(Some(Duration::from_millis(20))).unwrap();
        }
        assert_eq!(ends.connected.load(Ordering::Relaxed), round);
        server.stop().unwrap();
    }
}

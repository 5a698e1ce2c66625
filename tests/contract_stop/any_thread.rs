//! Stopping from other threads, and whatever the peer is doing.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use vu_server::{Address, Element, Kick, Server};

use crate::sim::echo::{EchoRequest, round_trip};
use crate::sim::wire::{self, req};
use crate::sim::{Deadline, Frontend, Session, Used};
use crate::stop::*;

/// Much less than any time-out that could end a hanging stop.
const SERVED: Duration = Duration::from_secs(3);

struct Running {
    server: Arc<Server>,
    journal: Arc<Journal>,
    looper: Looper,
    path: std::path::PathBuf,
}

fn run(device: Probe) -> Running {
    let journal = device.journal.clone();
    let server = Server::builder()
        .queues(2)
        .drain_timeout(Some(Duration::from_secs(30)));
    let server = Arc::new(server.build(device).unwrap());
    let (looper, path) = (Looper::new(), socket_path("any"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    Running {
        server,
        journal,
        looper,
        path,
    }
}

impl Running {
    #[track_caller]
    fn stop(&self) {
        within(SERVED, "the stop", || self.server.stop()).unwrap();
        assert!(self.server.is_stopped());
        assert!(!self.path.exists(), "the socket file is left");
    }

    fn end(self) {
        drop(self.server);
        assert_eq!(self.journal.count("destroy"), 1);
        self.looper.finish();
    }
}

#[test]
fn from_a_third_thread_and_again() {
    let _guard = guard("from_a_third_thread_and_again", 30);
    let running = run(Probe::echo(&Journal::new()));
    let mut session = Session::builder().queues(2).connect(&running.path);
    round_trip(&mut session.queues[1], b"up");
    running.stop();
    session.fe().wait_closed().unwrap();
    // Nothing is left to do, and that is no error.
    running.stop();
    running.server.request_stop().unwrap();
    assert_eq!(running.journal.count("disconnected 0"), 1);
    assert_eq!(
        running.journal.count("stopped"),
        0,
        "nobody asked to be told"
    );
    let home = running.looper.thread_id();
    assert!(
        running
            .journal
            .entries()
            .iter()
            .all(|entry| entry.thread == home)
    );
    running.end();
}

#[test]
fn with_no_client() {
    let _guard = guard("with_no_client", 30);
    let running = run(Probe::echo(&Journal::new()));
    running.stop();
    assert!(running.journal.entries().is_empty());
    running.end();
}

#[test]
fn a_second_stop_joins_the_first() {
    let _guard = guard("a_second_stop_joins_the_first", 30);
    let (device, held) = Probe::holding(&Journal::new());
    let running = run(device);
    let mut session = Session::builder().queues(2).connect(&running.path);
    let request = EchoRequest::new(&session.memory, 4, 4);
    session.queues[0].submit(&request.segs()).unwrap();
    held.wait_for(1);
    let returned = Arc::new(AtomicUsize::new(0));
    let (entered, entering) = mpsc::channel();
    let stoppers: Vec<_> = (0..3)
        .map(|_| {
            let (server, returned, entered) =
                (running.server.clone(), returned.clone(), entered.clone());
            thread::spawn(move || {
                entered.send(()).unwrap();
                server.stop().unwrap();
                assert!(server.is_stopped(), "a stop returned before the end");
                returned.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    for _ in 0..3 {
        entering.recv_timeout(SOON).unwrap();
    }
    running.journal.wait_for("queue_stopping 0 ServerStopping");
    // The drain waits for the element; whoever does not wait for the drain has returned by now or will in
    // the assertion above.
    assert_eq!(returned.load(Ordering::Relaxed), 0);
    assert!(!running.server.is_stopped());
    held.reply_to_all();
    for stopper in stoppers {
        stopper.join().unwrap();
    }
    session.queues[0].wait_used(Deadline::secs(10)).unwrap();
    running.end();
}

#[test]
fn while_the_peer_does_not_read_its_replies() {
    let _guard = guard("while_the_peer_does_not_read_its_replies", 30);
    let running = run(Probe::echo(&Journal::new()));
    let mut deaf = Frontend::connect(&running.path).unwrap();
    deaf.timeout = Duration::from_millis(300);
    // Until both directions are full: the server cannot write and so does not read.
    let full = loop {
        if let Err(error) = deaf.send(req::GET_FEATURES, 0, &[], &[]) {
            break error;
        }
    };
    assert!(full.is_timeout(), "{full}");
    running.stop();
    running.end();
}

#[test]
fn in_the_middle_of_a_message() {
    let _guard = guard("in_the_middle_of_a_message", 30);
    let message = wire::message(req::SET_FEATURES, wire::VERSION, &[0; 8]);
    for end in [1, 11, 12, 13, 19] {
        let running = run(Probe::echo(&Journal::new()));
        let frontend = Frontend::connect(&running.path).unwrap();
        frontend.get_features().unwrap();
        frontend.send_bytes(&message[..end], &[]).unwrap();
        frontend.wait_consumed().unwrap();
        running.stop();
        frontend.wait_closed().unwrap();
        running.end();
    }
}

#[test]
fn while_connecting_with_back_off() {
    let _guard = guard("while_connecting_with_back_off", 30);
    let looper = Looper::new();
    let server = Server::builder()
        .build(Probe::echo(&Journal::new()))
        .unwrap();
    let path = socket_path("nobody");
    server
        .start(Address::Connect(path.clone()), Some(&looper.ctx))
        .unwrap();
    // Somebody listens for a moment, so that the back-off is known to be on.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(listener.accept().unwrap());
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    within(SERVED, "the stop", || server.stop()).unwrap();
    drop(server);
    looper.finish();
}

#[test]
fn with_a_connected_descriptor() {
    let _guard = guard("with_a_connected_descriptor", 30);
    let looper = Looper::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server::builder()
        .build(Probe::echo(&Journal::new()))
        .unwrap();
    server
        .start(
            Address::ConnectedFd(OwnedFd::from(theirs)),
            Some(&looper.ctx),
        )
        .unwrap();
    let mut session = Session::builder().over(Frontend::from_fd(ours.into()));
    round_trip(&mut session.queues[0], b"pair");
    within(SERVED, "the stop", || server.stop()).unwrap();
    session.fe().wait_closed().unwrap();
    drop(server);
    looper.finish();
}

#[test]
fn a_stop_waits_for_a_get_vring_base_that_waits() {
    let _guard = guard("a_stop_waits_for_a_get_vring_base_that_waits", 30);
    let (device, held) = Probe::holding(&Journal::new());
    let running = run(device);
    let mut session = Session::builder().queues(2).connect(&running.path);
    let request = EchoRequest::new(&session.memory, 4, 4);
    session.queues[0].submit(&request.segs()).unwrap();
    held.wait_for(1);
    running.journal.wait_for("queue_started 1");
    session.fe().send_get_vring_base(0).unwrap();
    running.journal.wait_for("queue_stopping 0 VringBase");
    running.server.request_stop().unwrap();
    running.journal.wait_for("queue_stopping 1 ServerStopping");
    assert!(!running.server.is_stopped(), "an element is in flight");
    held.reply_to_all();
    running.stop();
    running.journal.wait_for("stopped");
    // It was published before the memory went.
    session.queues[0].wait_used(Deadline::secs(10)).unwrap();
    running.end();
}

/// 128 requests that another thread completes: a stop in their middle lets through what is popped, and what
/// is not popped is found by the next start. Nothing completes twice or never.
#[test]
fn in_the_middle_of_128_in_flight() {
    let _guard = guard("in_the_middle_of_128_in_flight", 60);
    const REQUESTS: usize = 128;
    let (work, works) = mpsc::channel::<Element>();
    let (go, gone) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        let mut done = 0;
        for element in works {
            if done == 10 {
                // The stop has begun by then, with the rest in flight.
                gone.recv_timeout(SOON).unwrap();
            }
            reply(element);
            done += 1;
        }
        done
    });
    let popped = Arc::new(AtomicUsize::new(0));
    let pops = popped.clone();
    let device = Probe::new(&Journal::new(), move |_, call| match call {
        Call::Kick(vq) => {
            // Not all of them: some stay in the ring.
            while pops.load(Ordering::Relaxed) != 100
                && let Ok(Some(element)) = vq.pop_one()
            {
                pops.fetch_add(1, Ordering::Relaxed);
                work.send(element).unwrap();
            }
            Some(Kick::Done)
        }
        _ => None,
    });
    let running = run(device);
    let mut session = Session::builder().queues(2).connect(&running.path);
    let mut requests = HashMap::new();
    for seed in 0..REQUESTS as u64 {
        let mut request = EchoRequest::new(&session.memory, 64, 64);
        request.prepare(seed);
        requests.insert(session.queues[0].add(&request.segs()).unwrap(), request);
    }
    session.queues[0].publish().unwrap();
    session.queues[0].kick().unwrap();
    let mut check = |used: Used| {
        requests
            .remove(&used.head)
            .expect("completed twice")
            .check(used)
    };
    session.queues[0]
        .wait_used_all(10, Deadline::secs(10))
        .unwrap()
        .into_iter()
        .for_each(&mut check);

    let stopper = {
        let server = running.server.clone();
        thread::spawn(move || within(SERVED * 2, "the stop", || server.stop()).unwrap())
    };
    running.journal.wait_for("queue_stopping 0 ServerStopping");
    assert!(!running.server.is_stopped());
    go.send(()).unwrap();
    stopper.join().unwrap();
    assert_eq!(running.server.queue_stats(0).unwrap().inflight, 0);
    let before = popped.swap(1000, Ordering::Relaxed);
    assert_eq!(
        usize::from(session.queues[0].ring.used_idx().unwrap()),
        before
    );
    session.abort();

    let address = Address::Listen(running.path.clone());
    running
        .server
        .start(address, Some(&running.looper.ctx))
        .unwrap();
    session.reconnect(&running.path);
    let rest = session.queues[0]
        .wait_used_all(REQUESTS - 10, Deadline::secs(10))
        .unwrap();
    rest.into_iter().for_each(&mut check);
    assert!(requests.is_empty());
    assert!(session.queues[0].poll_used().unwrap().is_none());
    running.stop();
    running.end();
    assert_eq!(worker.join().unwrap(), REQUESTS);
}

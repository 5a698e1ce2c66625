//! Loops that are taken away, and servers that are stopped, whatever the connection is doing.

use std::any::Any;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vu_server::{Address, Context, Server};

use super::rig::alone_guarded;
use crate::sim::echo::EchoRequest;
use crate::sim::wire::{self, req};
use crate::sim::{Deadline, Frontend, Session, process};
use crate::stop::{
    Call, Handle, Held, Journal, Looper, Probe, SOON, assert_errno, socket_path, within,
};

/// One thread that owns two contexts, and a device that asks for a detach in its first kick.
#[test]
fn case_90_the_loop_goes_and_comes_back() {
    let _alone = alone_guarded("90");
    let (journal, handle) = (Journal::new(), Handle::default());
    let (own, noted) = (handle.clone(), journal.clone());
    let device = Probe::new(&journal, move |_, call| {
        if let Call::Kick(_) = call
            && noted.count("kick 0") == 1
        {
            let server = own.get().unwrap();
            assert_errno(server.detach(), libc::EDEADLK);
            server.request_detach().unwrap();
        }
        None
    });
    let server = handle.build(Server::builder(), device);
    let contexts = [Context::epoll().unwrap(), Context::epoll().unwrap()];
    let path = socket_path("loops");
    server
        .start(Address::Listen(path.clone()), Some(&contexts[0]))
        .unwrap();
    let turn = |which: usize| {
        contexts[which]
            .dispatch(Some(Duration::from_millis(1)))
            .unwrap()
    };
    let mut s = Session::builder().connect(&path);
    let mut served = 0;
    let mut submit = |s: &mut Session| {
        served += 1;
        let mut request = EchoRequest::new(&s.memory, 16, 16);
        request.prepare(served);
        s.queues[0].submit(&request.segs()).unwrap();
        request
    };
    // During a kick: it takes effect when that returns.
    let first = submit(&mut s);
    let deadline = Deadline::after(SOON);
    while !(journal.count("kick 0") == 1 && server.is_quiesced()) {
        turn(0);
        assert!(!deadline.expired(), "{:?}", journal.events());
    }
    let mut waiting = vec![first];
    for round in 0..20 {
        // Between two messages, and with a kick that falls into the gap.
        let heard = journal.entries().len();
        waiting.push(submit(&mut s));
        s.fe().get_features().unwrap();
        for which in [0, 1] {
            turn(which);
        }
        assert_eq!(
            journal.entries().len(),
            heard,
            "a callback after the detach: {:?}",
            journal.events()
        );
        // Twice in a row is once.
        server.detach().unwrap();
        let to = round % 2;
        server.attach(&contexts[to]).unwrap();
        assert_errno(server.attach(&contexts[1 - to]), libc::EBUSY);
        s.fe().get_features().unwrap();
        let deadline = Deadline::after(SOON);
        while !waiting.is_empty() {
            turn(to);
            if let Some(used) = s.queues[0].poll_used().unwrap() {
                waiting.remove(0).check(used);
            }
            assert!(!deadline.expired(), "round {round}: a kick was lost");
        }
        server.detach().unwrap();
        assert!(server.is_quiesced());
    }
    server.stop().unwrap();
}

type Peer = Box<dyn Any>;
/// Connects and gets into a situation; what must stay for it.
type Situation = fn(&Path, &Held) -> Peer;

fn nobody(_: &Path, _: &Held) -> Peer {
    Box::new(())
}

fn in_accept(path: &Path, _: &Held) -> Peer {
    let peers: Vec<_> = (0..3).map(|_| UnixStream::connect(path).unwrap()).collect();
    Box::new(peers)
}

fn between_messages(path: &Path, _: &Held) -> Peer {
    let frontend = Frontend::connect(path).unwrap();
    frontend.get_features().unwrap();
    Box::new(frontend)
}

fn mid_message(path: &Path, _: &Held) -> Peer {
    let frontend = Frontend::connect(path).unwrap();
    let message = wire::message(req::SET_FEATURES, wire::VERSION, &[0; 8]);
    frontend.send_bytes(&message[..14], &[]).unwrap();
    frontend.wait_consumed().unwrap();
    Box::new(frontend)
}

/// It does not read, so that not even the reply that is due can be sent.
fn deaf(path: &Path, _: &Held) -> Peer {
    let mut frontend = Frontend::connect(path).unwrap();
    frontend.timeout = Duration::from_millis(200);
    while frontend.send(req::GET_FEATURES, 0, &[], &[]).is_ok() {}
    Box::new(frontend)
}

fn running(path: &Path, _: &Held) -> Peer {
    let mut s = Session::builder().connect(path);
    crate::sim::echo::round_trip(&mut s.queues[0], b"running");
    Box::new(s)
}

/// With an element that the device keeps until long after the drain time-out.
fn hung(path: &Path, held: &Held) -> Peer {
    let mut s = Session::builder().connect(path);
    let mut request = EchoRequest::new(&s.memory, 4, 4);
    request.send(b"hold");
    s.queues[0].submit(&request.segs()).unwrap();
    held.wait_for(1);
    Box::new(s)
}

/// As [`hung`], with the front-end waiting for the drain.
fn draining(path: &Path, held: &Held) -> Peer {
    let s = hung(path, held).downcast::<Session>().unwrap();
    s.fe().send_get_vring_base(0).unwrap();
    s.fe().wait_consumed().unwrap();
    s
}

/// Requests of the back-end's are on the channel, unread and unanswered.
fn back_channel(path: &Path, _: &Held) -> Peer {
    let s = Session::builder().connect(path);
    assert!(s.backend.is_some());
    Box::new(s)
}

const SITUATIONS: [(&str, Situation); 9] = [
    ("nobody", nobody),
    ("in accept", in_accept),
    ("between messages", between_messages),
    ("mid-message", mid_message),
    ("deaf", deaf),
    ("running", running),
    ("hung", hung),
    ("draining", draining),
    ("back channel", back_channel),
];

/// How the server is stopped.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By two threads at once.
    Blocking,
    /// And again.
    Requested,
    /// On the thread that owns the loop.
    OnTheLoop,
}

fn stop(way: Way, server: &Arc<Server>, looper: Looper, journal: &Journal) -> Arc<Context> {
    match way {
        Way::Blocking => {
            let stops = [server.clone(), server.clone()];
            let stops = stops.map(|server| std::thread::spawn(move || server.stop().unwrap()));
            stops.into_iter().for_each(|stop| stop.join().unwrap());
            looper.ctx.clone()
        }
        Way::Requested => {
            server.request_stop().unwrap();
            server.request_stop().unwrap();
            journal.wait_for("stopped");
            looper.ctx.clone()
        }
        Way::OnTheLoop => {
            let ctx = looper.ctx.clone();
            drop(looper);
            ctx.adopt().unwrap();
            server.stop().unwrap();
            ctx
        }
    }
}

#[test]
fn case_91_stop_whatever_happens() {
    let _alone = alone_guarded("91");
    for (situation, peer) in SITUATIONS {
        for way in [Way::Blocking, Way::Requested, Way::OnTheLoop] {
            let what = format!("{situation}, {way:?}");
            let journal = Journal::new();
            let device = Probe::echo(&journal);
            let held = device.held.clone();
            let server = Server::builder()
                .name("case91")
                .config_space([0; 8], [0; 8])
                .drain_timeout(Some(Duration::from_millis(100)))
                .build(device)
                .unwrap();
            let server = Arc::new(server);
            let (looper, path) = (Looper::new(), socket_path("case91"));
            server
                .start(Address::Listen(path.clone()), Some(&looper.ctx))
                .unwrap();
            let peer = peer(&path, &held);
            if situation == "back channel" {
                for value in 1..=100 {
                    server.set_config(0, &[value]).unwrap();
                }
            }
            let ctx = within(SOON, &what, || stop(way, &server, looper, &journal));
            assert!(server.is_stopped(), "{what}");
            // And once more, which is nothing.
            server.stop().unwrap();
            assert!(!path.exists(), "{what}: the socket file is left");
            let threads = process::threads_named("vu-case91");
            assert!(threads.is_empty(), "{what}: {threads:?}");
            drop(peer);
            drop(held.take());
            drop(server);
            assert_eq!(journal.count("destroy"), 1, "{what}");
            drop(ctx);
        }
    }
}

#[test]
fn case_91_stop_inside_a_callback() {
    let _alone = alone_guarded("91");
    for name in [
        "connected",
        "features_acked",
        "queue_started",
        "kick",
        "queue_stopping",
    ] {
        let (journal, handle) = (Journal::new(), Handle::default());
        let own = handle.clone();
        let device = Probe::new(&journal, move |called, _| {
            if called == name {
                let server = own.get().unwrap();
                assert_errno(server.stop(), libc::EDEADLK);
                assert!(!server.is_stopped());
                server.request_stop().unwrap();
            }
            None
        });
        let server = handle.build(Server::builder(), device);
        let (looper, path) = (Looper::new(), socket_path("case91"));
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let frontend = Frontend::connect(&path).unwrap();
        // It may end in the middle of this.
        if let Ok(mut s) = Session::builder().try_over(frontend) {
            let request = EchoRequest::new(&s.memory, 4, 4);
            s.queues[0].submit(&request.segs()).unwrap();
            if name == "queue_stopping" {
                // A queue that the loop has not taken goes without it.
                journal.wait_for("kick 0");
                let _ = s.fe().get_vring_base(0);
            }
            s.fe().wait_closed().unwrap();
        }
        journal.wait_for("stopped");
        server.stop().unwrap();
        assert!(!path.exists());
        drop(server);
        looper.finish();
    }
}

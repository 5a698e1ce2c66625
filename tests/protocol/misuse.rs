//! What a program does wrong.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex};
use std::thread;

use vu_server::{Address, Element, Server};

use super::rig::alone_guarded;
use crate::sim::echo::{EchoRequest, round_trip};
use crate::sim::{Deadline, Frontend, Session};
use crate::stop::{Call, Journal, Looper, Probe, SOON, assert_errno, lock, reply, socket_path};

unsafe extern "C" {
    fn vu_elem_complete(elem: *mut c_void, written: u32) -> c_int;
}

/// What a C program knows an element as; it can be kept longer than it should.
#[derive(Clone, Copy)]
struct Stale(*mut c_void);
// SAFETY: only passed to a function that is for any thread.
unsafe impl Send for Stale {}

impl Stale {
    fn of(element: &Element) -> Self {
        // SAFETY: an element is a transparent pointer, which is all that is looked at.
        Stale(unsafe { std::mem::transmute_copy(element) })
    }

    fn complete(self) -> i32 {
        // SAFETY: the element's memory lives as long as its queue, and the function finds what is wrong.
        -unsafe { vu_elem_complete(self.0, 0) }
    }
}

#[test]
fn case_85_completing_twice_or_what_was_never_popped() {
    let _alone = alone_guarded("85");
    let found = Arc::new(Mutex::new(Vec::new()));
    let (errors, journal) = (found.clone(), Journal::new());
    let device = Probe::new(&journal, move |_, call| {
        let Call::Kick(vq) = call else {
            return None;
        };
        let mut errors = lock(&errors);
        if !errors.is_empty() {
            return None;
        }
        let first = vq.pop_one().unwrap().unwrap();
        let second = vq.pop_one().unwrap().unwrap();
        let stale = [Stale::of(&first), Stale::of(&second)];
        vq.unpop(second).unwrap();
        // Put back is as if it had never been popped.
        errors.push(stale[1].complete());
        reply(first);
        errors.push(stale[0].complete());
        vq.flush();
        errors.push(stale[0].complete());
        let elsewhere = thread::spawn(move || stale.map(Stale::complete));
        errors.extend(elsewhere.join().unwrap());
        drop(errors);
        None
    });
    let (looper, path) = (Looper::new(), socket_path("twice"));
    let server = Server::builder().build(device).unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut s = Session::builder().connect(&path);
    let requests = [0, 1].map(|seed| {
        let mut request = EchoRequest::new(&s.memory, 32, 32);
        request.prepare(seed);
        let head = s.queues[0].add(&request.segs()).unwrap();
        (head, request)
    });
    s.queues[0].publish().unwrap();
    s.queues[0].kick().unwrap();
    for (head, request) in &requests {
        let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(used.head, *head);
        request.check(used);
    }
    assert_eq!(*lock(&found), [libc::EINVAL; 5]);
    assert_eq!(
        s.queues[0].ring.used_idx().unwrap(),
        2,
        "the ring was touched"
    );
    round_trip(&mut s.queues[0], b"as if nothing had been");
    assert_eq!(server.queue_stats(0).unwrap().inflight, 0);
    server.stop().unwrap();
    drop(server);
    looper.finish();
}

#[test]
fn case_95_a_callback_panics() {
    let _alone = alone_guarded("95");
    for name in ["connected", "features_acked", "queue_started", "kick"] {
        let looper = Looper::new();
        let journal = Journal::new();
        let device = Probe::new(&journal, move |called, _| {
            assert_ne!(called, name, "the device's bug");
            None
        });
        let broken = Server::builder().build(device).unwrap();
        let sound = Server::builder()
            .build(Probe::echo(&Journal::new()))
            .unwrap();
        let paths = [socket_path("panic"), socket_path("sound")];
        for (server, path) in [&broken, &sound].into_iter().zip(&paths) {
            server
                .start(Address::Listen(path.clone()), Some(&looper.ctx))
                .unwrap();
        }
        let frontend = Frontend::connect(&paths[0]).unwrap();
        // It ends somewhere in the middle of this.
        if let Ok(mut s) = Session::builder().try_over(frontend) {
            let request = EchoRequest::new(&s.memory, 4, 4);
            s.queues[0].submit(&request.segs()).unwrap();
            s.fe().wait_closed().unwrap();
        }
        assert_eq!(journal.count(name) + journal.count(&format!("{name} 0")), 1);
        assert_errno(broken.attach(&looper.ctx), libc::ENOTRECOVERABLE);
        // No lock is poisoned: counters, configuration and the other server in the same loop work.
        assert_eq!(broken.stats().connections, 1);
        assert!(!broken.has_inflight());
        let mut s = Session::builder().connect(&paths[1]);
        round_trip(&mut s.queues[0], b"not its neighbour's fault");
        broken.stop().unwrap();
        assert_errno(
            broken.start(Address::Listen(paths[0].clone()), Some(&looper.ctx)),
            libc::ENOTRECOVERABLE,
        );
        round_trip(&mut s.queues[0], b"nor when that is stopped");
        sound.stop().unwrap();
        drop((broken, sound));
        looper.finish();
    }
}

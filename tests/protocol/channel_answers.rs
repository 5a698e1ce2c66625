//! Answers to requests to the front-end: who hears them, and every way in which they may fail to come.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vu_server::{Address, Capabilities, Context, Server, ServerBuilder, ShmemMapping};

use super::channel::{
    EARLY, PAGE, UUID, add, channel, configure, errno, file, hears, run, session,
};
use super::device::{Event, SOON, Script, Scripted};
use super::rig::{Rig, alone, run_device, run_device_in, works};
use crate::sim::wire::backend_req;
use crate::sim::{BackendChannel, Deadline, EventFd, Frontend, HangGuard, eventually, process};

/// So many answers may be awaited.
const MOST: usize = 64;

#[test]
fn requests_come_from_any_thread_and_are_answered_in_order() {
    run("threads", |rig| {
        let mut s = session(rig);
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                let server = rig.server.clone();
                thread::spawn(move || {
                    let mut heard = Vec::new();
                    for round in 0..8u8 {
                        let (sender, answer) = mpsc::channel();
                        let mut uuid = UUID;
                        uuid[..2].copy_from_slice(&[thread, round]);
                        let done = move |result| sender.send(errno(&result)).unwrap();
                        server.object_add(uuid, done).unwrap();
                        heard.push((uuid, answer));
                    }
                    heard
                })
            })
            .collect();
        let mut last = [None; 4];
        for _ in 0..4 * 8 {
            let request = channel(&s).recv().unwrap();
            let (thread, round) = (request.body[0], request.body[1]);
            assert!(
                last[usize::from(thread)] < Some(round),
                "a thread's own order"
            );
            last[usize::from(thread)] = Some(round);
            channel(&s).ack(&request, u64::from(round == 3)).unwrap();
        }
        for (uuid, heard) in threads.into_iter().flat_map(|t| t.join().unwrap()) {
            hears(&heard, if uuid[1] == 3 { libc::EREMOTEIO } else { 0 });
        }
        works(&mut s);
    });
}

#[test]
fn so_many_answers_are_awaited_and_no_more() {
    run("bounded", |rig| {
        let mut s = session(rig);
        let heard: Vec<_> = (0..MOST).map(|_| add(&rig.server).unwrap()).collect();
        assert_eq!(add(&rig.server).unwrap_err().errno(), libc::EAGAIN);
        works(&mut s);
        for heard in heard {
            let request = channel(&s).recv().unwrap();
            channel(&s).ack(&request, 0).unwrap();
            hears(&heard, 0);
        }
        let heard = add(&rig.server).unwrap();
        let request = channel(&s).recv().unwrap();
        channel(&s).ack(&request, 0).unwrap();
        hears(&heard, 0);
    });
}

#[test]
fn who_asks_again_as_it_hears_an_answer_finds_room() {
    run("again", |rig| {
        let s = session(rig);
        let mut heard: Vec<_> = (1..MOST).map(|_| add(&rig.server).unwrap()).collect();
        let (sender, again) = mpsc::channel();
        let server = rig.server.clone();
        let done = move |_| sender.send(add(&server).unwrap()).unwrap();
        rig.server.object_add(UUID, done).unwrap();
        for _ in 0..MOST + 1 {
            let request = channel(&s).recv().unwrap();
            channel(&s).ack(&request, 0).unwrap();
        }
        heard.push(again.recv_timeout(SOON).unwrap());
        heard.iter().for_each(|heard| hears(heard, 0));
    });
}

/// As [`run`], on a context that the test dispatches, with a front-end that has a channel.
#[track_caller]
fn run_in(name: &str, test: impl FnOnce(&Rig, &Arc<Context>, Frontend, BackendChannel)) {
    run_device_in(
        name,
        Script::able(Capabilities::all()),
        configure,
        |rig, ctx| {
            let mut fe = Frontend::connect(rig.path()).unwrap();
            let offered = fe.get_protocol_features().unwrap();
            fe.set_protocol_features(offered).unwrap();
            let channel = fe.set_backend_req_fd().unwrap();
            dispatch_until(ctx, "connection heard of", || rig.device.connections() == 1);
            test(rig, ctx, fe, channel);
        },
    );
}

#[track_caller]
fn dispatch_until(ctx: &Context, what: &str, mut done: impl FnMut() -> bool) {
    eventually(what, Deadline::after(SOON), true, || {
        ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
        done()
    });
}

#[test]
fn an_answer_is_heard_in_the_home_context_wherever_that_is_by_then() {
    run_in("home", |rig, ctx, _fe, channel| {
        let (sender, heard) = mpsc::channel();
        let done = move |_| sender.send(thread::current().id()).unwrap();
        let server = rig.server.clone();
        thread::spawn(move || server.object_add(UUID, done).unwrap());
        let request = channel.recv().unwrap();
        channel.ack(&request, 0).unwrap();
        assert!(heard.recv_timeout(EARLY).is_err(), "nobody dispatches");
        rig.server.detach().unwrap();
        ctx.dispatch(Some(Duration::ZERO)).unwrap();
        assert!(heard.try_recv().is_err(), "detached");
        let other = Context::epoll().unwrap();
        rig.server.attach(&other).unwrap();
        let mut thread = None;
        dispatch_until(&other, "an answer", || {
            thread = heard.try_recv().ok();
            thread.is_some()
        });
        assert_eq!(thread, Some(thread::current().id()));
        rig.server.stop().unwrap();
    });
}

#[test]
fn case_29_an_answer_that_does_not_come_in_time() {
    let soon = |b: ServerBuilder| configure(b).reply_timeout(Some(Duration::from_millis(20)));
    run_device("timeout", Script::able(Capabilities::all()), soon, |rig| {
        let mut s = session(rig);
        let heard = add(&rig.server).unwrap();
        let late = channel(&s).recv().unwrap();
        works(&mut s);
        hears(&heard, libc::ETIMEDOUT);
        // The answer comes after all, and is not taken for another one's.
        channel(&s).ack(&late, 1).unwrap();
        works(&mut s);
        eventually("answered in time", Deadline::after(SOON), 0, || {
            let heard = add(&rig.server).unwrap();
            let request = channel(&s).recv().unwrap();
            channel(&s).ack(&request, 0).unwrap();
            heard.recv_timeout(SOON).unwrap()
        });
    });
}

#[test]
fn case_29_answers_that_are_not_what_was_asked_for() {
    run("wrong", |rig| {
        let mut s = session(rig);
        let object = EventFd::new().unwrap();
        let id = backend_req::SHARED_OBJECT_ADD;
        for (what, id, body, fds) in [
            (
                "another id",
                backend_req::SHARED_OBJECT_REMOVE,
                &[0u8; 8][..],
                0,
            ),
            ("an unknown id", 99, &[0; 8], 0),
            ("no body", id, &[], 0),
            ("a long body", id, &[0; 16], 0),
            ("a descriptor", id, &[0; 8], 1),
        ] {
            let waiting: Vec<_> = (0..3).map(|_| add(&rig.server).unwrap()).collect();
            channel(&s).recv().unwrap();
            let fds = vec![object.as_raw_fd(); fds];
            channel(&s).reply(id, body, &fds).unwrap();
            for heard in waiting {
                hears(&heard, libc::ECANCELED);
            }
            works(&mut s);
            let gone = add(&rig.server).unwrap_err();
            assert_eq!(gone.errno(), libc::ENOTCONN, "after {what}");
            // The channel has ended, not the connection: the front-end may give another one.
            s.backend = Some(s.fe().set_backend_req_fd().unwrap());
            let heard = add(&rig.server).unwrap();
            let request = channel(&s).recv().unwrap();
            channel(&s).ack(&request, 0).unwrap();
            hears(&heard, 0);
        }
    });
}

#[test]
fn case_29_a_front_end_that_closes_its_channel() {
    run("closes", |rig| {
        let mut s = session(rig);
        let heard = add(&rig.server).unwrap();
        s.backend = None;
        hears(&heard, libc::ECANCELED);
        works(&mut s);
        assert_eq!(add(&rig.server).unwrap_err().errno(), libc::ENOTCONN);
    });
}

#[test]
fn a_channel_that_is_replaced_takes_its_requests_with_it() {
    run("replaced", |rig| {
        let mut s = session(rig);
        let heard = add(&rig.server).unwrap();
        channel(&s).recv().unwrap();
        s.backend = Some(s.fe().set_backend_req_fd().unwrap());
        hears(&heard, libc::ECANCELED);
        let heard = add(&rig.server).unwrap();
        let request = channel(&s).recv().unwrap();
        channel(&s).ack(&request, 0).unwrap();
        hears(&heard, 0);
    });
}

#[test]
fn a_disconnect_cancels_and_closes_what_was_not_sent() {
    run("disconnect", |rig| {
        let s = session(rig);
        let file = file();
        let mapping = ShmemMapping {
            region: 2,
            offset: 0,
            len: PAGE,
            fd_offset: 0,
            writable: false,
        };
        let heard: Vec<_> = (0..MOST)
            .map(|_| {
                let (sender, heard) = mpsc::channel();
                let done = move |result| sender.send(errno(&result)).unwrap();
                rig.server.shmem_map(mapping, file.as_fd(), done).unwrap();
                heard
            })
            .collect();
        drop(s);
        for heard in heard {
            hears(&heard, libc::ECANCELED);
        }
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let fds = process::open_fds();
        let mut s = session(rig);
        works(&mut s);
        drop(s);
        // The end was told while the connection still had some of its own.
        eventually("no more descriptors", Deadline::after(SOON), true, || {
            process::open_fds() <= fds
        });
    });
}

#[test]
fn case_91_a_stop_cancels_what_is_outstanding() {
    run_in("stop", |rig, _ctx, fe, channel| {
        let heard = add(&rig.server).unwrap();
        channel.recv().unwrap();
        rig.server.stop().unwrap();
        hears(&heard, libc::ECANCELED);
        channel.wait_closed().unwrap();
        fe.wait_closed().unwrap();
        assert_eq!(add(&rig.server).unwrap_err().errno(), libc::ENOTCONN);
    });
}

#[test]
fn what_no_context_heard_is_told_at_the_next_start_or_when_the_server_is_freed() {
    let _alone = alone();
    let _hang = HangGuard::secs("unheard", 120);
    let path = std::env::temp_dir().join(format!("vu-unheard-{}.sock", std::process::id()));
    let device = Scripted(Arc::new(Script::able(Capabilities::all())));
    let server = Server::builder().queues(2).build(device).unwrap();
    let ctx = Context::epoll().unwrap();
    let outstanding = || {
        server.start(Address::Listen(path.clone()), None).unwrap();
        let mut fe = Frontend::connect(&path).unwrap();
        let offered = fe.get_protocol_features().unwrap();
        fe.set_protocol_features(offered).unwrap();
        let channel = fe.set_backend_req_fd().unwrap();
        let heard = add(&server).unwrap();
        channel.recv().unwrap();
        server.stop().unwrap();
        assert!(heard.try_recv().is_err(), "heard while detached");
        heard
    };
    let heard = outstanding();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    dispatch_until(&ctx, "an answer", || {
        heard.try_recv() == Ok(libc::ECANCELED)
    });
    server.stop().unwrap();
    let heard = outstanding();
    drop(server);
    hears(&heard, libc::ECANCELED);
}

//! Connections that come, wait, go, and go in the middle of things.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vu_server::{Address, Context, Device, Kick, Server, Virtqueue};

use super::device::{Event, SOON, answer};
use super::rig::{alone_guarded, run, run_with, works};
use crate::sim::echo::{EchoLoad, EchoRequest, round_trip};
use crate::sim::wire::req;
use crate::sim::{Deadline, Frontend, Session, eventually, process};
use crate::stop::{Journal, Looper, Probe, SOON as LIMIT, socket_path, within};

/// Long enough to notice an answer that comes too early; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);

#[test]
fn case_88_a_second_front_end_waits() {
    run("88", |rig| {
        let mut first = rig.session();
        let second = Frontend::connect(rig.path()).unwrap();
        second.send(req::GET_FEATURES, 0, &[], &[]).unwrap();
        works(&mut first);
        EchoLoad::new(&mut first.queues[0], 16, 64).run(1000);
        assert!(!second.answered_within(EARLY).unwrap(), "two at a time");
        first.disconnect();
        second.recv_reply(req::GET_FEATURES).unwrap();
        assert_eq!(rig.server.stats().connections, 2);
        drop(second);
        works(&mut rig.session());
    });
}

struct Idle;

impl Device for Idle {
    fn kick(&self, _: &mut Virtqueue<'_>) -> Kick {
        Kick::Done
    }
}

#[test]
fn case_88_ten_thousand_connections() {
    let _alone = alone_guarded("88");
    const ROUNDS: u64 = 10_000;
    const WARM: u64 = 1000;
    /// A leak of one page a connection would be 36 MB.
    const KIB: u64 = 4096;
    let (looper, path) = (Looper::new(), socket_path("rounds"));
    let server = Server::builder().name("rounds").build(Idle).unwrap();
    let before = process::fd_targets();
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let holdings = || (process::open_fds(), process::threads_named("").len());
    let mut warm = None;
    for round in 1..=ROUNDS {
        let frontend = Frontend::connect(&path).unwrap();
        match round % 3 {
            0 => {
                frontend.get_features().unwrap();
            }
            // In the middle of a message, and without a word.
            1 => frontend.send_bytes(&[1, 0, 0], &[]).unwrap(),
            _ => {}
        }
        drop(frontend);
        if round == WARM || round == ROUNDS {
            eventually("connections", Deadline::after(LIMIT), round, || {
                server.stats().connections
            });
            // The next is accepted when nothing is left of the one before.
            let last = Frontend::connect(&path).unwrap();
            last.get_features().unwrap();
            let now = (holdings(), process::resident_kib());
            match &warm {
                None => warm = Some(now),
                Some((flat, resident)) => {
                    assert_eq!(now.0, *flat, "descriptors and threads");
                    assert!(now.1 < resident + KIB, "{resident} KiB, then {} KiB", now.1);
                }
            }
            drop(last);
            eventually("one connection more", Deadline::after(LIMIT), true, || {
                server.stats().connections > round
            });
        }
        if round == WARM {
            // The one that looked is not a round.
            server.stop().unwrap();
            server
                .start(Address::Listen(path.clone()), Some(&looper.ctx))
                .unwrap();
        }
    }
    server.stop().unwrap();
    eventually(
        "open descriptors",
        Deadline::after(LIMIT),
        before,
        process::fd_targets,
    );
    drop(server);
    looper.finish();
}

#[test]
fn case_89_disconnect_with_a_full_ring_in_flight() {
    const SIZE: usize = 16;
    let unlimited = |builder: vu_server::ServerBuilder| builder.drain_timeout(None);
    run_with("89", unlimited, |rig| {
        let mut s = rig
            .builder()
            .queue_size(2 * SIZE as u16)
            .connect(rig.path());
        rig.device.hold(true);
        let requests: Vec<_> = (0..SIZE as u64)
            .map(|seed| {
                let mut request = EchoRequest::new(&s.memory, 64, 64);
                request.prepare(seed);
                s.queues[0].submit(&request.segs()).unwrap();
                request
            })
            .collect();
        rig.device.wait_held(SIZE);
        let mappings = process::mappings("sim-guest");
        s.abort();
        rig.device
            .take_event(Event::QueueStopping(0, vu_server::StopReason::Disconnected));
        let next = Frontend::connect(rig.path()).unwrap();
        next.send(req::GET_FEATURES, 0, &[], &[]).unwrap();
        let mut held = rig.device.take_held();
        rig.device.hold(false);
        // On another thread, and not all of them.
        let last = held.pop().unwrap();
        let completing = thread::spawn(move || held.into_iter().for_each(answer));
        completing.join().unwrap();
        assert!(
            !next.answered_within(EARLY).unwrap(),
            "accepted with one in flight"
        );
        assert_eq!(process::mappings("sim-guest"), mappings, "unmapped early");
        thread::spawn(move || answer(last)).join().unwrap();
        next.recv_reply(req::GET_FEATURES).unwrap();
        assert_eq!(process::mappings("sim-guest"), mappings - 1, "left mapped");
        assert_eq!(
            s.queues[0].ring.used_idx().unwrap(),
            0,
            "the ring of a connection that is gone was touched"
        );
        drop((next, requests));
        works(&mut rig.session());
    });
}

#[test]
fn case_94_a_base_that_takes_long() {
    run("94", |rig| {
        let (other, path) = (Looper::new(), socket_path("other"));
        let server = Server::builder()
            .build(Probe::echo(&Journal::new()))
            .unwrap();
        server
            .start(Address::Listen(path.clone()), Some(&other.ctx))
            .unwrap();
        let mut s = rig.session();
        rig.device.hold(true);
        let request = EchoRequest::new(&s.memory, 8, 8);
        s.queues[0].submit(&request.segs()).unwrap();
        rig.device.wait_held(1);
        rig.device.hold(false);
        s.fe().send_get_vring_base(0).unwrap();
        s.fe().wait_consumed().unwrap();
        // Another queue, another server's connection, and its stop do not wait.
        EchoLoad::new(&mut s.queues[1], 16, 64).run(100);
        let mut elsewhere = Session::builder().connect(&path);
        round_trip(&mut elsewhere.queues[0], b"elsewhere");
        assert_eq!(elsewhere.stop_queue(0), 1);
        within(LIMIT, "the other server's stop", || server.stop()).unwrap();
        assert!(
            !s.fe().answered_within(EARLY).unwrap(),
            "answered with one in flight"
        );
        rig.device.release();
        assert_eq!(s.fe().recv_vring_base(0).unwrap(), 1);
        drop(server);
        other.finish();
    });
}

#[test]
fn case_94_a_stop_meanwhile() {
    let drain =
        |builder: vu_server::ServerBuilder| builder.drain_timeout(Some(Duration::from_millis(200)));
    run_with("94", drain, |rig| {
        let mut s = rig.session();
        rig.device.hold(true);
        let request = EchoRequest::new(&s.memory, 8, 8);
        s.queues[0].submit(&request.segs()).unwrap();
        rig.device.wait_held(1);
        s.fe().send_get_vring_base(0).unwrap();
        s.fe().wait_consumed().unwrap();
        // As long as the drain may take, and not as long as the request does.
        within(SOON, "the stop", || rig.server.stop()).unwrap();
        assert_eq!(rig.server.stats().orphaned_queues, 1);
        s.fe().wait_closed().unwrap();
        rig.device.release();
    });
}

/// Everything that the device holds of the connection outlives it; see `contract_stop` for what comes after the
/// server's own end.
#[test]
fn case_89_the_program_holds_the_context_alone() {
    let _alone = alone_guarded("89");
    let ctx = Arc::new(Context::epoll().unwrap());
    let path = socket_path("held");
    let journal = Journal::new();
    let (device, held) = Probe::holding(&journal);
    let server = Server::builder().drain_timeout(None).build(device).unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let mut s = Session::builder().connect(&path);
    let request = EchoRequest::new(&s.memory, 4, 4);
    s.queues[0].submit(&request.segs()).unwrap();
    let turn = || ctx.dispatch(Some(Duration::from_millis(1))).unwrap();
    while held.len() == 0 {
        turn();
    }
    s.abort();
    while journal.count("queue_stopping 0 Disconnected") == 0 {
        turn();
    }
    for _ in 0..20 {
        turn();
    }
    assert_eq!(journal.count("disconnected 0"), 0, "one is in flight");
    thread::scope(|scope| scope.spawn(|| held.reply_to_all()).join().unwrap());
    while journal.count("disconnected 0") == 0 {
        turn();
    }
    server.stop().unwrap();
}

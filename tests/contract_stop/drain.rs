//! What is in flight at a stop: held buffers, hung devices, and completions that come when all is over.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use vu_server::{Address, Context, Kick, Server};

use crate::sim::echo::{EchoRequest, round_trip};
use crate::sim::{Deadline, Session, eventually, process};
use crate::stop::*;

const NO_TIMEOUT_NEEDED: Duration = Duration::from_secs(3);
const LONG_DRAIN: Duration = Duration::from_secs(30);
const SHORT_DRAIN: Duration = Duration::from_millis(100);

/// How often this process has the session's memory mapped, the front-end's own mapping included.
fn mappings_of(session: &Session) -> usize {
    let fd = session.memory.regions()[0].raw_fd();
    let link = std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&link).to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.split_whitespace().nth(4) == Some(&inode))
        .count()
}

/// A device that keeps receive buffers: when its queue goes, it completes the `complete` oldest and puts the
/// others back, the newest first.
fn receiver(journal: &Arc<Journal>, complete: usize) -> (Probe, Arc<Held>) {
    let held = Held::new();
    let keep = held.clone();
    let device = Probe::new(journal, move |_, call| match call {
        Call::Kick(vq) => {
            keep.pop_all(vq);
            Some(Kick::Done)
        }
        Call::QueueStopping(vq, _) => {
            assert_eq!(vq.pop_one().unwrap_err().errno(), libc::ESHUTDOWN);
            let mut elements = keep.take();
            while elements.len() > complete {
                let newest = elements.pop().unwrap();
                vq.unpop(newest).map_err(|(error, _)| error).unwrap();
            }
            elements.into_iter().for_each(reply);
            None
        }
        _ => None,
    });
    (device, held)
}

#[test]
fn held_receive_buffers_are_put_back_when_the_queue_goes() {
    let _guard = guard("held_receive_buffers_are_put_back_when_the_queue_goes", 40);
    const BUFFERS: usize = 12;
    const COMPLETED: usize = 5;
    let journal = Journal::new();
    let (device, held) = receiver(&journal, COMPLETED);
    let server = Server::builder()
        .drain_timeout(Some(LONG_DRAIN))
        .build(device)
        .unwrap();
    let (looper, path) = (Looper::new(), socket_path("receiver"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut session = Session::builder().connect(&path);
    for _ in 0..BUFFERS {
        let request = EchoRequest::new(&session.memory, 8, 8);
        session.queues[0].submit(&request.segs()).unwrap();
    }
    held.wait_for(BUFFERS);

    // By GET_VRING_BASE: the base is where the driver's next buffer is.
    let base = within(NO_TIMEOUT_NEEDED, "GET_VRING_BASE", || {
        session.stop_queue(0)
    });
    assert_eq!(base as usize, COMPLETED);
    session.queues[0]
        .wait_used_all(COMPLETED, Deadline::secs(10))
        .unwrap();
    assert!(session.queues[0].poll_used().unwrap().is_none());
    session.start_queue(0);
    held.wait_for(BUFFERS - COMPLETED);

    // By a stop of the server.
    within(NO_TIMEOUT_NEEDED, "the stop", || server.stop()).unwrap();
    session.queues[0]
        .wait_used_all(COMPLETED, Deadline::secs(10))
        .unwrap();
    assert_eq!(
        usize::from(session.queues[0].ring.used_idx().unwrap()),
        2 * COMPLETED
    );
    assert_eq!((held.len(), server.stats().orphaned_queues), (0, 0));
    assert_eq!(server.queue_stats(0).unwrap().inflight, 0);
    drop(server);
    looper.finish();
}

#[test]
fn held_receive_buffers_at_a_disconnect() {
    let _guard = guard("held_receive_buffers_at_a_disconnect", 40);
    let journal = Journal::new();
    let (device, held) = receiver(&journal, 1);
    let server = Server::builder()
        .drain_timeout(Some(LONG_DRAIN))
        .build(device)
        .unwrap();
    let (looper, path) = (Looper::new(), socket_path("receiver-gone"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut session = Session::builder().connect(&path);
    for _ in 0..3 {
        let request = EchoRequest::new(&session.memory, 8, 8);
        session.queues[0].submit(&request.segs()).unwrap();
    }
    held.wait_for(3);
    session.abort();
    journal.wait_for("disconnected 0");
    assert_eq!(journal.count("queue_stopping 0 Disconnected"), 1);
    // Nobody is there any more who could be told; the next start finds all of them again.
    assert_eq!(session.queues[0].ring.used_idx().unwrap(), 0);
    assert_eq!(mappings_of(&session), 1);
    session.reconnect(&path);
    held.wait_for(3);
    server.stop().unwrap();
    drop(server);
    looper.finish();
}

/// The element of a hung device outlives queue, connection, mapping table, server and context.
#[test]
fn a_late_completion_comes_after_the_server_was_freed() {
    let _guard = guard_alone("a_late_completion_comes_after_the_server_was_freed", 60);
    // Once for what the process keeps from the first time on.
    hung_until_after_free();
    let fds = process::open_fds();
    hung_until_after_free();
    assert_eq!(process::open_fds(), fds, "{:#?}", process::fd_targets());
    assert_eq!(process::mappings("sim-guest"), 0);
    assert!(process::threads_named("vu-").is_empty());
}

fn hung_until_after_free() {
    let journal = Journal::new();
    let (device, held) = Probe::holding(&journal);
    let server = Server::builder()
        .queues(2)
        .drain_timeout(Some(SHORT_DRAIN))
        .build(device)
        .unwrap();
    let (looper, path) = (Looper::new(), socket_path("hung"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut session = Session::builder().queues(2).connect(&path);
    assert_eq!(mappings_of(&session), 2);
    let mut request = EchoRequest::new(&session.memory, 4096, 4096);
    request.prepare(7);
    let head = session.queues[0].submit(&request.segs()).unwrap();
    held.wait_for(1);

    within(NO_TIMEOUT_NEEDED, "the stop", || server.stop()).unwrap();
    assert_eq!(journal.count("orphaned 0"), 1, "{:?}", journal.events());
    assert_eq!(journal.count("orphaned 1"), 0, "{:?}", journal.events());
    assert_eq!(journal.count("disconnected 0"), 1);
    assert_eq!(server.stats().orphaned_queues, 1);
    session.fe().wait_closed().unwrap();
    server.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(journal.count("destroy"), 1);
    looper.finish();
    assert_eq!(mappings_of(&session), 2, "the element's memory is gone");
    // The device, whose journal this is, lives with its element.
    let device_journal = Arc::downgrade(&journal);
    assert_eq!(device_journal.strong_count(), 2);

    let element = held.take_one().unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 4096];
        assert_eq!(element.read(0, &mut bytes), 4096);
        assert_eq!(element.write(0, &bytes), 4096);
        element.complete(4096).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(
        mappings_of(&session),
        1,
        "the mapping stays after the last element"
    );
    assert_eq!(
        device_journal.strong_count(),
        1,
        "the server's memory stays"
    );
    // Its memory was written, its ring was not.
    assert_eq!(session.queues[0].ring.used_idx().unwrap(), 0);
    request.check(crate::sim::Used { head, len: 4096 });
}

/// As a drain time-out at a disconnect: the next front-end gets a fresh queue while the old element lives.
#[test]
fn an_orphan_does_not_disturb_the_next_connection() {
    let _guard = guard("an_orphan_does_not_disturb_the_next_connection", 40);
    let journal = Journal::new();
    let device = Probe::echo(&journal);
    let held = device.held.clone();
    let server = Server::builder()
        .drain_timeout(Some(SHORT_DRAIN))
        .build(device)
        .unwrap();
    let (looper, path) = (Looper::new(), socket_path("orphan"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut first = Session::builder().connect(&path);
    let mut request = EchoRequest::new(&first.memory, 8, 8);
    request.send(b"hold\0\0\0\0");
    first.queues[0].submit(&request.segs()).unwrap();
    held.wait_for(1);
    first.abort();
    journal.wait_for("orphaned 0");
    journal.wait_for("disconnected 0");

    let mut second = Session::builder().connect(&path);
    for seed in 0..100u32 {
        round_trip(&mut second.queues[0], &seed.to_ne_bytes());
    }
    assert_eq!((mappings_of(&first), mappings_of(&second)), (2, 2));
    held.reply_to_all();
    assert_eq!((mappings_of(&first), mappings_of(&second)), (1, 2));
    assert_eq!(first.queues[0].ring.used_idx().unwrap(), 0);
    round_trip(&mut second.queues[0], b"still here");
    within(NO_TIMEOUT_NEEDED, "the stop", || server.stop()).unwrap();
    assert_eq!(server.stats().orphaned_queues, 1);
    drop(server);
    looper.finish();
}

/// The thread took the queue and does not come back: the stop is bounded by the drain time-out, and when the
/// thread does come back it finds nothing to do.
#[test]
fn a_context_that_stops_dispatching() {
    let _guard = guard("a_context_that_stops_dispatching", 40);
    let journal = Journal::new();
    let server = Server::builder()
        .queues(2)
        .drain_timeout(Some(SHORT_DRAIN))
        .build(Probe::echo(&journal))
        .unwrap();
    let (give, take) = mpsc::channel();
    let (resume, resumed) = mpsc::channel::<()>();
    let (leave, left) = mpsc::channel();
    let heard = journal.clone();
    let path = socket_path("gone");
    let owner = thread::spawn(move || {
        let ctx = Arc::new(Context::epoll().unwrap());
        give.send(ctx.clone()).unwrap();
        while heard.count("queue_started 0") + heard.count("queue_started 1") < 2 {
            ctx.dispatch(Some(Duration::from_millis(5))).unwrap();
        }
        leave.send(()).unwrap();
        resumed.recv_timeout(SOON).unwrap();
        ctx.dispatch(Some(Duration::ZERO)).unwrap();
        ctx
    });
    let ctx = take.recv().unwrap();
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let mut session = Session::builder().queues(2).connect(&path);
    left.recv_timeout(SOON).unwrap();
    let request = EchoRequest::new(&session.memory, 8, 8);
    session.queues[0].submit(&request.segs()).unwrap();
    within(NO_TIMEOUT_NEEDED, "the stop", || server.stop()).unwrap();
    assert_eq!(server.stats().orphaned_queues, 2);
    session.fe().wait_closed().unwrap();
    server.free().map_err(|(error, _)| error).unwrap();
    let heard = journal.entries().len();
    // The owner may use its ring until it hears of it.
    assert_eq!(mappings_of(&session), 2);
    resume.send(()).unwrap();
    drop(owner.join().unwrap());
    assert_eq!(journal.entries().len(), heard, "a callback after free");
    assert_eq!(mappings_of(&session), 1);
    Arc::into_inner(ctx)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
    assert_eq!(Arc::strong_count(&journal), 1, "the server's memory stays");
}

/// The same, but the context is freed without another dispatch.
#[test]
fn freeing_a_context_lets_go_of_what_a_drain_time_out_cut_off() {
    let _guard = guard(
        "freeing_a_context_lets_go_of_what_a_drain_time_out_cut_off",
        40,
    );
    let journal = Journal::new();
    let builder = Server::builder().drain_timeout(Some(SHORT_DRAIN));
    let server = Arc::new(builder.build(Probe::echo(&journal)).unwrap());
    let ctx = Context::epoll().unwrap();
    let path = socket_path("ctx-free");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let session = Session::builder().connect(&path);
    while journal.count("queue_started 0") == 0 {
        ctx.dispatch(Some(Duration::from_millis(5))).unwrap();
    }
    let (error, ctx) = ctx.free().expect_err("freed while attached");
    assert_eq!(error.errno(), libc::EBUSY);
    // This thread is busy while another one stops the server.
    let other = server.clone();
    thread::spawn(move || other.stop().unwrap()).join().unwrap();
    Arc::into_inner(server)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
    assert_eq!(mappings_of(&session), 2);
    ctx.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(mappings_of(&session), 1);
    assert_eq!(Arc::strong_count(&journal), 1, "the server's memory stays");
}

/// Work that only the program knows of counts like an element.
#[test]
fn an_explicit_count_is_waited_for() {
    let _guard = guard("an_explicit_count_is_waited_for", 40);
    let journal = Journal::new();
    let builder = Server::builder().drain_timeout(Some(LONG_DRAIN));
    let server = Arc::new(builder.build(Probe::echo(&journal)).unwrap());
    let (looper, path) = (Looper::new(), socket_path("explicit"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let session = Session::builder().connect(&path);
    journal.wait_for("queue_started 0");
    server.inflight_inc().unwrap();
    assert!(server.has_inflight());
    let stopper = {
        let server = server.clone();
        thread::spawn(move || server.stop().unwrap())
    };
    journal.wait_for("queue_stopping 0 ServerStopping");
    // While the drain waits, what is in flight may still split.
    server.inflight_inc().unwrap();
    server.inflight_dec().unwrap();
    assert!(!server.is_stopped());
    assert_eq!(mappings_of(&session), 2);
    server.inflight_dec().unwrap();
    stopper.join().unwrap();
    assert!(!server.has_inflight());
    assert_errno(server.inflight_inc(), libc::ESHUTDOWN);
    assert_errno(server.inflight_dec(), libc::EINVAL);
    eventually("mappings", Deadline::secs(5), 1, || mappings_of(&session));
    drop(server);
    looper.finish();
}

/// An explicit count that never ends: the drain time-out ends the wait, and the count may still end later.
#[test]
fn an_explicit_count_that_never_ends() {
    let _guard = guard("an_explicit_count_that_never_ends", 40);
    let journal = Journal::new();
    let server = Server::builder()
        .drain_timeout(Some(SHORT_DRAIN))
        .build(Probe::echo(&journal))
        .unwrap();
    let (looper, path) = (Looper::new(), socket_path("explicit-hung"));
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let session = Session::builder().connect(&path);
    server.inflight_inc().unwrap();
    within(NO_TIMEOUT_NEEDED, "the stop", || server.stop()).unwrap();
    session.fe().wait_closed().unwrap();
    server.inflight_dec().unwrap();
    assert_errno(server.inflight_dec(), libc::EINVAL);
    drop(server);
    looper.finish();
}

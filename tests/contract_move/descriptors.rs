//! New kick and call descriptors while the ring runs, and rings without them.

use std::os::fd::AsRawFd;

use crate::move_device::{Answer, Event};
use crate::move_loops::Kind;
use crate::move_rig::Rig;
use crate::sim::echo::{EchoLoad, EchoRequest};
use crate::sim::{Deadline, EventFd, Session, eventually};

const KINDS: [Kind; 3] = [Kind::Epoll, Kind::Foreign, Kind::Polled];

/// The driver waits for a call on the new descriptor only. A completion that raced with the swap may have
/// signalled the old one; the new one must be signalled as well.
#[test]
fn no_call_is_lost_when_its_descriptor_is_swapped() {
    let rig = Rig::start("no_call_is_lost", &[Kind::Epoll], 1, Answer::Pool);
    let mut session = Session::builder().connect(&rig.path);
    let mut driver = session.queues.remove(0);
    let mut request = EchoRequest::new(&session.memory, 64, 64);
    for round in 0..2000 {
        request.prepare(round);
        driver.call.take().unwrap();
        driver.enable_calls().unwrap();
        driver.submit(&request.segs()).unwrap();
        let new = EventFd::new().unwrap();
        session
            .fe()
            .set_vring_call(0, Some(new.as_raw_fd()))
            .unwrap();
        driver.call = new;
        // Armed before the request went out, so its completion is one call, whatever the timing.
        driver
            .call
            .wait("a call on the new descriptor", Deadline::secs(10))
            .unwrap();
        let mut used = None;
        eventually("the completion", Deadline::secs(10), true, || {
            used = driver.poll_used().unwrap();
            used.is_some()
        });
        request.check(used.unwrap());
    }
    rig.assert_exactly_once(&[2000]);
}

/// The old descriptor's watch is gone before the acknowledgement, and the new one works from then on.
#[test]
fn a_new_kick_descriptor_on_a_running_ring() {
    for kind in KINDS {
        let rig = Rig::start("a_new_kick_descriptor", &[kind], 1, Answer::Mixed);
        let mut session = Session::builder().connect(&rig.path);
        let mut driver = session.queues.remove(0);
        let mut submitted = 0;
        for round in 0..300 {
            let mut load = EchoLoad::new(&mut driver, 8, 64);
            // With requests in flight, and a kick on the old descriptor that may not have been read yet.
            load.fill();
            let new = EventFd::new().unwrap();
            session
                .fe()
                .set_vring_kick(0, Some(new.as_raw_fd()))
                .unwrap();
            let old = std::mem::replace(&mut load.driver.kick, new);
            drop(old);
            load.drain();
            load.run(round % 5);
            submitted += load.completed;
        }
        rig.assert_exactly_once(&[submitted]);
        let reason = vu_server::StopReason::Reconfigured;
        assert!(rig.echo.count(|e| *e == Event::Stopping(0, reason)) >= 250);
    }
}

#[test]
fn a_ring_without_a_kick_descriptor_is_polled() {
    for kind in KINDS {
        let rig = Rig::start(
            "a_ring_without_a_kick_descriptor",
            &[kind],
            1,
            Answer::Inline,
        );
        let mut session = Session::builder().without_kick_fd().connect(&rig.path);
        let mut load = EchoLoad::new(&mut session.queues[0], 16, 64);
        load.run(500);
        drop(load);
        session.stop_queue(0);
        rig.assert_exactly_once(&[500]);
    }
}

#[test]
fn a_ring_without_a_call_descriptor_is_served() {
    for kind in KINDS {
        let rig = Rig::start(
            "a_ring_without_a_call_descriptor",
            &[kind],
            1,
            Answer::Mixed,
        );
        let mut session = Session::builder().without_call_fd().connect(&rig.path);
        let driver = &mut session.queues[0];
        let mut request = EchoRequest::new(&session.memory, 64, 64);
        for round in 0..500 {
            request.prepare(round);
            driver.submit(&request.segs()).unwrap();
            let mut used = None;
            eventually("the completion", Deadline::secs(10), true, || {
                used = driver.poll_used().unwrap();
                used.is_some()
            });
            request.check(used.unwrap());
        }
        assert!(
            !driver.call.is_signalled().unwrap(),
            "a call without a descriptor"
        );
        rig.assert_exactly_once(&[500]);
    }
}

/// No call descriptor, then one, then none, with requests in flight all the time.
#[test]
fn a_call_descriptor_comes_and_goes() {
    let rig = Rig::start(
        "a_call_descriptor_comes_and_goes",
        &[Kind::Epoll],
        1,
        Answer::Pool,
    );
    let mut session = Session::builder().connect(&rig.path);
    let mut driver = session.queues.remove(0);
    let call = driver.call.as_raw_fd();
    let mut load = EchoLoad::new(&mut driver, 16, 64);
    for _ in 0..300 {
        load.fill();
        session.fe().set_vring_call(0, None).unwrap();
        session.fe().set_vring_call(0, Some(call)).unwrap();
        load.drain();
    }
    drop(load);
    rig.assert_exactly_once(&[300 * 16]);
}

//! In-band notifications: kicks, calls and errors as messages.

use std::os::fd::AsRawFd;
use std::time::Duration;

use vu_server::{Context, ServerBuilder};

use super::device::{Event, SOON};
use super::rig::{Bad, Rig, acknowledging, alive, run, run_in, run_with};
use crate::sim::echo::EchoRequest;
use crate::sim::wire::{self, backend_req, feature, protocol_feature, req};
use crate::sim::{BackendChannel, Deadline, Session, SessionBuilder, eventually};

/// Long enough to notice what must not come; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);
const IN_BAND: u64 = protocol_feature::INBAND_NOTIFICATIONS;

#[track_caller]
fn run_in_band(name: &str, test: impl FnOnce(&Rig)) {
    run_with(name, |b: ServerBuilder| b.in_band_notifications(true), test);
}

fn builder(rig: &Rig) -> SessionBuilder {
    rig.builder()
        .protocol_features(IN_BAND)
        // Every completion calls.
        .without_features(feature::EVENT_IDX)
        .without_call_fd()
        .without_kick_fd()
}

fn channel(session: &Session) -> &BackendChannel {
    session.backend.as_ref().expect("a channel")
}

fn kick(session: &Session, index: u32) {
    let state = wire::vring_state(index, 0);
    session.fe().set(req::VRING_KICK, &state, &[]).unwrap();
}

/// The next message is this one, about this queue, and wants to be acknowledged.
#[track_caller]
fn expect(session: &Session, id: u32, index: u32) {
    let message = channel(session).recv().unwrap();
    assert_eq!(
        (message.header.request, &message.body),
        (id, &wire::vring_state(index, 0))
    );
    assert!(message.needs_reply() && message.fds.is_empty());
    channel(session).ack(&message, 0).unwrap();
}

/// A request there and back, with a kick in between, and the call that tells of it.
#[track_caller]
fn round_trip(session: &mut Session, index: usize) {
    let queue = &mut session.queues[index];
    let mut request = EchoRequest::new(queue.memory(), 8, 8);
    request.send(b"in-band!");
    let head = queue.add(&request.segs()).unwrap();
    queue.publish().unwrap();
    kick(session, index as u32);
    expect(session, backend_req::VRING_CALL, index as u32);
    let used = session.queues[index].poll_used().unwrap().expect("used");
    assert_eq!(used.head, head);
    request.check(used);
}

#[test]
fn rings_without_descriptors_are_kicked_and_called_by_messages() {
    run_in_band("in_band", |rig| {
        let mut s = builder(rig).connect(rig.path());
        assert!(s.has_protocol_feature(IN_BAND));
        settle(&s);
        for round in 0..20 {
            round_trip(&mut s, round % 2);
        }
        alive(s.fe());
        // Stopped and started again they go on.
        for index in 0..2 {
            s.stop_queue(index);
            s.start_queue(index);
        }
        settle(&s);
        round_trip(&mut s, 1);
        round_trip(&mut s, 0);
    });
}

/// Takes the calls that a start may send.
fn settle(session: &Session) {
    while channel(session).pending_within(EARLY).unwrap() {
        let message = channel(session).recv().unwrap();
        assert_eq!(message.header.request, backend_req::VRING_CALL);
        channel(session).ack(&message, 0).unwrap();
    }
}

#[test]
fn nothing_is_polled_when_kicks_are_messages() {
    run_in_band("not_polled", |rig| {
        let mut s = builder(rig).connect(rig.path());
        settle(&s);
        let queue = &mut s.queues[0];
        let mut request = EchoRequest::new(queue.memory(), 8, 8);
        request.send(b"in-band!");
        queue.add(&request.segs()).unwrap();
        queue.publish().unwrap();
        assert!(!channel(&s).pending_within(EARLY).unwrap(), "nobody kicked");
        kick(&s, 0);
        expect(&s, backend_req::VRING_CALL, 0);
        request.check(s.queues[0].poll_used().unwrap().expect("used"));
    });
}

#[test]
fn a_kick_starts_a_ring() {
    run_in_band("started", |rig| {
        let mut s = builder(rig).not_started().connect(rig.path());
        let layout = s.queues[1].ring.layout();
        let addr = layout.vring_addr(&s.memory, 1).unwrap();
        let fe = s.fe();
        fe.set_vring_num(1, layout.size.into()).unwrap();
        fe.set_vring_addr(&addr).unwrap();
        fe.set_vring_enable(1, true).unwrap();
        assert_eq!(rig.device.count(|e| *e == Event::QueueStarted(1)), 0);
        round_trip(&mut s, 1);
        rig.device.take_event(Event::QueueStarted(1));
        s.stop_queue(1);
        rig.device.take_event(Event::QueueStopped(1));
        round_trip_after_base(&mut s);
    });
}

/// GET_VRING_BASE stops it, and the next kick starts it where it was.
#[track_caller]
fn round_trip_after_base(s: &mut Session) {
    round_trip(s, 1);
    round_trip(s, 1);
}

#[test]
fn descriptors_are_preferred_where_there_are_some() {
    run_in_band("preferred", |rig| {
        let mut s = rig
            .builder()
            .protocol_features(IN_BAND)
            .without_features(feature::EVENT_IDX)
            .connect(rig.path());
        super::rig::works(&mut s);
        assert!(!channel(&s).pending_within(EARLY).unwrap(), "no message");
        // A kick as a message serves the ring all the same.
        let queue = &mut s.queues[0];
        let mut request = EchoRequest::new(queue.memory(), 8, 8);
        request.send(b"in-band!");
        queue.add(&request.segs()).unwrap();
        queue.publish().unwrap();
        kick(&s, 0);
        let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        request.check(used);
        // The call descriptor goes: messages; it comes back: none.
        s.fe().set_vring_call(0, None).unwrap();
        expect(&s, backend_req::VRING_CALL, 0);
        round_trip(&mut s, 0);
        let call = s.queues[0].call.as_raw_fd();
        s.fe().set_vring_call(0, Some(call)).unwrap();
        super::rig::works(&mut s);
        assert!(!channel(&s).pending_within(EARLY).unwrap(), "no message");
    });
}

#[test]
fn a_broken_ring_without_an_err_descriptor_says_so_in_a_message() {
    run_in_band("broken", |rig| {
        let mut s = builder(rig).connect(rig.path());
        s.fe().set_vring_err(0, None).unwrap();
        settle(&s);
        s.queues[0].publish_raw(0xffff).unwrap();
        kick(&s, 0);
        expect(&s, backend_req::VRING_ERR, 0);
        rig.device
            .take("broken ring", |e| matches!(e, Event::RingBroken { .. }));
        round_trip(&mut s, 1);
    });
}

#[test]
fn calls_that_nobody_acknowledges_merge() {
    run_in_band("merged", |rig| {
        let mut s = builder(rig).connect(rig.path());
        settle(&s);
        // No answer is sent, so that 64 messages are on their way at most, and one more waits.
        let mut request = EchoRequest::new(s.queues[0].memory(), 8, 8);
        for _ in 0..300 {
            request.send(b"in-band!");
            let queue = &mut s.queues[0];
            queue.add(&request.segs()).unwrap();
            queue.publish().unwrap();
            kick(&s, 0);
            let mut used = None;
            eventually("used", Deadline::after(SOON), true, || {
                used = s.queues[0].poll_used().unwrap();
                used.is_some()
            });
            request.check(used.expect("used"));
        }
        let mut calls = Vec::new();
        while channel(&s).pending_within(EARLY).unwrap() {
            calls.push(channel(&s).recv().unwrap());
        }
        assert!((1..=64).contains(&calls.len()), "{} calls", calls.len());
        for call in calls {
            channel(&s).ack(&call, 0).unwrap();
        }
        settle(&s);
        round_trip(&mut s, 0);
    });
}

#[test]
fn a_kick_that_comes_while_detached_is_served_where_the_ring_goes() {
    let in_band = |b: ServerBuilder| b.in_band_notifications(true);
    run_in("detached", in_band, |rig, ctx| {
        let mut s = builder(rig).connect(rig.path());
        let started = |ctx: &Context, count| {
            eventually("rings started", Deadline::after(SOON), count, || {
                ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
                rig.device.count(|e| matches!(e, Event::QueueStarted(_)))
            });
        };
        started(ctx, 2);
        rig.server.detach().unwrap();
        let mut request = EchoRequest::new(s.queues[0].memory(), 8, 8);
        request.send(b"in-band!");
        let queue = &mut s.queues[0];
        queue.add(&request.segs()).unwrap();
        queue.publish().unwrap();
        kick(&s, 0);
        let other = Context::epoll().unwrap();
        rig.server.attach(&other).unwrap();
        started(&other, 4);
        eventually("used", Deadline::after(SOON), true, || {
            other.dispatch(Some(Duration::from_millis(10))).unwrap();
            match s.queues[0].poll_used().unwrap() {
                Some(used) => {
                    request.check(used);
                    true
                }
                None => false,
            }
        });
        rig.server.stop().unwrap();
    });
}

#[test]
fn kicks_of_no_ring_are_refused() {
    run_in_band("no_ring", |rig| {
        let s = builder(rig).connect(rig.path());
        for (index, num) in [(2, 0), (0x10000, 0), (u32::MAX, 0), (0, 1), (0, u32::MAX)] {
            rig.refused(s.fe(), &Bad::state(req::VRING_KICK, index, num));
        }
        alive(s.fe());
    });
}

#[test]
fn it_is_not_offered_unless_the_device_wants_it() {
    run("not_offered", |rig| {
        let fe = acknowledging(rig);
        let offered = fe.get_protocol_features().unwrap();
        assert_eq!(offered & IN_BAND, 0);
        rig.refused(&fe, &Bad::state(req::VRING_KICK, 0, 0));
        rig.refused(
            &fe,
            &Bad::u64(req::SET_PROTOCOL_FEATURES, offered | IN_BAND),
        );
        alive(&fe);
    });
}

#[test]
fn case_54_in_band_without_what_it_needs() {
    run_in_band("case_54", |rig| {
        for missing in [protocol_feature::BACKEND_REQ, protocol_feature::REPLY_ACK] {
            let fe = rig.frontend();
            let bits = fe.get_protocol_features().unwrap() & !missing;
            assert_ne!(bits & IN_BAND, 0);
            fe.send(req::SET_PROTOCOL_FEATURES, 0, &bits.to_ne_bytes(), &[])
                .unwrap();
            rig.dropped("INBAND alone", fe, "INBAND_NOTIFICATIONS without");
        }
    });
}

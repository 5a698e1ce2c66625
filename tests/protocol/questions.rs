//! Requests that the device answers, in its home context: what is asked, answered, refused, and what becomes
//! of a question whose front-end or server goes.

use std::sync::Arc;
use std::time::Duration;

use vu_server::{Capabilities, Context};

use super::device::{Event, OBJECT, SOON, Script};
use super::rig::{Bad, Rig, acknowledging, alive, handled, run, run_device, run_device_in, works};
use crate::sim::wire::{FLAG_NEED_REPLY, protocol_feature, req};
use crate::sim::{Deadline, EventFd, Frontend, Session, eventually};

/// Long enough to notice what must not come; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);

const MAC: [u8; 8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56, 0xff, 0xff];
const UUID: [u8; 16] = *b"0123456789abcdef";

const ALL: u64 = protocol_feature::RARP | protocol_feature::MTU | protocol_feature::SHARED_OBJECT;

/// Two rings that run, and all that the device can do negotiated.
#[track_caller]
fn session(rig: &Rig) -> Session {
    rig.builder().protocol_features(ALL).connect(rig.path())
}

#[track_caller]
fn run_able(name: &str, test: impl FnOnce(&Rig)) {
    run_device(name, Script::able(Capabilities::all()), |b| b, test);
}

#[track_caller]
fn run_able_in(name: &str, test: impl FnOnce(&Rig, &Arc<Context>)) {
    run_device_in(name, Script::able(Capabilities::all()), |b| b, test);
}

fn ask_for_object(fe: &Frontend) {
    fe.send(req::GET_SHARED_OBJECT, 0, &UUID, &[]).unwrap();
}

#[track_caller]
fn receive_object(fe: &Frontend) {
    let reply = fe.recv_reply(req::GET_SHARED_OBJECT).unwrap();
    assert!(reply.body.is_empty(), "{:x?}", reply.body);
    let [fd] = <[_; 1]>::try_from(reply.fds).expect("one descriptor");
    assert_eq!(EventFd::from_fd(fd).take().unwrap(), OBJECT);
}

/// Dispatches until the front-end has an answer.
#[track_caller]
fn dispatch_until_answered(ctx: &Context, fe: &Frontend) {
    eventually("answered", Deadline::after(SOON), true, || {
        ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
        fe.answered_within(Duration::ZERO).unwrap()
    });
}

#[test]
fn the_device_answers() {
    run_able("answers", |rig| {
        let mut s = session(rig);
        s.fe().set(req::SEND_RARP, &MAC, &[]).unwrap();
        rig.device
            .take_event(Event::Rarp([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        for mtu in [68, 1500, 65535u16] {
            let body = u64::from(mtu).to_ne_bytes();
            s.fe().set(req::NET_SET_MTU, &body, &[]).unwrap();
            rig.device.take_event(Event::Mtu(mtu));
        }
        ask_for_object(s.fe());
        receive_object(s.fe());
        rig.device.take_event(Event::SharedObject(UUID));
        works(&mut s);
    });
}

#[test]
fn what_a_device_does_not_implement_is_neither_offered_nor_asked() {
    run("unable", |rig| {
        let fe = acknowledging(rig);
        let offered = fe.get_protocol_features().unwrap();
        let all = protocol_feature::RARP | protocol_feature::MTU | protocol_feature::SHARED_OBJECT;
        assert_eq!(offered & all, 0);
        rig.refused(&fe, &Bad::new(req::SEND_RARP, MAC));
        rig.refused(&fe, &Bad::u64(req::NET_SET_MTU, 1500));
        ask_for_object(&fe);
        let reply = fe.recv_reply(req::GET_SHARED_OBJECT).unwrap();
        assert!(reply.body.is_empty() && reply.fds.is_empty());
        rig.refused(&fe, &Bad::u64(req::SET_PROTOCOL_FEATURES, ALL));
        alive(&fe);
    });
}

#[test]
fn what_is_offered_must_be_acknowledged_before_it_is_used() {
    run_able("unacknowledged", |rig| {
        let mut fe = rig.frontend();
        let offered = fe.get_protocol_features().unwrap();
        assert_eq!(offered & ALL, ALL);
        fe.set_protocol_features(protocol_feature::REPLY_ACK)
            .unwrap();
        rig.refused(&fe, &Bad::new(req::SEND_RARP, MAC));
        rig.refused(&fe, &Bad::u64(req::NET_SET_MTU, 1500));
        assert_eq!(
            rig.device
                .count(|e| matches!(e, Event::Rarp(_) | Event::Mtu(_))),
            0
        );
    });
}

#[test]
fn an_mtu_beyond_the_limits_never_reaches_the_device() {
    run_able("mtu_limits", |rig| {
        let mut s = session(rig);
        let bad = [0, 67, 65536, u64::MAX].map(|mtu| Bad::u64(req::NET_SET_MTU, mtu));
        rig.all_refused(&mut s, &bad);
        assert_eq!(rig.device.count(|e| matches!(e, Event::Mtu(_))), 0);
    });
}

#[test]
fn a_device_refuses() {
    run_able("refuses", |rig| {
        rig.device.fail_with(libc::ERANGE);
        let mut s = session(rig);
        rig.all_refused(
            &mut s,
            &[
                Bad::new(req::SEND_RARP, MAC),
                Bad::u64(req::NET_SET_MTU, 9000),
            ],
        );
        // With its own form of an error, and one reply only.
        for flags in [0, FLAG_NEED_REPLY] {
            s.fe()
                .send(req::GET_SHARED_OBJECT, flags, &UUID, &[])
                .unwrap();
            let reply = s.fe().recv_reply(req::GET_SHARED_OBJECT).unwrap();
            assert!(reply.body.is_empty() && reply.fds.is_empty());
            works(&mut s);
        }
        // Nothing depends on a RARP.
        s.fe().send(req::SEND_RARP, 0, &MAC, &[]).unwrap();
        works(&mut s);
        s.disconnect();
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        // A refused MTU does, and this front-end does not listen for it.
        let fe = acknowledging(rig);
        fe.send(req::NET_SET_MTU, 0, &9000u64.to_ne_bytes(), &[])
            .unwrap();
        rig.dropped("an MTU that is refused", fe, "NET_SET_MTU");
    });
}

#[test]
fn a_question_waits_while_the_server_is_detached() {
    run_able_in("detached", |rig, ctx| {
        let fe = heard_of(rig, ctx);
        rig.server.detach().unwrap();
        ask_for_object(&fe);
        assert!(!fe.answered_within(EARLY).unwrap());
        assert_eq!(rig.device.count(|e| matches!(e, Event::SharedObject(_))), 0);
        // Into another context than before.
        let other = Arc::new(Context::epoll().unwrap());
        rig.server.attach(&other).unwrap();
        dispatch_until_answered(&other, &fe);
        receive_object(&fe);
        rig.server.stop().unwrap();
    });
}

/// A connection that the device has heard of, in a context that this thread dispatches.
#[track_caller]
fn heard_of(rig: &Rig, ctx: &Context) -> Frontend {
    let mut fe = Frontend::connect(rig.path()).unwrap();
    alive(&fe);
    let bits = fe.get_protocol_features().unwrap();
    fe.set_protocol_features(bits).unwrap();
    eventually("connections heard of", Deadline::after(SOON), 1, || {
        ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
        rig.device.connections()
    });
    fe
}

#[test]
fn a_question_that_nobody_heard_goes_with_its_front_end() {
    run_able_in("unheard", |rig, ctx| {
        let fe = heard_of(rig, ctx);
        ask_for_object(&fe);
        assert!(!fe.answered_within(EARLY).unwrap());
        assert_eq!(handled(rig, req::GET_SHARED_OBJECT), 1);
        drop(fe);
        // The internal thread has given up when it counts this.
        eventually("protocol errors", Deadline::after(SOON), 1, || {
            rig.server.stats().protocol_errors
        });
        eventually("ends heard of", Deadline::after(SOON), 1, || {
            ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
            rig.device
                .count(|e| matches!(e, Event::Disconnected { .. }))
        });
        assert_eq!(rig.device.count(|e| matches!(e, Event::SharedObject(_))), 0);
        // And the next one is served.
        let fe = Frontend::connect(rig.path()).unwrap();
        alive(&fe);
    });
}

#[test]
fn a_late_answer_is_dropped_with_its_descriptor() {
    run_able("late", |rig| {
        let fe = acknowledging(rig);
        rig.device.mute(true);
        ask_for_object(&fe);
        rig.device.take_event(Event::SharedObject(UUID));
        drop(fe);
        eventually("protocol errors", Deadline::after(SOON), 1, || {
            rig.server.stats().protocol_errors
        });
        rig.device.mute(false);
        rig.left("the question", "went away");
        // That the descriptor is closed shows at the end.
    });
}

#[test]
fn a_stop_does_not_wait_for_an_answer() {
    // In a context that nobody dispatches but the stop, and detached.
    for detached in [false, true] {
        run_able_in("stopped", |rig, ctx| {
            let fe = heard_of(rig, ctx);
            if detached {
                rig.server.detach().unwrap();
            }
            ask_for_object(&fe);
            eventually("requests", Deadline::after(SOON), 1, || {
                handled(rig, req::GET_SHARED_OBJECT)
            });
            rig.server.stop().unwrap();
            fe.wait_closed().unwrap();
        });
    }
}

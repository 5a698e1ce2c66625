//! The device status, and resets of every kind with requests in flight.

use std::time::Duration;

use super::device::Event;
use super::rig::{Bad, Rig, run, works};
use crate::sim::Session;
use crate::sim::echo::EchoRequest;
use crate::sim::wire::{FLAG_NEED_REPLY, req};

const EARLY: Duration = Duration::from_millis(30);

#[test]
fn case_66_the_status_is_one_byte() {
    run("case_66", |rig| {
        let mut s = rig.session();
        for status in [1, 3, 11, 15, 0xff, 0x4f] {
            s.fe().set_status(status).unwrap();
            assert_eq!(s.fe().get_status().unwrap(), status);
        }
        rig.all_refused(
            &mut s,
            &[
                Bad::u64(req::SET_STATUS, 0x100),
                Bad::u64(req::SET_STATUS, 0x10f),
                Bad::u64(req::SET_STATUS, u64::MAX),
            ],
        );
        assert_eq!(s.fe().get_status().unwrap(), 0x4f, "status after refusals");
        assert_eq!(rig.device.count(|event| *event == Event::Reset), 0);
    });
}

/// Puts three requests in flight on queue 0.
fn in_flight(rig: &Rig, s: &mut Session) {
    rig.device.hold(true);
    for _ in 0..3 {
        let request = EchoRequest::new(&s.memory, 32, 32);
        s.queues[0].submit(&request.segs()).unwrap();
    }
    rig.device.wait_held(3);
    rig.device.hold(false);
}

/// Starts again from zero, as a guest does after a reset.
#[track_caller]
fn restart(s: &mut Session) {
    s.reset_rings();
    s.fe().set_features(s.features).unwrap();
    s.start_all();
    works(s);
}

#[track_caller]
fn reset_with_requests_in_flight(rig: &Rig, request: u32, body: &[u8]) {
    let mut s = rig.session();
    works(&mut s);
    in_flight(rig, &mut s);
    let resets = rig.device.count(|event| *event == Event::Reset);
    s.fe().send(request, FLAG_NEED_REPLY, body, &[]).unwrap();
    s.fe().wait_consumed().unwrap();
    assert!(
        !s.fe().answered_within(EARLY).unwrap(),
        "acknowledged before the drain"
    );
    assert_eq!(
        rig.device.count(|event| *event == Event::Reset),
        resets,
        "reset before the drain"
    );
    rig.device.release();
    assert_eq!(s.fe().recv_reply(request).unwrap().u64().unwrap(), 0);
    rig.device.take_event(Event::Reset);
    assert_eq!(
        s.queues[0].ring.used_idx().unwrap(),
        4,
        "drained, not thrown away"
    );
    // Nothing of the old rings is left: not even a base, unless the front-end has yet to ask for it.
    let bases = if request == req::SET_STATUS {
        [4, 1]
    } else {
        [0, 0]
    };
    assert_eq!(s.fe().get_vring_base(0).unwrap(), bases[0]);
    assert_eq!(s.fe().get_vring_base(1).unwrap(), bases[1]);
    restart(&mut s);
    s.disconnect();
    rig.device
        .take("end", |event| matches!(event, Event::Disconnected { .. }));
}

#[test]
fn case_93_resets_with_requests_in_flight() {
    run("case_93", |rig| {
        reset_with_requests_in_flight(rig, req::RESET_DEVICE, &[]);
        reset_with_requests_in_flight(rig, req::RESET_OWNER, &[]);
        reset_with_requests_in_flight(rig, req::SET_STATUS, &0u64.to_ne_bytes());
    });
}

#[test]
fn a_reset_of_the_device_resets_the_status() {
    run("reset_status", |rig| {
        let mut s = rig.session();
        assert_eq!(s.fe().get_status().unwrap(), 15);
        s.fe().reset_device().unwrap();
        assert_eq!(s.fe().get_status().unwrap(), 0);
        rig.device.take_event(Event::Reset);
        restart(&mut s);
        // Zero again is no reset.
        s.stop_all();
        rig.device.take_event(Event::Reset);
        s.fe().set_status(0).unwrap();
        assert_eq!(s.fe().get_status().unwrap(), 0);
        assert_eq!(rig.device.count(|event| *event == Event::Reset), 0);
    });
}

#[test]
fn a_reset_of_rings_that_do_not_run() {
    run("reset_idle", |rig| {
        let mut s = rig.builder().not_started().connect(rig.path());
        s.fe().reset_device().unwrap();
        s.fe().reset_owner().unwrap();
        s.start_all();
        works(&mut s);
        for _ in 0..50 {
            s.fe().reset_device().unwrap();
            restart(&mut s);
        }
    });
}

#[test]
fn a_reset_clears_a_broken_ring() {
    run("reset_broken", |rig| {
        for request in [req::RESET_DEVICE, req::RESET_OWNER] {
            let mut s = rig.session();
            s.queues[0].publish_raw(9999).unwrap();
            s.queues[0].kick_always().unwrap();
            rig.broke("a head that is none", &s, "head 9999");
            s.fe().set(request, &[], &[]).unwrap();
            restart(&mut s);
            s.disconnect();
        }
    });
}

#[test]
fn a_front_end_that_goes_during_a_reset() {
    run("gone_in_reset", |rig| {
        let mut s = rig.session();
        in_flight(rig, &mut s);
        s.fe()
            .send(req::RESET_DEVICE, FLAG_NEED_REPLY, &[], &[])
            .unwrap();
        s.fe().wait_consumed().unwrap();
        let used = s.queues[0].ring.used_idx().unwrap();
        s.abort();
        rig.device.release();
        rig.device
            .take("end", |event| matches!(event, Event::Disconnected { .. }));
        // The internal thread may have seen the completions before the end; never a part of them.
        let now = s.queues[0].ring.used_idx().unwrap();
        assert!(now == used || now == used + 3, "{used} to {now}");
        works(&mut rig.session());
    });
}

/// QEMU 7.2 resets the status of a device before it asks where its rings stand, whenever the guest is paused.
#[test]
fn a_reset_of_the_status_leaves_where_the_rings_stand() {
    run("reset_base", |rig| {
        let mut s = rig.session();
        for pause in 1..3 {
            works(&mut s);
            s.fe().set_status(0).unwrap();
            assert_eq!(s.stop_queue(0), pause);
            assert_eq!(s.stop_queue(0), pause);
            assert_eq!(s.stop_queue(1), pause);
            s.fe().set_features(s.features).unwrap();
            s.start_all();
        }
        works(&mut s);
    });
}

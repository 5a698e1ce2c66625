//! The channel on which the back-end speaks first: changes of the config space.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::device::SOON;
use super::rig::{Rig, run, works};
use crate::sim::wire::{self, backend_req, protocol_feature, req};
use crate::sim::{BackendChannel, Deadline, Session, eventually, process};

/// Long enough to notice what must not come; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);

fn change(rig: &Rig) {
    let byte = rig.config()[0].wrapping_add(1);
    rig.server.set_config(0, &[byte]).unwrap();
}

fn channel(s: &Session) -> &BackendChannel {
    s.backend.as_ref().expect("a channel")
}

#[test]
fn changes_are_announced() {
    run("announced", |rig| {
        let s = rig.session();
        for round in 0..10u8 {
            rig.server.set_config(4, &[100 + round]).unwrap();
            channel(&s).expect_config_change().unwrap();
            assert_eq!(s.fe().get_config(4, 1).unwrap(), [100 + round]);
        }
        assert_eq!(rig.server.stats().config_changes, 10);
        // The same again is no change.
        rig.server.set_config(4, &[109]).unwrap();
        assert!(
            !channel(&s).pending_within(EARLY).unwrap(),
            "nothing has changed"
        );
        // What the front-end writes itself it knows.
        s.fe().set_config(16, 0, &[1]).unwrap();
        assert!(!channel(&s).pending_within(EARLY).unwrap(), "its own write");
    });
}

#[test]
fn a_channel_that_nobody_reads() {
    run("unread", |rig| {
        let mut s = rig.session();
        for _ in 0..20_000 {
            change(rig);
        }
        works(&mut s);
        let last = rig.config()[0];
        // Whatever was merged, the last change is announced.
        let mut count = 0;
        loop {
            channel(&s).expect_config_change().unwrap();
            count += 1;
            let seen = s.fe().get_config(0, 1).unwrap()[0];
            if !channel(&s).pending_within(EARLY).unwrap() {
                assert_eq!(seen, last);
                break;
            }
        }
        assert!((1..=20_000).contains(&count));
        change(rig);
        channel(&s).expect_config_change().unwrap();
        works(&mut s);
    });
}

#[test]
fn a_channel_that_is_closed() {
    run("closed", |rig| {
        let mut s = rig.session();
        s.backend = None;
        for _ in 0..10 {
            change(rig);
            works(&mut s);
        }
        // And a new one.
        s.backend = Some(s.fe().set_backend_req_fd().unwrap());
        change(rig);
        channel(&s).expect_config_change().unwrap();
    });
}

#[test]
fn case_28_a_channel_that_is_replaced() {
    run("replaced", |rig| {
        let mut s = rig.session();
        let fds = process::open_fds();
        for _ in 0..10 {
            let new = s.fe().set_backend_req_fd().unwrap();
            let old = s.backend.replace(new).expect("a channel");
            old.wait_closed().unwrap();
            drop(old);
            change(rig);
            channel(&s).expect_config_change().unwrap();
        }
        assert_eq!(process::open_fds(), fds);
        works(&mut s);
    });
}

#[test]
fn a_channel_on_which_nonsense_comes() {
    run("nonsense", |rig| {
        let mut s = rig.session();
        let (ours, theirs) = UnixStream::pair().unwrap();
        s.fe()
            .set(req::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])
            .unwrap();
        drop(theirs);
        // A reply that nobody asked for, with a descriptor.
        let socket = crate::sim::socket::Socket::new(ours.try_clone().unwrap());
        let flags = wire::VERSION | wire::FLAG_REPLY;
        let reply = wire::message(backend_req::CONFIG_CHANGE_MSG, flags, &[0; 8]);
        let fds = process::open_fds();
        socket
            .send_all(&reply, &[ours.as_raw_fd()], Deadline::after(SOON))
            .unwrap();
        socket.wait_closed(Deadline::after(SOON)).unwrap();
        eventually(
            "descriptors",
            Deadline::after(SOON),
            fds - 1,
            process::open_fds,
        );
        change(rig);
        works(&mut s);
        // What is no message at all.
        let (ours, theirs) = UnixStream::pair().unwrap();
        s.fe()
            .set(req::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])
            .unwrap();
        drop(theirs);
        let socket = crate::sim::socket::Socket::new(ours);
        socket
            .send_all(&[0xff; 64], &[], Deadline::after(SOON))
            .unwrap();
        socket.wait_closed(Deadline::after(SOON)).unwrap();
        change(rig);
        works(&mut s);
    });
}

#[test]
fn a_front_end_without_a_channel() {
    run("no_channel", |rig| {
        let without = protocol_feature::BACKEND_REQ;
        let mut s = rig
            .builder()
            .without_protocol_features(without)
            .connect(rig.path());
        assert!(s.backend.is_none());
        change(rig);
        works(&mut s);
        assert_eq!(rig.server.stats().config_changes, 0);
    });
}

#[test]
fn a_change_without_a_front_end() {
    run("no_front_end", |rig| {
        change(rig);
        let mut s = rig.session();
        works(&mut s);
        s.disconnect();
        change(rig);
        let s = rig.session();
        assert_eq!(s.fe().get_config(0, 1).unwrap(), [rig.config()[0]]);
    });
}

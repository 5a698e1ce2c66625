//! The outgoing queue: resumable, in order, descriptors with the first byte.

use nix::sys::socket::{setsockopt, sockopt};

use super::super::recvmsg::recvmsg;
use super::*;
use crate::protocol::MAX_BODY;

/// Reads what the peer of a transport has been sent, with the same code.
fn peer_of(theirs: OwnedFd) -> Transport {
    Transport::new(theirs, Expect::Replies)
}

#[test]
fn a_reply_arrives_with_its_descriptor() {
    let (mut transport, theirs) = pair();
    let (probe, fd) = Probe::new();
    assert!(!transport.wants_write());
    transport.enqueue(Message::reply(31, vec![9; 24], vec![fd]));
    assert!(transport.wants_write());
    assert_eq!(transport.flush(), Ok(true));
    assert!(!transport.wants_write());

    let mut peer = peer_of(theirs);
    let message = peer.receive().expect("legal").expect("complete");
    assert_eq!((message.header.request, message.header.size), (31, 24));
    assert_eq!(message.body, [9; 24]);
    assert_eq!(inodes(&message.fds), [probe.inode]);
    drop(message);
    assert!(probe.gets_closed(), "sent descriptors are not kept");
}

#[test]
fn a_peer_that_does_not_read_stops_the_queue_and_not_the_caller() {
    const COUNT: u32 = 300;
    let (mut transport, theirs) = pair();
    let (probes, fds) = Probe::many(COUNT as usize / 10);
    let mut fds = fds.into_iter();
    for index in 0..COUNT {
        let with: Vec<OwnedFd> = (index % 10 == 0)
            .then(|| fds.next())
            .flatten()
            .into_iter()
            .collect();
        transport.enqueue(Message::reply(index, vec![index as u8; MAX_BODY], with));
    }
    assert_eq!(transport.flush(), Ok(false), "more than a socket holds");
    assert_eq!(transport.flush(), Ok(false));
    assert!(transport.wants_write());

    let mut peer = peer_of(theirs);
    let mut next = 0;
    while next < COUNT {
        let before = next;
        while let Some(message) = peer.receive().expect("legal") {
            assert_eq!(message.header.request, next);
            assert_eq!(message.body, vec![next as u8; MAX_BODY]);
            let expected = probes.get(next as usize / 10).filter(|_| next % 10 == 0);
            assert_eq!(
                inodes(&message.fds),
                Vec::from_iter(expected.map(|p| p.inode))
            );
            next += 1;
        }
        assert!(next > before, "no progress after {before}");
        transport.flush().expect("the peer is there");
    }
    assert!(!transport.wants_write());
    assert!(probes.iter().all(Probe::gets_closed));
}

#[test]
fn a_closed_peer_empties_the_queue() {
    let (mut transport, theirs) = pair();
    hang_up(theirs, &transport);
    let (probe, fd) = Probe::new();
    transport.enqueue(Message::reply(1, vec![0; 8], Vec::new()));
    transport.enqueue(Message::reply(31, vec![0; 24], vec![fd]));
    assert_eq!(transport.flush(), Err(TransportError::ClosedBeforeSend));
    assert!(!transport.wants_write());
    assert!(probe.gets_closed());
    assert_eq!(transport.flush(), Ok(true));
}

#[test]
fn a_request_of_the_back_end_is_a_request() {
    let (mut transport, theirs) = pair();
    transport.enqueue(Message::request(2, true, Vec::new(), Vec::new()));
    assert_eq!(transport.flush(), Ok(true));
    let mut peer = Transport::new(theirs, Expect::Requests);
    let message = peer.receive().expect("legal").expect("complete");
    assert!(message.header.need_reply());
    assert_eq!((message.header.request, message.header.size), (2, 0));
}

/// Reads in small pieces, so that the socket often has room for a part of a
/// message only.
#[test]
fn descriptors_go_with_the_first_part_only() {
    const COUNT: usize = 20;
    let (mut transport, theirs) = pair();
    setsockopt(&transport, sockopt::SndBuf, &1).expect("SO_SNDBUF");
    let (probes, fds) = Probe::many(COUNT);
    let mut expected = Vec::new();
    for (index, fd) in fds.into_iter().enumerate() {
        let message = Message::reply(index as u32, vec![index as u8; MAX_BODY], vec![fd]);
        expected.extend_from_slice(&message.header.encode());
        expected.extend_from_slice(&message.body);
        transport.enqueue(message);
    }
    let (mut bytes, mut received) = (Vec::new(), Vec::new());
    while bytes.len() < expected.len() {
        transport.flush().expect("the peer is there");
        let mut piece = [0; 1000];
        let read = recvmsg(theirs.as_fd(), &mut piece, &mut received).expect("no stall");
        assert!(read.bytes > 0, "no end");
        bytes.extend_from_slice(&piece[..read.bytes]);
    }
    assert!(!transport.wants_write());
    assert_eq!(bytes, expected);
    let sent: Vec<u64> = probes.iter().map(|probe| probe.inode).collect();
    assert_eq!(inodes(&received), sent);
}

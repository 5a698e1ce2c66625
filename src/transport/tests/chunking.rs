//! Messages arrive whole, in order and with their descriptors, however the
//! stream is cut.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use proptest::prelude::*;

use super::*;
use crate::protocol::MAX_BODY;

/// A message, the lengths of the pieces in which it is written, and how many
/// descriptors come with each piece. What the pieces leave over is one more.
#[derive(Clone, Debug)]
struct Plan {
    id: u32,
    body: Vec<u8>,
    pieces: Vec<(usize, usize)>,
    /// Without descriptors: write it together with what precedes it.
    join: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let body = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..64),
        1 => prop::collection::vec(any::<u8>(), 0..=MAX_BODY),
    ];
    let pieces = prop::collection::vec((1usize..16, 0usize..4), 0..8);
    (0u32..60, body, pieces, any::<bool>()).prop_map(|(id, body, pieces, join)| Plan {
        id,
        body,
        pieces,
        join,
    })
}

/// One sendmsg(2): bytes and descriptors.
type Write = (Vec<u8>, Vec<OwnedFd>);

struct Script {
    writes: Vec<Write>,
    /// Per message the inodes of its descriptors.
    inodes: Vec<Vec<u64>>,
    probes: Vec<Probe>,
}

fn script(plans: &[Plan]) -> Script {
    let mut writes: Vec<Write> = Vec::new();
    let mut all_inodes = Vec::new();
    let mut probes = Vec::new();
    for plan in plans {
        let mut bytes = request(plan.id, &plan.body);
        let mut own = Vec::new();
        let bare = plan.pieces.iter().all(|piece| piece.1 == 0);
        if let Some(last) = writes.last_mut().filter(|_| plan.join && bare) {
            last.0.append(&mut bytes);
        }
        for &(length, count) in &plan.pieces {
            let rest = bytes.split_off(length.min(bytes.len()));
            if bytes.is_empty() {
                break;
            }
            let (watched, fds) = Probe::many(count);
            own.extend(inodes(&fds));
            probes.extend(watched);
            writes.push((bytes, fds));
            bytes = rest;
        }
        if !bytes.is_empty() {
            writes.push((bytes, Vec::new()));
        }
        all_inodes.push(own);
    }
    Script {
        writes,
        inodes: all_inodes,
        probes,
    }
}

fn receive_all(transport: &mut Transport, into: &mut Vec<Message>) {
    while let Some(message) = transport.receive().expect("legal input") {
        into.push(message);
    }
}

/// Performs the writes; whenever the socket is full, or at once if `eager`,
/// receives what is there.
fn play(
    transport: &mut Transport,
    theirs: &OwnedFd,
    writes: Vec<Write>,
    eager: bool,
) -> Vec<Message> {
    let mut received = Vec::new();
    for (bytes, mut fds) in writes {
        let mut sent = 0;
        while sent < bytes.len() {
            match write(theirs, &bytes[sent..], &fds) {
                Ok(more) => {
                    sent += more;
                    fds.clear();
                }
                Err(Errno::EAGAIN) => {
                    let before = received.len();
                    receive_all(transport, &mut received);
                    // A full socket holds more than one message.
                    assert!(received.len() > before, "no progress");
                }
                Err(errno) => panic!("sendmsg: {errno}"),
            }
        }
        if eager {
            receive_all(transport, &mut received);
        }
    }
    receive_all(transport, &mut received);
    received
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_chunking_gives_the_same_messages(
        plans in prop::collection::vec(plan(), 1..24),
        eager in any::<bool>(),
    ) {
        let (mut transport, theirs) = pair();
        let script = script(&plans);
        let received = play(&mut transport, &theirs, script.writes, eager);
        prop_assert_eq!(received.len(), plans.len());
        for ((message, plan), expected) in received.iter().zip(&plans).zip(&script.inodes) {
            prop_assert_eq!(message.header.request, plan.id);
            prop_assert_eq!(&message.body, &plan.body);
            prop_assert_eq!(&inodes(&message.fds), expected);
        }
        drop(received);
        for probe in &script.probes {
            prop_assert!(probe.gets_closed());
        }
    }
}

#[test]
fn one_byte_at_a_time() {
    let (mut transport, theirs) = pair();
    let (probe, fd) = Probe::new();
    let bytes = request(12, &[7; 8]);
    let mut fds = vec![fd];
    for (index, byte) in bytes.iter().enumerate() {
        assert!(
            transport.receive().expect("incomplete").is_none(),
            "{index}"
        );
        write_all(&theirs, &[*byte], &fds);
        fds.clear();
    }
    let message = transport.receive().expect("complete").expect("complete");
    assert_eq!(message.body, [7; 8]);
    assert_eq!(inodes(&message.fds), [probe.inode]);
    assert!(transport.receive().expect("nothing more").is_none());
    assert!(!probe.is_closed());
    drop(message);
    assert!(probe.gets_closed());
}

#[test]
fn two_hundred_requests_in_few_writes() {
    let (mut transport, theirs) = pair();
    let (_probes, fds) = Probe::many(2);
    let expected = inodes(&fds);
    let many: Vec<u8> = (0..100)
        .flat_map(|id| request(id, &[id as u8; 8]))
        .collect();
    for fd in fds {
        write_all(&theirs, &many, &[fd]);
    }
    for index in 0..200 {
        let message = transport.receive().expect("legal").expect("complete");
        assert_eq!(message.header.request, index % 100);
        assert_eq!(message.body, [(index % 100) as u8; 8]);
        let here = if index % 100 == 0 {
            vec![expected[index as usize / 100]]
        } else {
            vec![]
        };
        assert_eq!(inodes(&message.fds), here, "{index}");
    }
    assert!(transport.receive().expect("nothing more").is_none());
}

#[test]
fn a_body_that_looks_like_a_request_is_only_a_body() {
    let (mut transport, theirs) = pair();
    let inner = request(10, &[1; 8]);
    write_all(&theirs, &request(0xffff_ffff, &inner), &[]);
    write_all(&theirs, &request(1, &[]), &[]);
    let outer = transport.receive().expect("legal").expect("complete");
    assert_eq!((outer.header.request, outer.body), (0xffff_ffff, inner));
    let next = transport.receive().expect("legal").expect("complete");
    assert_eq!(next.header.request, 1);
}

#[test]
fn thirty_two_descriptors_are_accepted_and_close_on_exec() {
    let (mut transport, theirs) = pair();
    let (probes, fds) = Probe::many(32);
    let expected: Vec<u64> = probes.iter().map(|probe| probe.inode).collect();
    write_all(&theirs, &request(5, &[0; 8]), &fds);
    let message = transport.receive().expect("legal").expect("complete");
    assert_eq!(inodes(&message.fds), expected);
    for fd in &message.fds {
        let flags = fcntl(fd, FcntlArg::F_GETFD).expect("F_GETFD");
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
}

#[test]
fn a_reply_is_expected_only_on_the_back_end_channel() {
    let reply = crate::protocol::Header::reply(2, 8).encode();
    let bytes = [&reply[..], &[0; 8]].concat();
    let (transport, theirs) = pair();
    let mut transport = Transport::new(transport.socket, Expect::Replies);
    write_all(&theirs, &bytes, &[]);
    let message = transport.receive().expect("legal").expect("complete");
    assert!(message.header.is_reply());
    write_all(&theirs, &request(2, &[]), &[]);
    assert!(matches!(
        transport.receive(),
        Err(TransportError::Header(_))
    ));
}

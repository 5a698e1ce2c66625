//! Any bytes in any chunks, with descriptors of any kind at any place.
//!
//! The first byte says how far the connection has come before, and whether the server is stopped in the end.
//! Then come chunks: a control byte (length, whether descriptors follow, whether to wait until the server has
//! read what came before), a byte that says which descriptors, and the bytes themselves.

use std::net::Shutdown;

use super::peer::Peer;
use super::pick;
use super::sim::SplitDriver;
use super::sim::wire::{HEADER_LEN, Header, VERSION};
use super::world::World;

const LENGTH: u8 = 0x3f;
const WITH_FDS: u8 = 0x40;
const APART: u8 = 0x80;

/// Descriptors on one chunk; the largest is more than a message may have.
const COUNTS: [usize; 8] = [1, 1, 1, 1, 2, 3, 8, 33];

pub fn run(data: &[u8]) {
    let Some((&head, chunks)) = data.split_first() else {
        return;
    };
    let world = World::get();
    let mut peer = world.connect();
    let drivers = prelude(&mut peer, head);
    let requests = count_requests(&send_chunks(&world, &peer, chunks));
    if head & 0x80 != 0 {
        world.restart();
    } else {
        // Unless the server has closed already.
        let _ = peer.fe.shutdown(Shutdown::Write);
        let replies = std::iter::from_fn(|| peer.receive()).count();
        assert!(
            replies <= requests,
            "{replies} replies to {requests} requests"
        );
    }
    drop((peer, drivers));
    world.check_nothing_left();
}

/// Brings the connection to the state in which the stream begins.
fn prelude(peer: &mut Peer, head: u8) -> Vec<SplitDriver> {
    match head & 3 {
        0 => Vec::new(),
        1 => {
            peer.negotiate();
            Vec::new()
        }
        _ => {
            peer.negotiate();
            peer.share_memory();
            peer.start_rings()
        }
    }
}

/// Sends chunk by chunk until the input ends or the server closes; what was sent.
fn send_chunks(world: &World, peer: &Peer, mut data: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    while let Some((&control, rest)) = data.split_first() {
        data = rest;
        let fds = match data.split_first() {
            Some((&choice, rest)) if control & WITH_FDS != 0 => {
                data = rest;
                vec![world.fds.choose(choice); pick(choice >> 5, &COUNTS)]
            }
            _ => Vec::new(),
        };
        let length = usize::from(control & LENGTH).min(data.len());
        let (chunk, rest) = data.split_at(length);
        data = rest;
        if control & APART != 0 {
            peer.wait_consumed();
        }
        if !peer.send(chunk, &fds) {
            break;
        }
        sent.extend_from_slice(chunk);
    }
    sent
}

/// Requests in a stream, up to the first header that cannot be one.
fn count_requests(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let header = Header::decode(header);
        if header.flags & 3 != VERSION || rest.len() < header.size as usize {
            break;
        }
        bytes = &rest[header.size as usize..];
        count += 1;
    }
    count
}

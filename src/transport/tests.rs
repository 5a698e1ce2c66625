//! The transport over real sockets: every chunking, every end, every excess.

mod chunking;
mod failures;
mod sending;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use nix::sys::stat::fstat;
use nix::unistd::{pipe2, read};

use super::{Expect, Message, Transport, TransportError};

/// How long anything may take before a test fails.
const DEADLINE_MS: u16 = 10_000;

/// A transport and the other end of its socket.
fn pair() -> (Transport, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("socketpair");
    (Transport::new(ours, Expect::Requests), theirs)
}

/// Writes without blocking, as a front-end would; returns how much was taken.
fn write(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let bytes = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, control, flags, None)
}

/// Writes all bytes, which must fit into the socket's buffer.
fn write_all(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) {
    assert_eq!(write(socket, bytes, fds), Ok(bytes.len()));
}

/// The bytes of a request.
fn request(id: u32, body: &[u8]) -> Vec<u8> {
    let header = crate::protocol::Header::request(id, false, body.len() as u32);
    [&header.encode(), body].concat()
}

/// Watches one descriptor that is sent over a socket: the write end of a pipe
/// of which this is the read end. It can be told from all others, and the pipe
/// knows whether any copy of it is open anywhere, so a leak shows without
/// counting the descriptors of a process in which other tests run.
struct Probe {
    read_end: OwnedFd,
    inode: u64,
}

impl Probe {
    fn new() -> (Probe, OwnedFd) {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
        let inode = inode(&write_end);
        (Probe { read_end, inode }, write_end)
    }

    fn many(count: usize) -> (Vec<Probe>, Vec<OwnedFd>) {
        (0..count).map(|_| Probe::new()).unzip()
    }

    /// Whether every copy of the descriptor is closed by now.
    fn is_closed(&self) -> bool {
        match read(&self.read_end, &mut [0]) {
            Ok(0) => true,
            Err(Errno::EAGAIN) => false,
            other => panic!("unexpected: {other:?}"),
        }
    }

    /// Whether every copy of the descriptor gets closed. A test that starts a
    /// process may have given it copies of everything for a moment, until it
    /// executes its program; therefore the patience.
    fn gets_closed(&self) -> bool {
        wait_for_hang_up(&self.read_end);
        self.is_closed()
    }
}

/// Closes the peer's end and waits until no copy of it is left.
fn hang_up(theirs: OwnedFd, ours: &Transport) {
    drop(theirs);
    wait_for_hang_up(ours);
}

fn wait_for_hang_up(fd: impl AsFd) {
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let events = poll(&mut polled, DEADLINE_MS).expect("poll");
    assert_eq!(events, 1, "no hang-up within the deadline");
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).expect("fstat").st_ino
}

fn inodes(fds: &[OwnedFd]) -> Vec<u64> {
    fds.iter().map(inode).collect()
}

//! Whole messages over a connected UNIX stream socket, with the file
//! descriptors that belong to them.
//!
//! Both directions are state machines that stop at any byte: [`Transport`]
//! never blocks, its user polls the socket and calls again. Every call passes
//! MSG_DONTWAIT, so it does not depend on a file status flag that a process
//! sharing the socket may change.

mod error;
mod incoming;
mod outgoing;
mod recvmsg;
#[cfg(test)]
mod tests;

pub use error::TransportError;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};

use crate::protocol::Header;
use incoming::Incoming;
use outgoing::Outgoing;

/// One message with its descriptors, received or to be sent.
#[derive(Debug)]
pub struct Message {
    pub header: Header,
    /// `header.size` bytes.
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The reply to `request`. The body is at most [`MAX_BODY`] bytes.
    ///
    /// [`MAX_BODY`]: crate::protocol::MAX_BODY
    pub fn reply(request: u32, body: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        let header = Header::reply(request, body.len() as u32);
        Message { header, body, fds }
    }

    /// A request, for the back-end's own channel.
    pub fn request(request: u32, need_reply: bool, body: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        let header = Header::request(request, need_reply, body.len() as u32);
        Message { header, body, fds }
    }
}

/// What the peer of a [`Transport`] sends; anything else is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Requests: the peer is a front-end on the main socket.
    Requests,
    /// Replies: the peer is a front-end on the back-end channel.
    Replies,
}

/// A connected socket with one message being received and any number waiting
/// to be sent.
#[derive(Debug)]
pub struct Transport {
    socket: OwnedFd,
    expect: Expect,
    incoming: Incoming,
    outgoing: Outgoing,
    failed: Option<TransportError>,
}

impl Transport {
    /// Takes a connected socket of type AF_UNIX, SOCK_STREAM.
    pub fn new(socket: OwnedFd, expect: Expect) -> Transport {
        Transport {
            socket,
            expect,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            failed: None,
        }
    }

    /// Takes in what has arrived, until one message is complete (`Some`) or
    /// nothing more is there (`None`).
    ///
    /// It never reads a byte beyond the message it returns. So descriptors are
    /// matched to the right message, and what the peer has sent afterwards
    /// stays in the socket.
    ///
    /// An error ends the incoming direction: descriptors received so far are
    /// closed, and each later call fails in the same way.
    pub fn receive(&mut self) -> Result<Option<Message>, TransportError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let received = self.incoming.receive(self.socket.as_fd(), self.expect);
        received.inspect_err(|error| {
            self.failed = Some(*error);
            self.incoming = Incoming::default();
        })
    }

    /// Puts a message into the queue to be sent. Nothing bounds the queue but
    /// its user, who does not take another request while [`wants_write`] says
    /// that the peer has not read the last reply.
    ///
    /// [`wants_write`]: Transport::wants_write
    pub fn enqueue(&mut self, message: Message) {
        self.outgoing.push(message);
    }

    /// Sends what the socket takes; true when the queue is empty. After an
    /// error the queue is empty and its descriptors are closed.
    pub fn flush(&mut self) -> Result<bool, TransportError> {
        self.outgoing.flush(self.socket.as_fd())
    }

    /// Whether something waits to be sent, so that the socket should also be
    /// polled for writing.
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Ends both directions. The peer sees the end of the stream even if
    /// another process holds a duplicate of the socket. What it has sent
    /// before can still be received here.
    pub fn shutdown(&self) {
        // It fails only if the peer is gone already, which is the aim.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

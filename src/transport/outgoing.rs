//! The messages waiting to be sent.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{Message, TransportError};
use crate::protocol::HEADER_SIZE;

/// A queue of messages, the first perhaps sent in part.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Unsent>,
}

#[derive(Debug)]
struct Unsent {
    /// Header and body.
    bytes: Vec<u8>,
    sent: usize,
    /// Sent with the first byte, and closed then.
    fds: Vec<OwnedFd>,
}

impl Outgoing {
    pub(super) fn push(&mut self, message: Message) {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + message.body.len());
        bytes.extend_from_slice(&message.header.encode());
        bytes.extend_from_slice(&message.body);
        self.queue.push_back(Unsent {
            bytes,
            sent: 0,
            fds: message.fds,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends until the queue is empty (true) or the socket is full (false).
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<bool, TransportError> {
        while let Some(first) = self.queue.front_mut() {
            match first.send(socket) {
                Ok(()) if first.sent == first.bytes.len() => {
                    self.queue.pop_front();
                }
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => {
                    self.queue.clear();
                    return Err(send_error(errno));
                }
            }
        }
        Ok(true)
    }
}

impl Unsent {
    fn send(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let rest = [IoSlice::new(&self.bytes[self.sent..])];
        let fds: Vec<RawFd> = self.fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.sent += sendmsg::<()>(socket.as_raw_fd(), &rest, control, flags, None)?;
        self.fds.clear();
        Ok(())
    }
}

fn send_error(errno: Errno) -> TransportError {
    match errno {
        Errno::EPIPE => TransportError::ClosedBeforeSend,
        Errno::ECONNRESET => TransportError::Reset,
        errno => TransportError::System {
            call: "sendmsg",
            errno,
        },
    }
}

//! The message being received.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::recvmsg::recvmsg;
use super::{Expect, Message, TransportError};
use crate::protocol::{HEADER_SIZE, Header, MAX_FDS};

/// How far the current message has come. The header is complete once `header`
/// is set; only then is a body allocated, of a size that has been checked.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    raw_header: [u8; HEADER_SIZE],
    header: Option<Header>,
    body: Vec<u8>,
    /// Bytes received of the part that is not complete yet.
    filled: usize,
    fds: Vec<OwnedFd>,
}

/// How an attempt to complete a part ended.
enum Fill {
    Complete,
    WouldBlock,
    EndOfStream,
}

impl Incoming {
    /// Goes on until the message is complete or nothing more is there.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        expect: Expect,
    ) -> Result<Option<Message>, TransportError> {
        let header = match self.header {
            Some(header) => header,
            None => match self.receive_header(socket, expect)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        match fill(socket, &mut self.body, &mut self.filled, &mut self.fds)? {
            Fill::Complete => Ok(Some(self.take(header))),
            Fill::WouldBlock => Ok(None),
            Fill::EndOfStream => Err(TransportError::ClosedInBody {
                request: header.request,
                received: self.filled,
                size: self.body.len(),
            }),
        }
    }

    fn receive_header(
        &mut self,
        socket: BorrowedFd<'_>,
        expect: Expect,
    ) -> Result<Option<Header>, TransportError> {
        match fill(
            socket,
            &mut self.raw_header,
            &mut self.filled,
            &mut self.fds,
        )? {
            Fill::Complete => {}
            Fill::WouldBlock => return Ok(None),
            Fill::EndOfStream if self.filled == 0 => return Err(TransportError::Closed),
            Fill::EndOfStream => {
                return Err(TransportError::ClosedInHeader {
                    received: self.filled,
                });
            }
        }
        let header = Header::decode(&self.raw_header);
        match expect {
            Expect::Requests => header.check_request()?,
            Expect::Replies => header.check_reply()?,
        }
        self.header = Some(header);
        self.body = vec![0; header.size as usize];
        self.filled = 0;
        Ok(Some(header))
    }

    fn take(&mut self, header: Header) -> Message {
        let done = std::mem::take(self);
        Message {
            header,
            body: done.body,
            fds: done.fds,
        }
    }
}

/// Receives into `part` from `filled` on, but not a byte more than it holds.
/// Descriptors may come with any piece of a message, not only with its first
/// byte: all belong to the message.
fn fill(
    socket: BorrowedFd<'_>,
    part: &mut [u8],
    filled: &mut usize,
    fds: &mut Vec<OwnedFd>,
) -> Result<Fill, TransportError> {
    while *filled < part.len() {
        let before = fds.len();
        let received = match recvmsg(socket, &mut part[*filled..], fds) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Ok(Fill::WouldBlock),
            Err(Errno::ECONNRESET) => return Err(TransportError::Reset),
            Err(errno) => {
                return Err(TransportError::System {
                    call: "recvmsg",
                    errno,
                });
            }
        };
        let at_once = fds.len() - before;
        if received.truncated && at_once < MAX_FDS {
            return Err(TransportError::FdsLost { received: at_once });
        }
        if received.truncated || fds.len() > MAX_FDS {
            return Err(TransportError::TooManyFds);
        }
        if received.bytes == 0 {
            return Ok(Fill::EndOfStream);
        }
        *filled += received.bytes;
    }
    Ok(Fill::Complete)
}

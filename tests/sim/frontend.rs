//! The front-end's end of the connection: messages, whole or in pieces.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::deadline::Deadline;
use super::error::{Error, Result};
use super::socket::{Message, Socket};
use super::wire;

/// How long anything may take that nothing should delay.
pub const TIMEOUT: Duration = Duration::from_secs(10);

pub type Reply = Message;

impl Message {
    pub fn u64(&self) -> Result<u64> {
        wire::u64_body(wire::name(self.header.request), &self.body)
    }
}

/// One write of a message sent in pieces: bytes up to `end` (an offset into
/// the message, header included), with `fds` on the first byte of the piece.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    pub end: usize,
    pub fds: &'a [RawFd],
}

pub struct Frontend {
    pub(super) socket: Socket,
    /// The limit of every wait in here.
    pub timeout: Duration,
    /// Whether the typed `set_*` requests ask for an acknowledgement;
    /// `set_protocol_features` turns it on with REPLY_ACK.
    pub acknowledged: bool,
}

impl Frontend {
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::connect_within(path, TIMEOUT)
    }

    pub fn connect_within(path: impl AsRef<Path>, limit: Duration) -> Result<Self> {
        let socket = Socket::connect(path.as_ref(), Deadline::after(limit))?;
        Ok(Self::over(socket))
    }

    pub fn from_fd(fd: OwnedFd) -> Self {
        Self::over(Socket::new(UnixStream::from(fd)))
    }

    /// A front-end and the connected socket that its back-end is to use.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("making a socket pair", error))?;
        Ok((Self::over(Socket::new(ours)), OwnedFd::from(theirs)))
    }

    fn over(socket: Socket) -> Self {
        Frontend {
            socket,
            timeout: TIMEOUT,
            acknowledged: false,
        }
    }

    pub fn raw_fd(&self) -> RawFd {
        self.socket.stream().as_raw_fd()
    }

    pub fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    /// Ends one or both directions and keeps the socket.
    pub fn shutdown(&self, how: Shutdown) -> Result<()> {
        self.socket
            .stream()
            .shutdown(how)
            .map_err(|error| Error::io("shutting the socket down", error))
    }

    /// Bytes as they are, for messages that are none.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
        self.socket.send_all(bytes, fds, self.deadline())
    }

    /// A message in one write. `flags` go out as given beside the version.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> Result<()> {
        let bytes = wire::message(request, flags | wire::VERSION, body);
        self.send_bytes(&bytes, fds)
    }

    /// Bytes in several writes. What follows the last piece goes out as one
    /// more, without fds. The receiver may still see pieces joined together,
    /// except at those that carry fds; [`Self::wait_consumed`] between two
    /// calls of [`Self::send_bytes`] keeps them apart for certain.
    pub fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> Result<()> {
        let mut start = 0;
        for piece in pieces {
            self.send_bytes(&bytes[start..piece.end], piece.fds)?;
            start = piece.end;
        }
        self.send_bytes(&bytes[start..], &[])
    }

    /// Bytes one at a time, each only after the peer has read the one
    /// before; `fds` travel with byte `fds_at`.
    pub fn send_bytewise(&self, bytes: &[u8], fds: &[RawFd], fds_at: usize) -> Result<()> {
        for (index, byte) in bytes.iter().enumerate() {
            let fds = if index == fds_at { fds } else { &[] };
            self.send_bytes(&[*byte], fds)?;
            self.wait_consumed()?;
        }
        Ok(())
    }

    /// Waits until the peer has read everything sent so far.
    pub fn wait_consumed(&self) -> Result<()> {
        let deadline = self.deadline();
        loop {
            let mut queued: libc::c_int = 0;
            // SAFETY: SIOCOUTQ, which has TIOCOUTQ's number, writes one int.
            let status = unsafe { libc::ioctl(self.raw_fd(), libc::TIOCOUTQ, &mut queued) };
            if status < 0 {
                return Err(Error::last_os("asking for the unread bytes"));
            }
            if queued == 0 {
                return Ok(());
            }
            if deadline.expired() {
                return Err(Error::Timeout {
                    what: "waiting for the back-end to read".into(),
                    after: self.timeout,
                });
            }
            // The kernel has no event for "the peer has read".
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The next message from the back-end, whatever it is.
    pub fn recv_message(&self, what: &str) -> Result<Reply> {
        self.socket.recv_message(what, self.deadline())
    }

    /// The reply to `request`, with its header checked.
    pub fn recv_reply(&self, request: u32) -> Result<Reply> {
        let name = wire::name(request);
        let reply = self.recv_message(&format!("reply to {name}"))?;
        let header = reply.header;
        if header.request != request || header.flags != wire::VERSION | wire::FLAG_REPLY {
            return Err(Error::Broken(format!(
                "reply to {name} ({request}): got header {header:?}"
            )));
        }
        Ok(reply)
    }

    /// Sends with NEED_REPLY and returns the u64 of the acknowledgement.
    pub fn request_with_ack(&self, request: u32, body: &[u8], fds: &[RawFd]) -> Result<u64> {
        self.send(request, wire::FLAG_NEED_REPLY, body, fds)?;
        self.recv_reply(request)?.u64()
    }

    /// Sends a request that has a reply of its own and returns that.
    pub fn request(&self, request: u32, body: &[u8], fds: &[RawFd]) -> Result<Reply> {
        self.send(request, 0, body, fds)?;
        self.recv_reply(request)
    }

    /// Sends a request without a reply of its own: with REPLY_ACK it must be
    /// acknowledged with 0, without it nothing is checked.
    pub fn set(&self, request: u32, body: &[u8], fds: &[RawFd]) -> Result<()> {
        if !self.acknowledged {
            return self.send(request, 0, body, fds);
        }
        match self.request_with_ack(request, body, fds)? {
            0 => Ok(()),
            value => Err(Error::Refused {
                request: wire::name(request),
                value,
            }),
        }
    }

    /// Whether the back-end has sent something, or closed, within `limit`.
    pub fn answered_within(&self, limit: Duration) -> Result<bool> {
        self.socket.readable(Deadline::after(limit))
    }

    /// Waits for the back-end to close the connection; unread data is an error.
    pub fn wait_closed(&self) -> Result<()> {
        self.socket.wait_closed(self.deadline())
    }
}

/// A duplicate of `fd`, for a test that wants to keep one end.
pub fn dup(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC only reads the descriptor table; the result is
    // new and owned by nobody else.
    unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
        if copy < 0 {
            return Err(Error::io("duplicating an fd", io::Error::last_os_error()));
        }
        Ok(std::os::fd::FromRawFd::from_raw_fd(copy))
    }
}

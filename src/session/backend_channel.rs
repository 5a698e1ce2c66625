//! The channel on which this back-end sends requests to the front-end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;
use nix::sys::socket::{SockType, UnixAddr, getpeername, getsockname, getsockopt, sockopt};
use nix::sys::stat::fstat;

use crate::error::{Error, Result};
use crate::protocol::requests::backend_id;
use crate::transport::{Expect, Message, Transport};

use super::Session;
use super::dispatch::{Answer, Handled};

pub(super) struct BackendChannel {
    transport: Transport,
    failed: bool,
}

impl BackendChannel {
    /// Accepts a connected UNIX stream socket that is not `connection` itself.
    fn new(fd: OwnedFd, connection: BorrowedFd<'_>) -> Result<Self> {
        let invalid = |what: &str| Error::invalid(format!("back-end channel descriptor: {what}"));
        let kind = getsockopt(&fd, sockopt::SockType).map_err(|_| invalid("not a socket"))?;
        let local = getsockname::<UnixAddr>(fd.as_raw_fd()).ok();
        if kind != SockType::Stream || local.is_none() {
            return Err(invalid("not a UNIX stream socket"));
        }
        if getpeername::<UnixAddr>(fd.as_raw_fd()).is_err() {
            return Err(invalid("not connected"));
        }
        if is_an_end_of(fd.as_fd(), connection)? {
            return Err(invalid("the connection itself"));
        }
        Ok(BackendChannel {
            transport: Transport::new(fd, Expect::Replies),
            failed: false,
        })
    }

    pub(super) fn interest(&self) -> PollFlags {
        match (self.failed, self.transport.wants_write()) {
            (true, _) => PollFlags::empty(),
            (false, true) => PollFlags::POLLIN | PollFlags::POLLOUT,
            (false, false) => PollFlags::POLLIN,
        }
    }

    /// Tells the front-end to read the config space again. One message is enough until it was sent.
    pub(super) fn send_config_change(&mut self) {
        if !self.transport.wants_write() {
            let request =
                Message::request(backend_id::CONFIG_CHANGE_MSG, false, Vec::new(), Vec::new());
            self.transport.enqueue(request);
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        if !self.failed && self.transport.flush().is_err() {
            self.failed = true;
        }
    }
}

/// Whether `fd` is one of the two ends of `connection`. Ours is the same file; the front-end's has the names of ours
/// the other way round, and one of them is the path at which the connection was made.
fn is_an_end_of(fd: BorrowedFd<'_>, connection: BorrowedFd<'_>) -> Result<bool> {
    let (own, other) = (fstat(connection)?, fstat(fd)?);
    if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino) {
        return Ok(true);
    }
    let names = |fd: BorrowedFd<'_>| -> Result<(UnixAddr, UnixAddr)> {
        Ok((getsockname(fd.as_raw_fd())?, getpeername(fd.as_raw_fd())?))
    };
    let ((local, peer), (other_local, other_peer)) = (names(connection)?, names(fd)?);
    let is_named = |name: &UnixAddr| name.path().is_some() || name.as_abstract().is_some();
    Ok((is_named(&local) && local == other_peer) || (is_named(&peer) && peer == other_local))
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

impl Session {
    pub(super) fn set_backend_req_fd(&mut self, message: &mut Message) -> Handled {
        if let Some(fd) = message.fds.pop() {
            self.backend = Some(BackendChannel::new(fd, self.transport.as_fd())?);
        }
        Ok(Answer::Done)
    }

    /// Nothing asks for replies yet, so what comes is read and dropped; a front-end that closes its end just
    /// has no channel any more.
    pub(super) fn read_backend(&mut self) {
        let Some(backend) = &mut self.backend else {
            return;
        };
        backend.flush();
        let lost = loop {
            match backend.transport.receive() {
                Ok(Some(_)) => {}
                Ok(None) => break backend.failed,
                Err(_) => break true,
            }
        };
        if lost {
            self.backend = None;
            self.shared
                .logger
                .info(format_args!("the front-end closed the back-end channel"));
        }
    }
}

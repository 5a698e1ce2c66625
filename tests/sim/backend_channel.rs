//! The channel on which the back-end sends requests of its own.

use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::deadline::Deadline;
use super::error::{Error, Result};
use super::socket::{Message, Socket};
use super::wire::{self, backend_req};

pub type BackendRequest = Message;

impl Message {
    pub fn needs_reply(&self) -> bool {
        self.header.flags & wire::FLAG_NEED_REPLY != 0
    }
}

pub struct BackendChannel {
    socket: Socket,
    pub timeout: Duration,
}

impl BackendChannel {
    pub fn new(stream: UnixStream, timeout: Duration) -> Self {
        BackendChannel {
            socket: Socket::new(stream),
            timeout,
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    pub fn recv(&self) -> Result<BackendRequest> {
        self.socket
            .recv_message("request of the back-end", self.deadline())
    }

    /// Answers a request with `value`, asked for or not.
    pub fn ack(&self, request: &BackendRequest, value: u64) -> Result<()> {
        self.reply(request.header.request, &value.to_ne_bytes(), &[])
    }

    /// Whatever it is an answer to.
    pub fn reply(&self, request: u32, body: &[u8], fds: &[RawFd]) -> Result<()> {
        let bytes = wire::message(request, wire::VERSION | wire::FLAG_REPLY, body);
        self.socket.send_all(&bytes, fds, self.deadline())
    }

    /// Takes the next request, which has to be CONFIG_CHANGE_MSG, and
    /// acknowledges it if that was asked for.
    pub fn expect_config_change(&self) -> Result<()> {
        let request = self.recv()?;
        let expected = backend_req::CONFIG_CHANGE_MSG;
        if request.header.request != expected || !request.body.is_empty() {
            return Err(Error::Broken(format!(
                "want CONFIG_CHANGE_MSG from the back-end, got {:?}",
                request.header
            )));
        }
        if request.needs_reply() {
            self.ack(&request, 0)?;
        }
        Ok(())
    }

    pub fn pending_within(&self, limit: Duration) -> Result<bool> {
        self.socket.readable(Deadline::after(limit))
    }

    pub fn wait_closed(&self) -> Result<()> {
        self.socket.wait_closed(self.deadline())
    }
}

//! Event file descriptors for kick, call and err.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::deadline::Deadline;
use super::error::{Error, Result};

#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Non-blocking: a back-end may set that flag anyway, and it is shared.
    pub fn new() -> Result<Self> {
        Self::with_flags(libc::EFD_NONBLOCK)
    }

    /// `flags` beside close-on-exec; 0 gives a blocking one.
    pub fn with_flags(flags: i32) -> Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os("eventfd"));
        }
        // SAFETY: `fd` is new and owned by nobody else.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// One that came from the peer.
    pub fn from_fd(fd: OwnedFd) -> Self {
        EventFd(fd)
    }

    pub fn add(&self, value: u64) -> Result<()> {
        let bytes = value.to_ne_bytes();
        // SAFETY: the buffer is eight readable bytes.
        let written = unsafe { libc::write(self.as_raw_fd(), bytes.as_ptr().cast(), 8) };
        if written == 8 {
            Ok(())
        } else {
            Err(Error::last_os("writing an eventfd"))
        }
    }

    pub fn signal(&self) -> Result<()> {
        self.add(1)
    }

    /// Takes the count, 0 if nothing was signalled. Never blocks.
    pub fn take(&self) -> Result<u64> {
        let mut bytes = [0u8; 8];
        let piece = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // The eventfd may be a blocking one, and somebody else may read it at the same time.
        // SAFETY: the buffer is eight writable bytes.
        let read = unsafe { libc::preadv2(self.as_raw_fd(), &piece, 1, -1, libc::RWF_NOWAIT) };
        if read == 8 {
            return Ok(u64::from_ne_bytes(bytes));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => Ok(0),
            _ => Err(Error::io("reading an eventfd", error)),
        }
    }

    pub fn is_signalled(&self) -> Result<bool> {
        self.readable(Deadline::secs(0))
    }

    /// Waits until it is signalled and leaves the count alone.
    pub fn readable(&self, deadline: Deadline) -> Result<bool> {
        deadline
            .poll_fd(self.as_raw_fd(), libc::POLLIN)
            .map(|events| events & libc::POLLIN != 0)
            .map_err(|error| Error::io("polling an eventfd", error))
    }

    /// Waits until it is signalled and takes the count.
    pub fn wait(&self, what: &str, deadline: Deadline) -> Result<u64> {
        if self.readable(deadline)? {
            return self.take();
        }
        Err(Error::Timeout {
            what: what.into(),
            after: deadline.limit(),
        })
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(eventfd: EventFd) -> Self {
        eventfd.0
    }
}

//! Where front-ends come from: a socket path or a descriptor to listen on, a
//! connection that is there already, or a path to connect to, again and again.
//!
//! [`Listener`] never blocks. Its user polls [`Listener::poll_fd`] for reading,
//! for at most [`Listener::timeout`], and then calls [`Listener::try_accept`],
//! all of it only while it wants a front-end: meanwhile others wait in the
//! backlog.

mod address;
mod backoff;
mod bind;
mod error;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use error::ListenError;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, accept4, connect, socket};

use address::{FdKind, check_path};
use backoff::Backoff;
use bind::BoundPath;

/// A source of connections from front-ends.
#[derive(Debug)]
pub struct Listener {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Listening {
        /// Declared, and so dropped, before the socket: while the socket is
        /// open, no other file can get the inode number of its file.
        _bound: Option<BoundPath>,
        socket: OwnedFd,
        backoff: Backoff,
    },
    Connected(Option<OwnedFd>),
    Connecting {
        path: PathBuf,
        backoff: Backoff,
    },
}

impl Listener {
    /// Binds, adopts, or gets ready to connect.
    pub fn open(address: Address) -> Result<Listener, ListenError> {
        let source = match address {
            Address::Listen(path) => {
                check_path(&path)?;
                let (bound, socket) = BoundPath::bind(&path)?;
                listening(Some(bound), socket)
            }
            Address::ListenFd(fd) => {
                adopt(&fd, FdKind::Listening)?;
                listening(None, fd)
            }
            Address::ConnectedFd(fd) => {
                adopt(&fd, FdKind::Connected)?;
                Source::Connected(Some(fd))
            }
            Address::Connect(path) => {
                check_path(&path)?;
                Source::Connecting {
                    path,
                    backoff: Backoff::default(),
                }
            }
        };
        Ok(Listener { source })
    }

    /// What to poll for reading. None while there is nothing to wait for but
    /// time, so that a failing accept does not make its user spin.
    pub fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Listening {
                socket, backoff, ..
            } if backoff.is_idle() => Some(socket.as_fd()),
            _ => None,
        }
    }

    /// How long to wait at most before the next [`try_accept`], if that does
    /// not depend on [`poll_fd`] alone.
    ///
    /// [`try_accept`]: Listener::try_accept
    /// [`poll_fd`]: Listener::poll_fd
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        match &self.source {
            Source::Listening { backoff, .. } => backoff.remaining(now),
            Source::Connected(connection) => connection.as_ref().map(|_| Duration::ZERO),
            Source::Connecting { backoff, .. } => {
                Some(backoff.remaining(now).unwrap_or(Duration::ZERO))
            }
        }
    }

    /// The next connection, if there is one: close-on-exec, and non-blocking
    /// unless it was given as a descriptor.
    ///
    /// After an error this may be called again. It has arranged for a pause,
    /// whether the error is likely to pass ([`ListenError::is_transient`]) or
    /// not.
    pub fn try_accept(&mut self, now: Instant) -> Result<Option<OwnedFd>, ListenError> {
        match &mut self.source {
            Source::Listening {
                socket, backoff, ..
            } => try_accept(socket, backoff, now),
            Source::Connected(connection) => Ok(connection.take()),
            Source::Connecting { path, backoff } => try_connect(path, backoff, now),
        }
    }

    /// Whether no further connection can ever come.
    pub fn is_exhausted(&self) -> bool {
        matches!(self.source, Source::Connected(None))
    }
}

fn listening(bound: Option<BoundPath>, socket: OwnedFd) -> Source {
    Source::Listening {
        _bound: bound,
        socket,
        backoff: Backoff::default(),
    }
}

/// Checks an inherited descriptor and makes it ours.
fn adopt(fd: &OwnedFd, wanted: FdKind) -> Result<(), ListenError> {
    let kind = address::classify(fd.as_fd())?;
    if kind != wanted {
        return Err(ListenError::Descriptor {
            fd: fd.as_raw_fd(),
            what: kind.to_string(),
            wanted: wanted.name(),
        });
    }
    set_flags(fd, kind).map_err(|errno| ListenError::System {
        call: "fcntl",
        subject: format!("descriptor {}", fd.as_raw_fd()),
        errno,
    })
}

/// A client may be gone between poll and accept, so a listening socket must
/// not block. A connection is left as it is: the transport does not depend on
/// it, and another process may share the file status flags.
fn set_flags(fd: &OwnedFd, kind: FdKind) -> Result<(), Errno> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    if kind == FdKind::Listening {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

fn try_accept(
    socket: &OwnedFd,
    backoff: &mut Backoff,
    now: Instant,
) -> Result<Option<OwnedFd>, ListenError> {
    if !backoff.is_due(now) {
        return Ok(None);
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let errno = match accept4(socket.as_raw_fd(), flags) {
        Ok(fd) => {
            backoff.reset();
            // SAFETY: accept4(2) has just made this descriptor for us.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        // The client is gone again, or a signal came: poll tells about the next.
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => {
            backoff.reset();
            return Ok(None);
        }
        Err(errno) => errno,
    };
    // The connection stays in the backlog and the socket stays readable, so
    // polling it again at once would spin.
    backoff.postpone(now);
    Err(ListenError::System {
        call: "accept",
        subject: "the listening socket".to_string(),
        errno,
    })
}

fn try_connect(
    path: &Path,
    backoff: &mut Backoff,
    now: Instant,
) -> Result<Option<OwnedFd>, ListenError> {
    if !backoff.is_due(now) {
        return Ok(None);
    }
    // Also after a success: a peer that accepts and closes must not make us spin.
    backoff.postpone(now);
    match connect_to(path) {
        Ok(socket) => Ok(Some(socket)),
        // Nobody is there yet, or too many are waiting there already.
        Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(errno) => Err(ListenError::System {
            call: "connect",
            subject: path.display().to_string(),
            errno,
        }),
    }
}

/// Connects without waiting.
fn connect_to(path: &Path) -> Result<OwnedFd, Errno> {
    let address = UnixAddr::new(path)?;
    let socket = new_socket()?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

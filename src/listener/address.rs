//! Addresses: their text form, and what inherited descriptors turn out to be.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, UnixAddr, getpeername, getsockname,
    getsockopt, sockopt,
};
use nix::sys::stat::{SFlag, fstat};

use super::ListenError;

/// The longest path in a socket address: the field has 108 bytes, one of them
/// for the terminating NUL.
const MAX_PATH: usize = 107;

const STREAM_SOCKET: &str = "a listening or connected UNIX stream socket";

/// Where a server finds its front-ends.
#[derive(Debug)]
pub enum Address {
    /// Listen at a path.
    Listen(PathBuf),
    /// Listen on a socket that listens already.
    ListenFd(OwnedFd),
    /// Serve this connection, and no other.
    ConnectedFd(OwnedFd),
    /// Connect to a path where the front-end listens, and reconnect.
    Connect(PathBuf),
}

impl Address {
    /// Reads the text form: `unix:PATH` or just a path to listen at,
    /// `unix-connect:PATH` to connect to, or `fd:N` for an inherited
    /// descriptor, which may be a listening socket or a connected one.
    ///
    /// A path without prefix must not look like it had one: a colon is legal
    /// only behind a slash. On success `fd:N` takes the descriptor over; on
    /// failure it is left as it is.
    ///
    /// # Safety
    /// If the text is `fd:N` and N is open, nobody else may own N.
    pub unsafe fn parse(text: &str) -> Result<Address, ListenError> {
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if !scheme.contains('/') => (scheme, rest),
            _ => ("unix", text),
        };
        match scheme {
            "unix" => checked_path(rest).map(Address::Listen),
            "unix-connect" => checked_path(rest).map(Address::Connect),
            // SAFETY: the caller's promise.
            "fd" => unsafe { parse_fd(text, rest) },
            _ => Err(invalid(
                text,
                "not one of unix:PATH, unix-connect:PATH, fd:N or a path",
            )),
        }
    }

    /// Tells a listening socket from a connected one.
    pub fn from_fd(fd: OwnedFd) -> Result<Address, ListenError> {
        match classify(fd.as_fd())? {
            FdKind::Listening => Ok(Address::ListenFd(fd)),
            FdKind::Connected => Ok(Address::ConnectedFd(fd)),
        }
    }
}

/// # Safety
/// If the number is that of an open descriptor, nobody else owns it.
unsafe fn parse_fd(text: &str, number: &str) -> Result<Address, ListenError> {
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let fd: RawFd = number
        .parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| invalid(text, "not the number of a descriptor"))?;
    // SAFETY: the borrow is used only for calls that fail with EBADF if the
    // descriptor is not open, and ends with this function.
    let kind = classify(unsafe { BorrowedFd::borrow_raw(fd) })?;
    // SAFETY: it is open, or it could not have been classified; and the caller
    // promises that nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(match kind {
        FdKind::Listening => Address::ListenFd(fd),
        FdKind::Connected => Address::ConnectedFd(fd),
    })
}

fn invalid(text: &str, reason: &'static str) -> ListenError {
    ListenError::Address {
        text: text.to_string(),
        reason,
    }
}

fn checked_path(text: &str) -> Result<PathBuf, ListenError> {
    let path = PathBuf::from(text);
    check_path(&path)?;
    Ok(path)
}

/// Refuses what cannot be a socket path, or would mean another thing.
pub(super) fn check_path(path: &Path) -> Result<(), ListenError> {
    let bytes = path.as_os_str().as_bytes();
    let reason = match bytes {
        [] => "an empty path",
        [b'@', ..] => "abstract socket names are not supported (write ./@ for a file)",
        _ if bytes.contains(&0) => "the path contains a NUL byte",
        _ if bytes.len() > MAX_PATH => {
            return Err(ListenError::PathTooLong {
                path: path.to_path_buf(),
                length: bytes.len(),
            });
        }
        _ => return Ok(()),
    };
    Err(invalid(&path.to_string_lossy(), reason))
}

/// What an inherited descriptor may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FdKind {
    Listening,
    Connected,
}

impl FdKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            FdKind::Listening => "a listening UNIX stream socket",
            FdKind::Connected => "a connected UNIX stream socket",
        }
    }
}

impl fmt::Display for FdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Finds out whether a descriptor is a listening or a connected UNIX stream
/// socket; if it is neither, the error says what it is.
pub(super) fn classify(fd: BorrowedFd<'_>) -> Result<FdKind, ListenError> {
    let refuse = |what: String| ListenError::Descriptor {
        fd: fd.as_raw_fd(),
        what,
        wanted: STREAM_SOCKET,
    };
    let system = |call: &'static str| {
        move |errno| ListenError::System {
            call,
            subject: format!("descriptor {}", fd.as_raw_fd()),
            errno,
        }
    };
    let mode = fstat(fd).map_err(system("fstat"))?.st_mode;
    if file_type(mode) != SFlag::S_IFSOCK {
        return Err(refuse(file_kind(mode).to_string()));
    }
    if let Some(what) = other_socket(fd).map_err(system("getsockopt"))? {
        return Err(refuse(what));
    }
    if getsockopt(&fd, sockopt::AcceptConn).map_err(system("getsockopt"))? {
        return Ok(FdKind::Listening);
    }
    match getpeername::<UnixAddr>(fd.as_raw_fd()) {
        Ok(_) => Ok(FdKind::Connected),
        Err(Errno::ENOTCONN) => Err(refuse(
            "a UNIX stream socket that neither listens nor is connected".to_string(),
        )),
        Err(errno) => Err(system("getpeername")(errno)),
    }
}

/// Names a socket of another family or type.
fn other_socket(fd: BorrowedFd<'_>) -> Result<Option<String>, Errno> {
    let family = getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family();
    let kind = getsockopt(&fd, sockopt::SockType)?;
    if family == Some(AddressFamily::Unix) && kind == SockType::Stream {
        return Ok(None);
    }
    let family = match family {
        Some(AddressFamily::Unix) => "a UNIX",
        Some(AddressFamily::Inet) => "an IPv4",
        Some(AddressFamily::Inet6) => "an IPv6",
        Some(AddressFamily::Vsock) => "a vsock",
        _ => "a non-UNIX",
    };
    let kind = match kind {
        SockType::Stream => "stream",
        SockType::Datagram => "datagram",
        SockType::SeqPacket => "seqpacket",
        _ => "raw",
    };
    Ok(Some(format!("{family} {kind} socket")))
}

fn file_type(mode: libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

/// Names what is at a path or behind a descriptor.
pub(super) fn file_kind(mode: libc::mode_t) -> &'static str {
    match file_type(mode) {
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFBLK => "a block device",
        _ => "no file (an eventfd, epoll instance or the like)",
    }
}

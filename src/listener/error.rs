//! Why there is no connection to be had.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use nix::errno::Errno;

/// Why an address cannot be used, or a connection not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenError {
    /// The text is not an address.
    Address { text: String, reason: &'static str },
    /// The path does not fit into a socket address.
    PathTooLong { path: PathBuf, length: usize },
    /// The descriptor is not the socket it should be.
    Descriptor {
        fd: RawFd,
        what: String,
        wanted: &'static str,
    },
    /// Somebody else listens at the path.
    InUse { path: PathBuf },
    /// There is a file at the path that is not a socket. It is left alone.
    NotASocket { path: PathBuf, what: &'static str },
    /// A system call failed.
    System {
        call: &'static str,
        subject: String,
        errno: Errno,
    },
}

impl ListenError {
    /// The error number that stands for this error, positive.
    pub fn errno(&self) -> i32 {
        match self {
            ListenError::Address { .. } => libc::EINVAL,
            ListenError::PathTooLong { .. } => libc::ENAMETOOLONG,
            ListenError::Descriptor { .. } | ListenError::NotASocket { .. } => libc::ENOTSOCK,
            ListenError::InUse { .. } => libc::EADDRINUSE,
            ListenError::System { errno, .. } => *errno as i32,
        }
    }

    /// Whether the cause is a shortage that passes, so that it is worth
    /// trying again later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            ListenError::System {
                errno: Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM,
                ..
            }
        )
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenError::Address { text, reason } => write!(f, "address {text:?}: {reason}"),
            ListenError::PathTooLong { path, length } => write!(
                f,
                "socket path {}: {length} bytes are more than a socket address holds (107)",
                path.display()
            ),
            ListenError::Descriptor { fd, what, wanted } => {
                write!(f, "descriptor {fd} is {what}, not {wanted}")
            }
            ListenError::InUse { path } => {
                write!(
                    f,
                    "socket path {}: in use by another process",
                    path.display()
                )
            }
            ListenError::NotASocket { path, what } => write!(
                f,
                "socket path {}: there is {what}, which is not replaced",
                path.display()
            ),
            ListenError::System {
                call,
                subject,
                errno,
            } => write!(f, "{call}: {subject}: {}", errno.desc()),
        }
    }
}

impl std::error::Error for ListenError {}

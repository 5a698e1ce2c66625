//! What can go wrong in a conversation with a back-end.

use std::fmt;
use std::io;
use std::time::Duration;

pub type Result<T> = std::result::Result<T, Error>;

pub enum Error {
    /// A system call failed.
    Io { what: String, source: io::Error },
    /// Nothing happened before the deadline.
    Timeout { what: String, after: Duration },
    /// The back-end closed or reset the connection.
    Closed { what: String },
    /// The back-end answered with a non-zero acknowledgement.
    Refused { request: &'static str, value: u64 },
    /// The back-end or the device broke a rule of the protocol.
    Broken(String),
}

impl Error {
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET) => Error::Closed { what },
            _ => Error::Io { what, source },
        }
    }

    /// The error that `errno` names, for the system call that just failed.
    pub fn last_os(what: impl Into<String>) -> Self {
        Self::io(what, io::Error::last_os_error())
    }

    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closed { .. })
    }

    pub fn is_refused(&self) -> bool {
        matches!(self, Error::Refused { .. })
    }

    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Timeout { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { what, source } => write!(f, "{what}: {source}"),
            Error::Timeout { what, after } => write!(f, "{what}: nothing within {after:?}"),
            Error::Closed { what } => write!(f, "{what}: connection closed by the back-end"),
            Error::Refused { request, value } => {
                write!(f, "{request}: refused, acknowledgement {value:#x}")
            }
            Error::Broken(what) => f.write_str(what),
        }
    }
}

/// The same as `Display`, so that `unwrap` reads well.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

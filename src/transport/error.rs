//! Why a connection cannot go on.

use std::fmt;

use nix::errno::Errno;

use crate::protocol::{HEADER_SIZE, HeaderError, MAX_FDS};

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// The peer closed the connection between two messages: the orderly end.
    Closed,
    /// The peer closed the connection inside a header.
    ClosedInHeader { received: usize },
    /// The peer closed the connection inside a body.
    ClosedInBody {
        request: u32,
        received: usize,
        size: usize,
    },
    /// The connection was reset: the peer closed it without reading all of
    /// what it had been sent.
    Reset,
    /// The peer closed the connection before it had got our message.
    ClosedBeforeSend,
    /// The header cannot begin a message.
    Header(HeaderError),
    /// More descriptors on one message than [`MAX_FDS`].
    TooManyFds,
    /// The kernel dropped descriptors although few were sent, which it does
    /// when this process may not open more.
    FdsLost { received: usize },
    /// A system call failed.
    System { call: &'static str, errno: Errno },
}

impl TransportError {
    /// The error number that stands for this error, positive.
    pub fn errno(&self) -> i32 {
        match self {
            TransportError::Closed => libc::ENOTCONN,
            TransportError::ClosedInHeader { .. } | TransportError::ClosedInBody { .. } => {
                libc::ENODATA
            }
            TransportError::Reset => libc::ECONNRESET,
            TransportError::ClosedBeforeSend => libc::EPIPE,
            TransportError::Header(HeaderError::SizeTooLarge { .. }) => libc::EMSGSIZE,
            TransportError::Header(_) | TransportError::TooManyFds => libc::EPROTO,
            TransportError::FdsLost { .. } => libc::EMFILE,
            TransportError::System { errno, .. } => *errno as i32,
        }
    }
}

impl From<HeaderError> for TransportError {
    fn from(error: HeaderError) -> Self {
        TransportError::Header(error)
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TransportError::Closed => write!(f, "the front-end closed the connection"),
            TransportError::ClosedInHeader { received } => write!(
                f,
                "the front-end closed the connection after {received} of {HEADER_SIZE} bytes \
                 of a header"
            ),
            TransportError::ClosedInBody {
                request,
                received,
                size,
            } => write!(
                f,
                "the front-end closed the connection after {received} of {size} bytes of the \
                 body of request {request}"
            ),
            TransportError::Reset => write!(f, "the front-end reset the connection"),
            TransportError::ClosedBeforeSend => {
                write!(
                    f,
                    "the front-end closed the connection before it was answered"
                )
            }
            TransportError::Header(error) => error.fmt(f),
            TransportError::TooManyFds => {
                write!(f, "a message carries more than {MAX_FDS} file descriptors")
            }
            TransportError::FdsLost { received } => write!(
                f,
                "file descriptors of a message were lost after {received}: this process may \
                 not open more"
            ),
            TransportError::System { call, errno } => write!(f, "{call}: {errno}"),
        }
    }
}

impl std::error::Error for TransportError {}

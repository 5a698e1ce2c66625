//! The vhost-user wire: headers, request facts, message bodies.
//!
//! Nothing here does I/O or knows another module of the crate. Bytes come in
//! as slices, are checked against their bounds, and leave as plain values; a
//! value that no state is needed to judge is judged here, so that a handler
//! never sees it. All integers have the machine's byte order, as the
//! vhost-user specification says.

pub mod features;
pub mod header;
pub mod messages;
pub mod requests;

pub use header::{Header, HeaderError};

/// Bytes of a message header: request, flags and size.
pub const HEADER_SIZE: usize = 12;

/// The largest body accepted, and so the largest allocation a header can cause.
///
/// The largest body the specification knows is the reply to GET_SHMEM_CONFIG
/// (8 + 256 * 8 bytes); the largest request is a crypto session (under 1200
/// bytes), then a GET_CONFIG or SET_CONFIG with its 256 bytes of payload.
pub const MAX_BODY: usize = 4096;

/// The most file descriptors one message may carry. The specification needs 8.
pub const MAX_FDS: usize = 32;

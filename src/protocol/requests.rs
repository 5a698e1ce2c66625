//! What is fixed about each request: id, name, sizes, file descriptors, the
//! protocol feature it depends on, and how it is answered.
//!
//! The dispatcher refuses by this table before a handler runs, so a handler
//! never sees a body of a wrong size or a wrong number of descriptors.

mod checks;
mod table;

pub use checks::{BodySize, FdCount, RequestError};
pub use table::REQUESTS;

use super::features::ProtocolFeatures;

/// Ids of the requests that a front-end sends.
pub mod id {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const CREATE_CRYPTO_SESSION: u32 = 26;
    pub const CLOSE_CRYPTO_SESSION: u32 = 27;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const POSTCOPY_LISTEN: u32 = 29;
    pub const POSTCOPY_END: u32 = 30;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GPU_SET_SOCKET: u32 = 33;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_SHARED_OBJECT: u32 = 41;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
    pub const GET_SHMEM_CONFIG: u32 = 44;
}

/// Ids of the requests that a back-end sends on its own channel.
pub mod backend_id {
    pub const IOTLB_MSG: u32 = 1;
    pub const CONFIG_CHANGE_MSG: u32 = 2;
    pub const VRING_HOST_NOTIFIER_MSG: u32 = 3;
    pub const VRING_CALL: u32 = 4;
    pub const VRING_ERR: u32 = 5;
    pub const SHARED_OBJECT_ADD: u32 = 6;
    pub const SHARED_OBJECT_REMOVE: u32 = 7;
    pub const SHARED_OBJECT_LOOKUP: u32 = 8;
    pub const SHMEM_MAP: u32 = 9;
    pub const SHMEM_UNMAP: u32 = 10;
}

/// Names of the back-end requests, in the order of their ids from 1.
const BACKEND_NAMES: [&str; 10] = [
    "VHOST_USER_BACKEND_IOTLB_MSG",
    "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG",
    "VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG",
    "VHOST_USER_BACKEND_VRING_CALL",
    "VHOST_USER_BACKEND_VRING_ERR",
    "VHOST_USER_BACKEND_SHARED_OBJECT_ADD",
    "VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE",
    "VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP",
    "VHOST_USER_BACKEND_SHMEM_MAP",
    "VHOST_USER_BACKEND_SHMEM_UNMAP",
];

const UNKNOWN: &str = "unknown request";

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpec {
    /// The request id.
    pub id: u32,
    /// The specification's name.
    pub name: &'static str,
    /// Which body sizes are legal.
    pub body: BodySize,
    /// How many file descriptors belong to it.
    pub fds: FdCount,
    /// The protocol feature without which the request is refused.
    pub needs: Option<ProtocolFeatures>,
    /// Whether it has a reply of its own, which then takes the place of the
    /// acknowledgement. (SET_MEM_TABLE and ADD_MEM_REG also answer for
    /// themselves, but only in postcopy.)
    pub own_reply: bool,
    /// How that reply of its own says that the request failed.
    pub error_reply: ErrorReply,
}

/// The error form of a request's own reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorReply {
    /// It has none (or the request has no reply of its own): refusing means
    /// the acknowledgement if one was asked for, else ending the connection.
    Nothing,
    /// A body of one `u64` with this value.
    Status(u64),
    /// An empty body and no file descriptor.
    Empty,
    /// A body of this size, all zero, and no file descriptor.
    Zeroed(usize),
    /// A crypto session description with a negative session id.
    NegativeSession,
}

/// The row of a front-end request, if it is one.
pub fn lookup(id: u32) -> Option<&'static RequestSpec> {
    let index = usize::try_from(id).ok()?.checked_sub(1)?;
    REQUESTS.get(index)
}

/// The specification's name of a front-end request.
pub fn request_name(id: u32) -> &'static str {
    lookup(id).map_or(UNKNOWN, |spec| spec.name)
}

/// The specification's name of a back-end request.
pub fn backend_request_name(id: u32) -> &'static str {
    usize::try_from(id)
        .ok()
        .and_then(|id| id.checked_sub(1))
        .and_then(|index| BACKEND_NAMES.get(index))
        .copied()
        .unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ids_have_no_row() {
        for id in [0, 45, 0x100, u32::MAX] {
            assert!(lookup(id).is_none(), "{id}");
            assert_eq!(request_name(id), "unknown request");
        }
    }

    #[test]
    fn names_follow_ids() {
        assert_eq!(request_name(id::GET_FEATURES), "VHOST_USER_GET_FEATURES");
        assert_eq!(request_name(id::NET_SET_MTU), "VHOST_USER_NET_SET_MTU");
        assert_eq!(
            request_name(id::GET_SHMEM_CONFIG),
            "VHOST_USER_GET_SHMEM_CONFIG"
        );
    }

    #[test]
    fn back_end_names_follow_ids() {
        assert_eq!(
            backend_request_name(backend_id::CONFIG_CHANGE_MSG),
            "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG"
        );
        assert_eq!(
            backend_request_name(backend_id::SHMEM_UNMAP),
            "VHOST_USER_BACKEND_SHMEM_UNMAP"
        );
        for id in [0, 11, u32::MAX] {
            assert_eq!(backend_request_name(id), "unknown request");
        }
    }
}

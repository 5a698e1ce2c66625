//! Numbers and layouts of the vhost-user protocol, native byte order.

use super::error::{Error, Result};

pub const HEADER_LEN: usize = 12;

/// Protocol version, the low two bits of the header's flags.
pub const VERSION: u32 = 1;
pub const FLAG_REPLY: u32 = 1 << 2;
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Bit 8 of the SET_VRING_KICK/CALL/ERR payload: no fd comes with it.
pub const VRING_NOFD: u64 = 1 << 8;

/// Requests of the front-end.
pub mod req {
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

/// Requests of the back-end.
pub mod backend_req {
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

/// Feature bits, as masks.
pub mod feature {
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Protocol feature bits, as masks.
pub mod protocol_feature {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CROSS_ENDIAN: u64 = 1 << 6;
    pub const CRYPTO_SESSION: u64 = 1 << 7;
    pub const PAGEFAULT: u64 = 1 << 8;
    pub const CONFIG: u64 = 1 << 9;
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    pub const HOST_NOTIFIER: u64 = 1 << 11;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const XEN_MMAP: u64 = 1 << 17;
    pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
    pub const GPA_ADDRESSES: u64 = 1 << 21;
    pub const SHARED_OBJECT: u64 = 1 << 18;
    pub const SHMEM: u64 = 1 << 22;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

const NAMES: [&str; 45] = [
    "NONE",
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
    "GET_SHARED_OBJECT",
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
    "GET_SHMEM_CONFIG",
];

pub fn name(request: u32) -> &'static str {
    NAMES
        .get(request as usize)
        .copied()
        .unwrap_or("unknown request")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub request: u32,
    pub flags: u32,
    pub size: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        Header {
            request: u32_at(bytes, 0),
            flags: u32_at(bytes, 4),
            size: u32_at(bytes, 8),
        }
    }
}

/// A whole message with an honest size field.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        request,
        flags,
        size: body.len() as u32,
    };
    [&header.encode()[..], body].concat()
}

pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

/// Ring addresses as SET_VRING_ADDR carries them: user addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct VringAddr {
    pub index: u32,
    pub flags: u32,
    pub desc: u64,
    pub used: u64,
    pub avail: u64,
    pub log: u64,
}

impl VringAddr {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vring_state(self.index, self.flags);
        for address in [self.desc, self.used, self.avail, self.log] {
            body.extend_from_slice(&address.to_ne_bytes());
        }
        body
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct MemRegion {
    pub gpa: u64,
    pub size: u64,
    pub user_addr: u64,
    pub mmap_offset: u64,
}

impl MemRegion {
    pub fn encode(&self) -> Vec<u8> {
        [self.gpa, self.size, self.user_addr, self.mmap_offset]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect()
    }

    /// The body of ADD_MEM_REG and REM_MEM_REG.
    pub fn encode_single(&self) -> Vec<u8> {
        [&0u64.to_ne_bytes()[..], &self.encode()].concat()
    }
}

/// The body of SET_MEM_TABLE.
pub fn mem_table(regions: &[MemRegion]) -> Vec<u8> {
    let mut body = vring_state(regions.len() as u32, 0);
    for region in regions {
        body.extend(region.encode());
    }
    body
}

/// The body of GET_CONFIG and SET_CONFIG.
pub fn config(offset: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut body = vring_state(offset, payload.len() as u32);
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(payload);
    body
}

/// The u32 at `offset`, which the caller knows to be inside.
pub fn log(size: u64, offset: u64) -> Vec<u8> {
    [size.to_ne_bytes(), offset.to_ne_bytes()].concat()
}

pub fn inflight(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    [
        &size.to_ne_bytes()[..],
        &offset.to_ne_bytes(),
        &queues.to_ne_bytes(),
        &queue_size.to_ne_bytes(),
        &[0; 4],
    ]
    .concat()
}

/// The body of an IOTLB message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iotlb {
    pub iova: u64,
    pub size: u64,
    pub user: u64,
    /// 1 read, 2 write.
    pub permissions: u8,
    /// 1 miss, 2 update, 3 invalidate, 4 access fail.
    pub kind: u8,
}

impl Iotlb {
    pub const MISS: u8 = 1;
    pub const UPDATE: u8 = 2;
    pub const INVALIDATE: u8 = 3;
    pub const ACCESS_FAIL: u8 = 4;

    pub fn encode(&self) -> Vec<u8> {
        [
            &self.iova.to_ne_bytes()[..],
            &self.size.to_ne_bytes(),
            &self.user.to_ne_bytes(),
            &[self.permissions, self.kind, 0, 0, 0, 0, 0, 0],
        ]
        .concat()
    }

    pub fn decode(body: &[u8]) -> Result<Self> {
        let word = |at: usize| u64_body("IOTLB message", &body[at..at + 8]);
        if body.len() != 32 {
            return Err(Error::Broken(format!("IOTLB message: {body:x?}")));
        }
        Ok(Iotlb {
            iova: word(0)?,
            size: word(8)?,
            user: word(16)?,
            permissions: body[24],
            kind: body[25],
        })
    }
}

pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_ne_bytes(field)
}

pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_ne_bytes(field)
}

/// A body that is one u64.
pub fn u64_body(what: &str, body: &[u8]) -> Result<u64> {
    match body.try_into() {
        Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
        Err(_) => Err(Error::Broken(format!(
            "{what}: reply body of {} bytes, want 8",
            body.len()
        ))),
    }
}

//! Message bodies: bounds-checked decode, encode, and every check that needs
//! no state.
//!
//! A type has a `SIZE`, a `decode` that takes exactly one body, and an
//! `encode`. Decoding never allocates by a number from the wire.

mod codec;
mod config;
mod crypto;
mod iotlb;
mod memory;
mod migration;
mod net;
mod object;
mod shmem;
mod vring;

pub use codec::{DecodeError, decode_u64, encode_u64};
pub use config::{CONFIG_HEAD_SIZE, ConfigAccess, MAX_CONFIG_SIZE, decode_status};
pub use crypto::{
    CRYPTO_SESSION_NEW, CRYPTO_SESSION_OLD, CryptoParams, CryptoSession, encode_crypto_reply,
};
pub use iotlb::{Iotlb, IotlbKind};
pub use memory::{
    MAX_REGION_SIZE, MAX_REGIONS, MemTable, MemoryRegion, SingleRegion, TABLE_HEAD_SIZE,
    is_postcopy_marker,
};
pub use migration::{DeviceStateTransfer, Inflight, Log};
pub use net::{decode_mac, decode_mtu};
pub use object::{UUID_SIZE, decode_uuid};
pub use shmem::{MAX_SHMEM_REGIONS, ShmemArea, encode_shmem_config};
pub use vring::{VringAddr, VringArea, VringFd, VringState};

//! Virtqueues: the rings, what is popped from them, and who may touch them when.
//!
//! * [`vq`] the queue: what its owner, the internal thread and everybody else do with it
//! * [`element`] what the application holds of a descriptor chain, and how it is completed
//! * [`split`], [`used`] the two sides of a split ring, [`order`] of either byte order; [`packed`], [`packed_used`] those of
//!   a packed one, [`place`] where they are; [`ring`] of either kind; [`chain`] the descriptors of both
//! * [`slot`] where elements live; [`notify`] the fences
//! * [`inflight`] counting and draining; [`inflight_area`] what a successor finds; [`kick`], [`signal`] the descriptors

#[cfg(not(loom))]
pub(crate) mod areas;
#[cfg(not(loom))]
mod arena;
#[cfg(not(loom))]
mod chain;
#[cfg(all(feature = "rust-vmm", not(loom)))]
mod chain_memory;
#[cfg(not(loom))]
mod element;
pub(crate) mod inflight;
#[cfg(not(loom))]
pub(crate) mod inflight_area;
#[cfg(not(loom))]
pub(crate) mod kick;
pub(crate) mod notify;
pub(crate) mod order;
#[cfg(not(loom))]
pub(crate) mod packed;
#[cfg(not(loom))]
pub(crate) mod packed_areas;
#[cfg(not(loom))]
mod packed_recovered;
#[cfg(not(loom))]
mod packed_used;
#[cfg(not(loom))]
pub(crate) mod place;
#[cfg(not(loom))]
mod publication;
#[cfg(not(loom))]
pub(crate) mod ring;
#[cfg(not(loom))]
mod ring_error;
#[cfg(not(loom))]
pub(crate) mod signal;
#[cfg(not(loom))]
pub(crate) mod slot;
#[cfg(not(loom))]
pub(crate) mod split;
#[cfg(not(loom))]
mod staged;
#[cfg(not(loom))]
mod stats;
#[cfg(not(loom))]
pub(crate) mod used;
#[cfg(not(loom))]
pub(crate) mod vq;

#[cfg(all(feature = "rust-vmm", not(loom)))]
pub use chain_memory::ChainMemory;
#[cfg(not(loom))]
pub use element::{Element, GuestSlice};
#[cfg(not(loom))]
pub use stats::VqStats;
#[cfg(not(loom))]
pub use vq::Virtqueue;
#[cfg(not(loom))]
pub(crate) use {
    element::{complete, read_out, suspend, write_in},
    staged::MAX_STAGE,
    vq::{Look, Queue, Setup},
};

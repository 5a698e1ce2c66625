//! When to kick and when to interrupt: the two halves of the virtio notification protocol.
//!
//! Both sides do the same: each stores its own word, then reads the other's. The device stores `avail_event` (or clears
//! its no-notify flag) and reads the available index; the driver stores the available index and reads `avail_event`.
//! With a full fence between store and load on both sides, at least one of them sees the other's store, so a buffer is
//! either found by the look that follows re-arming, or announced by a kick. Interrupts are the mirror image.
//! The models in `notify_loom.rs` run this code on both sides, and lose a notification once a fence is taken away.

use super::order::Order;
use crate::sync::{AtomicU16, Ordering, fence};

/// Stores this side's word, then reads the other side's, in that order for everybody.
#[inline(always)]
pub(crate) fn store_then_load<O: Order>(own: &AtomicU16, value: u16, other: &AtomicU16) -> u16 {
    in_order(
        // Release: pairs with the driver's acquiring load of an index; what was written before is visible with it.
        || own.store(O::u16(value), Ordering::Release),
        // Relaxed: the value decides about a notification only; data is read after another, acquiring load.
        || O::u16(other.load(Ordering::Relaxed)),
    )
}

/// The same for words of any size: `store` is one store and `load` one load.
#[inline(always)]
pub(crate) fn in_order<T>(store: impl FnOnce(), load: impl FnOnce() -> T) -> T {
    store();
    // Pairs with the fence that the driver has between its own store and load.
    fence(Ordering::SeqCst);
    load()
}

/// Whether the step of an index from `old` to `new` passes the position `event`, so that the other side, which waits
/// for the entry at `event`, must hear of it.
#[inline(always)]
pub(crate) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(all(test, loom))]
#[path = "notify_loom.rs"]
mod models;

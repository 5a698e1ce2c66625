//! The elements popped by one owner over one table, and what they pin.

use crate::memory::RegionTable;
use crate::sync::Arc;

use super::Queue;
use crate::virtqueue::inflight::EpochCount;

/// The elements popped by one owner over one table, and what they pin.
pub(super) struct Epoch {
    pub(super) count: EpochCount,
    pub(super) queue: Arc<Queue>,
    pub(super) _table: Arc<RegionTable>,
}

/// One element of an epoch is done.
///
/// # Safety
/// The element counts in `epoch`, which therefore lives; it does not afterwards.
pub(super) unsafe fn complete_in(epoch: *const Epoch) {
    // SAFETY: the caller's promise.
    if unsafe { (*epoch).count.complete(1) } {
        // SAFETY: this was the last one.
        unsafe { release_epoch(epoch) };
    }
}

/// # Safety
/// `epoch` came from `Box::into_raw`, and this is the one call after its count said "last".
pub(super) unsafe fn release_epoch(epoch: *const Epoch) {
    // SAFETY: the caller's promise.
    let Epoch { queue, _table, .. } = *unsafe { Box::from_raw(epoch.cast_mut()) };
    // The mapping goes before the gate says so.
    drop(_table);
    if queue.gate.dec() == Ok(true) {
        queue.server.became_idle();
    }
}

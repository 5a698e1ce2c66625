//! The elements popped by one owner over one table, and what they pin.

use crate::memory::Regions;
use crate::sync::Arc;

use super::Queue;
use crate::virtqueue::inflight::EpochCount;

/// The elements popped by one owner over one table, and what they pin. Aligned as the queue is: other threads count in it.
#[repr(align(128))]
pub(super) struct Epoch {
    pub(super) count: EpochCount,
    pub(super) queue: Arc<Queue>,
    /// What its elements' buffers lie in.
    pub(super) regions: Arc<Regions>,
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
    let Epoch { queue, regions, .. } = *unsafe { Box::from_raw(epoch.cast_mut()) };
    // The mapping goes before the gate says so.
    drop(regions);
    if queue.gate.dec() == Ok(true) {
        queue.server.became_idle();
    }
}

/// What an element's buffers lie in.
///
/// # Safety
/// `epoch` is the stamp of an element that is not completed.
#[cfg(feature = "rust-vmm")]
pub(in crate::virtqueue) unsafe fn regions_of(epoch: *const ()) -> Arc<Regions> {
    // SAFETY: the caller's promise: the element counts in its epoch, which therefore lives.
    unsafe { (*epoch.cast::<Epoch>()).regions.clone() }
}

//! What the front-end has said about one ring.

use crate::protocol::messages::VringAddr;
use crate::sync::Arc;
use crate::virtqueue::kick::KickSource;

#[derive(Default)]
pub(super) struct Vring {
    /// Descriptors; 0 until SET_VRING_NUM.
    pub(super) size: u16,
    pub(super) addresses: Option<VringAddr>,
    /// Where the ring begins at the next start, in the form of SET_VRING_BASE; `None` before the first start.
    pub(super) base: Option<u32>,
    /// What SET_VRING_ENDIAN said; a legacy ring has the machine's order without it.
    pub(super) big_endian: Option<bool>,
    /// Where the ring stood when a reset of the status stopped it, until it is set up again: QEMU 7.2 resets the status
    /// of a device whose guest is paused or leaves, and then asks where its rings stand.
    pub(super) stood: Option<u32>,
    /// Set: the front-end has started the ring.
    pub(super) kick: Option<Arc<KickSource>>,
    /// The queue has been prepared for this start: it is offered whenever it is INTERNAL and may run.
    pub(super) prepared: bool,
    /// The last event before the start; the queue is offered after it.
    pub(super) after_event: u64,
}

impl Vring {
    pub(super) fn is_started(&self) -> bool {
        self.kick.is_some()
    }

    /// Back to what it was before the first message about it.
    pub(super) fn reset(&mut self) {
        *self = Vring {
            stood: self.stood,
            ..Vring::default()
        };
    }
}

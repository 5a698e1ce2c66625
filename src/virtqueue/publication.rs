//! The used side of a queue: everything that a completion touches, under one lock per publication.

use crate::memory::RegionTable;
use crate::sync::Arc;

use super::areas::SplitAreas;
use super::slot::{Slot, SlotReturns};
use super::used::{UsedElem, UsedRing};

/// Guarded by the queue's publication lock.
#[derive(Default)]
pub(super) struct Publication {
    /// Whoever still arrives or moves to another table does not bring the ring back.
    dead: bool,
    used: Option<UsedRing>,
    /// Pins the mapping that `used` points into.
    table: Option<Arc<RegionTable>>,
    /// Where other threads put slots back.
    returns: Option<Arc<SlotReturns>>,
}

impl Publication {
    /// The owner, as it takes a ring: `areas` were resolved with `table`.
    ///
    /// A ring that is running keeps its index; a fresh one starts where the used ring in guest memory says,
    /// which is what a driver that survived another back-end expects.
    pub(super) fn place(
        &mut self,
        areas: SplitAreas,
        event_idx: bool,
        table: Arc<RegionTable>,
        returns: Arc<SlotReturns>,
    ) {
        self.returns = Some(returns);
        if self.dead {
            return;
        }
        let next = match &self.used {
            Some(used) => used.next_index(),
            None => UsedRing::read_index(areas),
        };
        self.used = Some(UsedRing::new(areas, event_idx, next));
        self.table = Some(table);
    }

    /// The internal thread, for a queue without an owner: the same ring over a newer table.
    pub(super) fn rebase(&mut self, areas: SplitAreas, event_idx: bool, table: Arc<RegionTable>) {
        if let Some(used) = &self.used {
            self.used = Some(UsedRing::new(areas, event_idx, used.next_index()));
            self.table = Some(table);
        }
    }

    /// The ring is dead until [`revive`](Self::revive): completions no longer touch it. The caller drops the
    /// mapping, outside of the lock.
    pub(super) fn retire(&mut self) -> Option<Arc<RegionTable>> {
        self.dead = true;
        self.used = None;
        self.table.take()
    }

    /// A fresh ring takes the dead one's place.
    pub(super) fn revive(&mut self) {
        self.dead = false;
    }

    /// Publishes a batch. True if the driver wants a notification; `None` if the ring is dead.
    pub(super) fn publish(&mut self, batch: &[UsedElem]) -> Option<bool> {
        self.used.as_mut().map(|used| used.publish(batch))
    }

    /// A slot whose element was completed on a thread that does not own the queue.
    ///
    /// # Safety
    /// The slot belongs to this queue's pool and nobody uses it any more.
    pub(super) unsafe fn give_back(&self, slot: *mut Slot) {
        if let Some(returns) = &self.returns {
            // SAFETY: the caller's promise.
            unsafe { returns.release(&[slot]) };
        }
    }
}

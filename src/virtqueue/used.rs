//! The used side of a split ring: returned chains, the used index, and the decision to interrupt.
//!
//! It lives under the queue's publication lock. Nothing the guest writes into the used ring is ever read back.

use super::areas::SplitAreas;
use super::notify;
use super::order::{Big, Little, Order};
use super::ring::RingFeatures;
use super::slot::Slot;
use crate::memory::DirtyLog;
use crate::sync::{Arc, Ordering};

/// The driver wants no interrupts (flags of the available ring; without `EVENT_IDX` only).
const NO_INTERRUPT: u16 = 1;

/// One returned chain. One word, so that it is stored and loaded in one piece: a wide load after two narrow stores would
/// have to wait for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UsedElem(u64);

impl UsedElem {
    /// The chain at `head`, into which the device wrote `len` bytes.
    #[inline(always)]
    pub(crate) fn new(head: u16, len: u32) -> UsedElem {
        UsedElem(u64::from(head) | u64::from(len) << 32)
    }

    /// The chain of a live element, into which the device wrote `len` bytes.
    #[inline(always)]
    pub(crate) fn of(slot: &Slot, len: u32) -> UsedElem {
        UsedElem(u64::from(slot.chain()) | u64::from(len) << 32)
    }

    /// The chain's head; in a packed ring, the buffer's id.
    #[inline(always)]
    pub(crate) fn head(self) -> u16 {
        self.0 as u16
    }

    /// How many descriptors of a packed ring the chain took.
    #[inline(always)]
    pub(crate) fn descs(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Bytes the device wrote.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Where writes to a used ring are marked (vhost-user specification, "Migration"): as if its first byte were at `base`.
#[derive(Clone, Debug)]
pub(crate) struct UsedLog {
    pub(crate) log: Arc<DirtyLog>,
    pub(crate) base: u64,
}

impl UsedLog {
    /// After `len` bytes of the ring were written.
    pub(crate) fn mark(&self, offset: usize, len: usize) {
        self.log
            .mark(self.base.saturating_add(offset as u64), len as u64);
    }
}

/// Where the next returned chain goes, and what the driver has been told.
#[derive(Debug)]
pub(crate) struct UsedRing {
    areas: SplitAreas,
    features: RingFeatures,
    next: u16,
    /// Whether an interrupt has been decided upon since the start. Before that, what the driver was told last is
    /// unknown, and the first publication interrupts.
    decided: bool,
}

impl UsedRing {
    /// The used side, to continue at index `next`.
    pub(crate) fn new(areas: SplitAreas, features: RingFeatures, next: u16) -> UsedRing {
        UsedRing {
            areas,
            features,
            next,
            decided: false,
        }
    }

    /// The used index in guest memory: where a ring that starts goes on.
    pub(crate) fn read_index(areas: SplitAreas, features: RingFeatures) -> u16 {
        // Relaxed: nothing else is read by it; only this back-end ever wrote it.
        let index = areas.used_index().load(Ordering::Relaxed);
        if features.big_endian {
            Big::u16(index)
        } else {
            Little::u16(index)
        }
    }

    /// The head of the chain that was returned `n` chains before the one at `next`: what a ring that starts goes by. The
    /// guest can write anything there.
    pub(crate) fn read_head(areas: SplitAreas, features: RingFeatures, next: u16, n: u16) -> u32 {
        let [id, _] = areas.used_entry(next.wrapping_sub(1).wrapping_sub(n));
        // Relaxed: as above.
        let id = id.load(Ordering::Relaxed);
        if features.big_endian {
            Big::u32(id)
        } else {
            Little::u32(id)
        }
    }

    /// The index of the next entry.
    pub(crate) fn next_index(&self) -> u16 {
        self.next
    }

    /// Returns the chains to the driver, at most as many as the ring has entries. Says whether to interrupt.
    #[inline(always)]
    pub(crate) fn publish(&mut self, batch: &[UsedElem]) -> bool {
        if self.features.big_endian {
            self.publish_in::<Big>(batch)
        } else {
            self.publish_in::<Little>(batch)
        }
    }

    #[inline(never)]
    fn publish_in<O: Order>(&mut self, batch: &[UsedElem]) -> bool {
        // More would be a fault of this library; the ring's bounds hold all the same.
        debug_assert!(batch.len() <= usize::from(self.areas.size()));
        let batch = &batch[..batch.len().min(self.areas.size().into())];
        if batch.is_empty() {
            return false;
        }
        let (areas, old) = (self.areas, self.next);
        let mut next = old;
        for elem in batch {
            let [id, len] = areas.used_entry(next);
            // Relaxed: the release of the index makes the entry visible.
            id.store(O::u32(elem.head().into()), Ordering::Relaxed);
            len.store(O::u32(elem.len()), Ordering::Relaxed);
            next = next.wrapping_add(1);
        }
        self.next = next;
        self.announce::<O>(old)
    }

    /// After the newest `count` entries were published.
    pub(crate) fn mark_published(&self, log: &UsedLog, count: usize) {
        let size = usize::from(self.areas.size());
        let count = count.min(size);
        let first = usize::from(self.next.wrapping_sub(count as u16)) % size;
        let before_end = count.min(size - first);
        log.mark(SplitAreas::used_entry_offset(first), 8 * before_end);
        log.mark(SplitAreas::used_entry_offset(0), 8 * (count - before_end));
        log.mark(SplitAreas::USED_INDEX_OFFSET, 2);
    }

    /// Moves the index from `old` to `next` and looks whether the driver waits for that.
    #[inline(always)]
    fn announce<O: Order>(&mut self, old: u16) -> bool {
        let areas = self.areas;
        if !self.features.event_idx {
            let flags =
                notify::store_then_load::<O>(areas.used_index(), self.next, areas.avail_flags());
            return flags & NO_INTERRUPT == 0;
        }
        let event = notify::store_then_load::<O>(areas.used_index(), self.next, areas.used_event());
        let first = !std::mem::replace(&mut self.decided, true);
        first || notify::passes(event, self.next, old)
    }
}

//! The region of a packed ring.
//!
//! It holds the descriptors of what is in flight: in the ring, used descriptors may have overwritten them. Entries that hold
//! none are in a list of free ones. What the back-end has done counts in the moment in which `old_free_head` or, for what it
//! returns, the ring itself says so; a successor takes back the rest.
//!
//! Nothing that a tracker needs is read from the region while the ring runs: the list and the chains are kept in private
//! memory and the region is written only.

mod field;
mod recover;
mod tracker;

use super::{ALIGN, Region};
use crate::memory::SharedArea;
use crate::sync::{Arc, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use field::Field;

pub(crate) use recover::Recovered;
pub(crate) use tracker::PackedTracker;

const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const FREE_AT: usize = 12;
const OLD_FREE_AT: usize = 14;
const USED_AT: usize = 16;
const OLD_USED_AT: usize = 18;
const WRAP_AT: usize = 20;
const OLD_WRAP_AT: usize = 21;
const HEAD_SIZE: usize = 32;

const ENTRY_SIZE: usize = 32;
const IN_FLIGHT_AT: usize = 0;
const NEXT_AT: usize = 2;
const LAST_AT: usize = 4;
const NUM_AT: usize = 6;
const COUNTER_AT: usize = 8;
const ID_AT: usize = 16;
const FLAGS_AT: usize = 18;
const LEN_AT: usize = 20;
const ADDR_AT: usize = 24;

/// Flags of a packed descriptor that say whose it is.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A place in the ring, and the wrap counter of the lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingPosition {
    pub(crate) index: u16,
    pub(crate) wrap: bool,
}

impl RingPosition {
    /// `count` descriptors further, once around at most.
    fn after(self, count: u16, ring_size: u16) -> RingPosition {
        // Both are 32768 at most.
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(ring_size.into()) {
            Some(index) => RingPosition {
                index: index as u16,
                wrap: !self.wrap,
            },
            None => RingPosition {
                index: index as u16,
                ..self
            },
        }
    }

    /// Whether flags are those of a descriptor that is available in this lap.
    fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == if self.wrap { AVAIL } else { USED }
    }
}

/// A descriptor as it was in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredDesc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

/// A chain that a predecessor has popped and not returned. The descriptors are the guest's own at best, and nobody has
/// looked at more than the last one's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoveredChain {
    pub(crate) id: u16,
    pub(crate) descs: Vec<StoredDesc>,
}

/// A queue's region.
#[derive(Clone, Debug)]
pub(crate) struct PackedRegion(Region);

impl PackedRegion {
    /// Bytes of a region for a packed ring of this size.
    pub(crate) fn size(entries: u16) -> usize {
        (HEAD_SIZE + ENTRY_SIZE * usize::from(entries)).next_multiple_of(ALIGN)
    }

    /// The region at `index`; `None` if the area does not reach as far.
    pub(crate) fn new(area: &Arc<SharedArea>, index: usize, entries: u16) -> Option<PackedRegion> {
        Region::new(area, index, Self::size(entries), entries).map(PackedRegion)
    }

    fn head(&self, at: usize) -> Field<'_, AtomicU16> {
        // SAFETY: one of the 16-bit fields above, which are even.
        Field(unsafe { self.0.field(at) })
    }

    fn wrap(&self, at: usize) -> Field<'_, AtomicU8> {
        // SAFETY: one of the two wrap counters above.
        Field(unsafe { self.0.field(at) })
    }

    fn entry_at(&self, entry: u16) -> usize {
        // The callers' entries are checked when they are read.
        debug_assert!(entry < self.0.entries);
        HEAD_SIZE + ENTRY_SIZE * usize::from(entry.min(self.0.entries - 1))
    }

    fn in_flight(&self, entry: u16) -> Field<'_, AtomicU8> {
        // SAFETY: within an entry.
        Field(unsafe { self.0.field(self.entry_at(entry) + IN_FLIGHT_AT) })
    }

    /// A 16-bit field of an entry.
    fn word(&self, entry: u16, at: usize) -> Field<'_, AtomicU16> {
        // SAFETY: within an entry; all of those fields are even.
        Field(unsafe { self.0.field(self.entry_at(entry) + at) })
    }

    fn len(&self, entry: u16) -> Field<'_, AtomicU32> {
        // SAFETY: within an entry, a multiple of 4.
        Field(unsafe { self.0.field(self.entry_at(entry) + LEN_AT) })
    }

    /// A 64-bit field of an entry.
    fn long(&self, entry: u16, at: usize) -> Field<'_, AtomicU64> {
        // SAFETY: within an entry; both of those fields are multiples of 8.
        Field(unsafe { self.0.field(self.entry_at(entry) + at) })
    }

    fn desc(&self, entry: u16) -> StoredDesc {
        StoredDesc {
            addr: self.long(entry, ADDR_AT).load(),
            len: self.len(entry).load(),
            id: self.word(entry, ID_AT).load(),
            flags: self.word(entry, FLAGS_AT).load(),
        }
    }

    fn set_desc(&self, entry: u16, desc: StoredDesc) {
        self.long(entry, ADDR_AT).store(desc.addr);
        self.len(entry).store(desc.len);
        self.word(entry, FLAGS_AT).store(desc.flags);
        self.word(entry, ID_AT).store(desc.id);
    }

    /// The used position, or the old one.
    fn set_position(&self, index_at: usize, wrap_at: usize, position: RingPosition) {
        // In this order: whoever finds the one without the other looks at the ring and sees that the position was reached.
        self.head(index_at).store(position.index);
        self.wrap(wrap_at).store(position.wrap.into());
    }
}

#[cfg(test)]
#[path = "../packed_tests.rs"]
mod tests;

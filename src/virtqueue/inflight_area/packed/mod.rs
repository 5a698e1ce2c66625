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
use crate::virtqueue::areas::Desc;
use crate::virtqueue::place::Place;
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

/// A descriptor as it was in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredDesc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

impl From<Desc> for StoredDesc {
    fn from(desc: Desc) -> StoredDesc {
        StoredDesc {
            addr: desc.addr,
            len: desc.len(),
            // Of a packed descriptor that is the id.
            id: desc.next(),
            flags: desc.flags(),
        }
    }
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
    fn set_place(&self, index_at: usize, wrap_at: usize, place: Place) {
        // In this order: whoever finds the one without the other looks at the ring and sees that the position was reached.
        self.head(index_at).store(place.index);
        self.wrap(wrap_at).store(place.wrap.into());
    }
}

#[cfg(test)]
#[path = "../packed_tests.rs"]
mod tests;

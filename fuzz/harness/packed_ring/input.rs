//! What a guest writes: descriptors that are available most of the time, with ids that are right more often than not.

use arbitrary::Arbitrary;

use crate::harness::Many;
use crate::harness::sim::packed_ring::{DESC_AVAIL, DESC_USED, avail_flags};
use crate::harness::sim::{PackedDesc, Position};
use crate::harness::split_ring::input as split;

#[derive(Arbitrary, Debug)]
pub struct Input {
    size: u8,
    pub indirect: bool,
    pub event_idx: bool,
    index: u8,
    wrap: bool,
    pub event: u16,
    pub event_flags: u8,
    pub entries: Many<Entry>,
}

impl Input {
    pub fn size(&self) -> u16 {
        u16::from(self.size) + 1
    }

    /// Where both sides begin.
    pub fn base(&self) -> Position {
        Position {
            index: u16::from(self.index) % self.size(),
            wrap: self.wrap,
        }
    }
}

/// A descriptor in the ring or in one of the indirect tables.
#[derive(Arbitrary, Debug)]
pub struct Entry {
    entry: split::Entry,
    lap: u8,
    id: u8,
}

impl Entry {
    /// The table, the index in there and the descriptor. Indexes in the ring count from where the device begins.
    pub fn place(&self, ring: u64, input: &Input) -> (u64, u16, PackedDesc) {
        let (table, entries) = self.entry.table(ring, input.size());
        let desc = self.entry.desc();
        let mut index = self.entry.index() % entries;
        let mut flags = desc.flags;
        let mut id = desc.next;
        if table == ring {
            let place = input.base().after(index, input.size());
            // Different for different places, unless it is to be wrong.
            id = match self.id {
                0..=199 => place.index,
                200..=239 => self.id.into(),
                _ => desc.next,
            };
            index = place.index;
            flags |= match self.lap {
                255 => DESC_AVAIL | DESC_USED,
                254 => 0,
                lap => avail_flags(place.wrap ^ (lap > 247)),
            };
        }
        let (addr, len) = (desc.addr, desc.len);
        let desc = PackedDesc {
            addr,
            len,
            id,
            flags,
        };
        (table, index, desc)
    }
}

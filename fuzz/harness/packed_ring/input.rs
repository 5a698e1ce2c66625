//! What a guest writes into a packed ring: right most of the time, and most often at the place that is popped next.

use arbitrary::Arbitrary;

use crate::harness::sim::packed_ring::{DESC_AVAIL, DESC_USED, avail_flags, used_flags};
use crate::harness::sim::{Desc, PackedDesc, Position};
use crate::harness::split_ring::input::{Entry, Write};
use crate::harness::{Many, pick};

use super::rig::LAYOUT;

/// No powers of two, for the most part.
const LARGE: [u16; 8] = [255, 256, 257, 300, 511, 1000, 1023, 1024];

#[derive(Arbitrary, Debug)]
pub struct Input {
    size: u8,
    pub indirect: bool,
    pub event_idx: bool,
    avail: u16,
    used: u16,
    /// The used side begins where it likes, not where the available one does.
    apart: u8,
    race: u8,
    /// A base that no ring of this size has is tried first.
    bad_base: u8,
    /// All is completed within one kick, or one after the other.
    pub batch: bool,
    /// What the driver wants to hear: a word of two halves.
    event: u16,
    event_flags: u16,
    /// What the driver writes where the device says what it wants to hear.
    pub device_event: (u16, u16),
    ring: Many<Slot>,
    entries: Many<Entry>,
    other: Many<Slot>,
}

/// A descriptor of the ring; the entry's place says nothing here.
#[derive(Arbitrary, Debug)]
struct Slot {
    owner: u8,
    entry: Entry,
}

impl Input {
    pub fn size(&self) -> u16 {
        match self.size {
            small @ 0..224 => 1 + u16::from(small) % 40,
            large => pick(large, &LARGE),
        }
    }

    /// A place in the ring: the lowest bit says which end it is near.
    fn position(&self, word: u16) -> Position {
        let size = self.size();
        let offset = (word >> 1 & 0x3fff) % size;
        Position {
            index: if word & 1 == 0 {
                offset
            } else {
                size - 1 - offset
            },
            wrap: word >> 15 != 0,
        }
    }

    pub fn avail(&self) -> Position {
        self.position(self.avail)
    }

    pub fn used(&self) -> Position {
        let word = if self.apart & 3 == 3 {
            self.used
        } else {
            self.avail
        };
        self.position(word)
    }

    /// As SET_VRING_BASE has it.
    pub fn base(&self) -> u32 {
        base_word(self.avail(), self.used())
    }

    /// A base with an index beyond the ring.
    pub fn bad_base(&self) -> Option<u32> {
        let beyond = Position {
            index: self.size() + u16::from(self.bad_base >> 4),
            wrap: self.bad_base & 8 != 0,
        };
        match self.bad_base & 7 {
            6 => Some(base_word(beyond, self.used())),
            7 => Some(base_word(self.avail(), beyond)),
            _ => None,
        }
    }

    /// What the driver wants to hear: most often a place near the used side, or whatever.
    pub fn driver_event(&self) -> (u16, u16) {
        let at = match self.event_flags >> 8 {
            0..=199 => {
                let ahead = self.event % (self.size() + 1);
                self.used().after(ahead, self.size()).encode()
            }
            _ => self.event,
        };
        (at, self.event_flags & 0xff)
    }

    /// What is in the ring and the tables when it starts.
    pub fn contents(&self) -> impl Iterator<Item = Write> {
        let tables = self.entries.iter().map(|entry| {
            let Write { gpa, .. } = entry.place(LAYOUT.desc, self.size());
            let desc = entry.desc();
            let bytes = packed(desc, desc.next, desc.flags).encode();
            Write { gpa, bytes }
        });
        // The ring last: an entry for it says nothing of the wrap counters.
        tables.chain(self.ring_of(&self.ring))
    }

    /// Written again and again while the ring is read: one input in four.
    pub fn race(&self) -> Option<Vec<Write>> {
        let changed = || self.ring_of(&self.other).chain(self.contents());
        (self.race & 3 == 3).then(|| changed().collect())
    }

    fn ring_of<'a>(&'a self, slots: &'a [Slot]) -> impl Iterator<Item = Write> + 'a {
        let (start, size) = (self.avail(), self.size());
        (0..size).zip(slots).map(move |(offset, slot)| {
            let place = start.after(offset, size);
            Write {
                gpa: LAYOUT.desc + 16 * u64::from(place.index),
                bytes: slot.desc(offset, place.wrap).encode(),
            }
        })
    }
}

impl Slot {
    /// The descriptor at a distance from the ring's start, where the wrap counter is `wrap`.
    fn desc(&self, offset: u16, wrap: bool) -> PackedDesc {
        let desc = self.entry.desc();
        let owner = match self.owner {
            0..=223 => avail_flags(wrap),
            224..=231 => avail_flags(!wrap),
            232..=239 => used_flags(wrap),
            240..=247 => used_flags(!wrap),
            // Flags that nobody has defined.
            other => {
                avail_flags(wrap)
                    | pick(other, &[0x7f78, 0x0008, 0x4000, 0x0100]) & !(DESC_AVAIL | DESC_USED)
            }
        };
        let id = match desc.next {
            // Unlike the place, and unlike all others.
            0..=159 => offset,
            160..=254 => desc.next % 24,
            other => other,
        };
        packed(desc, id, desc.flags | owner)
    }
}

fn packed(desc: Desc, id: u16, flags: u16) -> PackedDesc {
    PackedDesc {
        addr: desc.addr,
        len: desc.len,
        id,
        flags,
    }
}

fn base_word(avail: Position, used: Position) -> u32 {
    u32::from(avail.encode()) | u32::from(used.encode()) << 16
}

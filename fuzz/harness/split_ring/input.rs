//! What a guest writes: addresses, lengths and indexes that are right most of the time.

use arbitrary::Arbitrary;

use crate::harness::sim::ring::DESC_LEN;
use crate::harness::sim::{Desc, GuestMemory};
use crate::harness::{Many, pick};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Indirect tables lie here, so many entries each; the second lies across two regions, the third is misaligned.
pub const TABLES: [u64; 4] = [0x8_0000, MIB - 24, 0x9_0003, MIB + 0x1000];
pub const TABLE_ENTRIES: u16 = 40;

#[derive(Arbitrary, Debug)]
pub struct Input {
    size: u8,
    pub indirect: bool,
    pub event_idx: bool,
    pub base: u16,
    race: u8,
    /// How far the available index is ahead of the base; beyond the ring it is nonsense.
    ahead: u8,
    pub used_event: u16,
    pub avail_flags: u8,
    heads: Many<u8>,
    pub entries: Many<Entry>,
    other: Many<Entry>,
}

impl Input {
    /// Written over the descriptors and tables, again and again, while they are read: one input in eight.
    pub fn race(&self) -> Option<&[Entry]> {
        (self.race % 8 == 7).then_some(&self.other)
    }

    pub fn size(&self) -> u16 {
        1 << (self.size % 9)
    }

    pub fn ahead(&self) -> u16 {
        match self.ahead {
            255 => 0x8000,
            254 => 0xffff,
            253 => self.size() + 1,
            ahead => u16::from(ahead) % (self.size() + 1),
        }
    }

    /// The head in an available ring's entry.
    pub fn head(&self, position: u16) -> u16 {
        match self.heads.get(usize::from(position)) {
            Some(255) => 0xffff,
            Some(&head) => head.into(),
            None => position,
        }
    }
}

/// A descriptor that the guest writes somewhere.
pub struct Write {
    pub gpa: u64,
    pub bytes: [u8; DESC_LEN as usize],
}

impl Write {
    pub fn apply(&self, memory: &GuestMemory) {
        memory.write(self.gpa, &self.bytes).expect("a descriptor");
    }
}

/// A descriptor in the ring's own table or in one of the indirect ones.
#[derive(Arbitrary, Debug)]
pub struct Entry {
    place: u8,
    index: u8,
    addr: u8,
    offset: u16,
    len: u8,
    flags: u8,
    next: u8,
}

impl Entry {
    /// The guest address of the table that this belongs to, and how many entries that has.
    fn table(&self, ring: u64, size: u16) -> (u64, u16) {
        match self.place % 6 {
            0 | 1 => (ring, size),
            other => (TABLES[usize::from(other) - 2], TABLE_ENTRIES),
        }
    }

    /// What is written for this into a ring of `size` at `ring`, or into a table.
    pub fn place(&self, ring: u64, size: u16) -> Write {
        let (table, entries) = self.table(ring, size);
        Write {
            gpa: table + DESC_LEN * u64::from(u16::from(self.index) % entries),
            bytes: self.desc().encode(),
        }
    }

    pub fn desc(&self) -> Desc {
        let offset = u64::from(self.offset);
        let flags = u16::from(self.flags & 7);
        let table = flags & 4 != 0 && self.addr < 192;
        let addr = match self.addr % 16 {
            choice @ 0..4 if table => TABLES[usize::from(choice)],
            0..=5 => 0x2_0000 + offset,
            6 => MIB - offset,
            7 => 2 * MIB - offset,
            8 => MIB + offset,
            9 => (1 << 40) + offset,
            10 => (1 << 40) + (MIB / 16) - offset,
            11 | 12 => (1 << 41) + offset,
            13 => (1 << 41) + GIB - offset,
            14 => 1 << 44,
            _ => u64::MAX - offset,
        };
        let len = match self.len {
            _ if table => 16 * (u32::from(self.len) % 48),
            0..=199 => u32::from(self.len) * 7,
            200..=219 => (MIB + 1) as u32,
            220..=239 => GIB as u32,
            other => pick(other, &[0, 1, u32::MAX, 0x8000_0000, 0x4000_0001, 17]),
        };
        Desc {
            addr,
            len,
            flags,
            next: if self.next == 255 {
                0xffff
            } else {
                self.next.into()
            },
        }
    }
}

//! The rings that all engines run over: where everything lies in guest memory, and what the driver wrote there.

use std::fmt;

pub const RING_SIZE: u16 = 256;

/// In the first region.
const DESC: u64 = 0;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x4000;
/// In every region: indirect tables of 256 bytes, then buffers of 64.
const TABLES: u64 = 0x8000;
const BUFFERS: u64 = 0x1_8000;
const MEMORY: u64 = 64 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[derive(Clone, Copy)]
pub struct Row {
    pub chain: u16,
    pub indirect: bool,
    pub batch: usize,
    pub regions: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.indirect { "indirect" } else { "direct" };
        let text = format!(
            "{} {direct}, batches of {}, regions {}",
            self.chain, self.batch, self.regions
        );
        f.pad(&text)
    }
}

impl Row {
    pub fn region_size(&self) -> u64 {
        (MEMORY / self.regions) & !0xfff
    }

    /// The guest address of an offset in a region.
    pub fn gpa(&self, region: u64, offset: u64) -> u64 {
        0x1_0000_0000 + region % self.regions * 0x1000_0000 + offset
    }

    pub fn desc(&self) -> u64 {
        self.gpa(0, DESC)
    }

    pub fn avail(&self) -> u64 {
        self.gpa(0, AVAIL)
    }

    pub fn used(&self) -> u64 {
        self.gpa(0, USED)
    }

    /// The buffer of the first chain's first descriptor.
    pub fn first_buffer(&self) -> u64 {
        self.gpa(0, BUFFERS)
    }

    /// What the driver writes before the start: descriptors, tables and the heads in the available ring. The buffers are
    /// in random places, except the first one.
    pub fn write(&self, mut write: impl FnMut(u64, &[u8])) {
        let mut random = 1u32;
        let mut place = || {
            random = random.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let region = u64::from(random >> 8);
            let places = (self.region_size() - BUFFERS) / 64;
            self.gpa(region, BUFFERS + u64::from(random >> 4) % places * 64)
        };
        let own = if self.indirect { 1 } else { self.chain };
        let heads = RING_SIZE / own;
        for head in 0..heads {
            let (table, first) = if self.indirect {
                let region = u64::from(head) % self.regions;
                (
                    self.gpa(region, TABLES + u64::from(head) / self.regions * 256),
                    0,
                )
            } else {
                (self.desc(), head * own)
            };
            for index in 0..self.chain {
                let more = if index + 1 < self.chain { NEXT } else { 0 };
                let device = if index > 0 || self.chain == 1 {
                    WRITE
                } else {
                    0
                };
                let addr = if head == 0 && index == 0 {
                    self.first_buffer()
                } else {
                    place()
                };
                let next = if more == 0 { 0 } else { first + index + 1 };
                let at = table + 16 * u64::from(first + index);
                write(at, &encode(addr, 64, more | device, next));
            }
            if self.indirect {
                let at = self.desc() + 16 * u64::from(head);
                write(at, &encode(table, u32::from(self.chain) * 16, INDIRECT, 0));
            }
        }
        for position in 0..RING_SIZE {
            let head = position % heads * own;
            write(
                self.avail() + 4 + 2 * u64::from(position),
                &head.to_le_bytes(),
            );
        }
    }
}

fn encode(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    (u128::from(addr) | u128::from(rest) << 64).to_le_bytes()
}

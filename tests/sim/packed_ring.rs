//! The three areas of a packed virtqueue, as bytes in guest memory. Nothing here keeps books: this is the door for
//! rings that no driver would build.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::error::Result;
use super::memory::{GuestMemory, Region};
use super::ring::DESC_LEN;
use super::wire::VringAddr;

/// Equal to the wrap counter of whoever made the descriptor available.
pub const DESC_AVAIL: u16 = 1 << 7;
/// Equal to the wrap counter of whoever used it, and to `DESC_AVAIL` then.
pub const DESC_USED: u16 = 1 << 15;

/// What an event suppression structure says of notifications.
pub const EVENTS_ENABLE: u16 = 0;
pub const EVENTS_DISABLE: u16 = 1;
/// Only for the descriptor that its other word names.
pub const EVENTS_DESC: u16 = 2;

const EVENTS_LEN: u64 = 4;

/// Both flags of an available descriptor.
pub fn avail_flags(wrap: bool) -> u16 {
    if wrap { DESC_AVAIL } else { DESC_USED }
}

/// Both flags of a used descriptor.
pub fn used_flags(wrap: bool) -> u16 {
    if wrap { DESC_AVAIL | DESC_USED } else { 0 }
}

/// A place in the ring and the lap's wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: u16,
    pub wrap: bool,
}

impl Position {
    pub const START: Position = Position {
        index: 0,
        wrap: true,
    };

    /// As the event suppression structures and either half of a vring base have it.
    pub fn encode(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    pub fn decode(word: u16) -> Self {
        Position {
            index: word & 0x7fff,
            wrap: word >> 15 != 0,
        }
    }

    /// `count` descriptors further in a ring of `size`; at most once around.
    #[must_use]
    pub fn after(self, count: u16, size: u16) -> Self {
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(size.into()) {
            None => Position {
                index: index as u16,
                ..self
            },
            Some(index) => Position {
                index: index as u16,
                wrap: !self.wrap,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDesc {
    pub addr: u64,
    pub len: u32,
    pub id: u16,
    pub flags: u16,
}

impl PackedDesc {
    pub fn encode(&self) -> [u8; DESC_LEN as usize] {
        let mut bytes = [0; DESC_LEN as usize];
        bytes[0..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// Guest addresses of the areas and the ring's size.
#[derive(Clone, Copy, Debug)]
pub struct PackedLayout {
    pub size: u16,
    pub desc: u64,
    /// The driver's event suppression structure: which calls it wants.
    pub driver: u64,
    /// The device's event suppression structure: which kicks it wants.
    pub device: u64,
}

impl PackedLayout {
    pub fn alloc(memory: &GuestMemory, size: u16) -> Result<Self> {
        Ok(PackedLayout {
            size,
            desc: memory.alloc(DESC_LEN * u64::from(size), 16)?,
            driver: memory.alloc(EVENTS_LEN, 4)?,
            device: memory.alloc(EVENTS_LEN, 4)?,
        })
    }

    /// What SET_VRING_ADDR tells the back-end.
    pub fn vring_addr(&self, memory: &GuestMemory, index: u32) -> Result<VringAddr> {
        Ok(VringAddr {
            index,
            flags: 0,
            desc: memory.user_addr(self.desc)?,
            used: memory.user_addr(self.device)?,
            avail: memory.user_addr(self.driver)?,
            log: 0,
        })
    }
}

/// Raw access to a ring. It keeps the regions that the ring lies in.
pub struct PackedRing {
    layout: PackedLayout,
    desc: Arc<Region>,
    driver: Arc<Region>,
    device: Arc<Region>,
}

impl PackedRing {
    pub fn new(memory: &GuestMemory, layout: PackedLayout) -> Result<Self> {
        Ok(PackedRing {
            layout,
            desc: memory.region_at(layout.desc, DESC_LEN * u64::from(layout.size))?,
            driver: memory.region_at(layout.driver, EVENTS_LEN)?,
            device: memory.region_at(layout.device, EVENTS_LEN)?,
        })
    }

    pub fn layout(&self) -> &PackedLayout {
        &self.layout
    }

    /// As a driver leaves the areas that has returned everything and stands at `next`: all used, in this lap or the last.
    pub fn clear(&self, next: Position) -> Result<()> {
        for index in 0..self.layout.size {
            let lap = if index < next.index {
                next.wrap
            } else {
                !next.wrap
            };
            let used = PackedDesc {
                flags: used_flags(lap),
                ..PackedDesc::default()
            };
            self.set_desc(index, used)?;
        }
        self.set_driver_events(0, EVENTS_ENABLE)?;
        self.set_device_events(0, EVENTS_ENABLE)
    }

    fn at(&self, index: u16) -> u64 {
        self.layout.desc + DESC_LEN * u64::from(index)
    }

    /// The whole descriptor, its flags last.
    pub fn set_desc(&self, index: u16, desc: PackedDesc) -> Result<()> {
        self.set_body(index, desc)?;
        self.set_flags(index, desc.flags)
    }

    /// All but the flags.
    pub fn set_body(&self, index: u16, desc: PackedDesc) -> Result<()> {
        let [body @ .., _, _] = desc.encode();
        self.desc.write(self.at(index), &body)
    }

    pub fn flags(&self, index: u16) -> Result<u16> {
        let field = self.desc.atomic_u16(self.at(index) + 14)?;
        // Acquire: pairs with the back-end's release of the flags; id, length and buffers come before them.
        Ok(u16::from_le(field.load(Ordering::Acquire)))
    }

    pub fn set_flags(&self, index: u16, flags: u16) -> Result<()> {
        let field = self.desc.atomic_u16(self.at(index) + 14)?;
        // Release: pairs with the back-end's acquire of the flags; the descriptors of the chain come before them.
        field.store(flags.to_le(), Ordering::Release);
        Ok(())
    }

    /// Id and length of a used descriptor.
    pub fn used(&self, index: u16) -> Result<(u16, u32)> {
        let mut bytes = [0; 6];
        self.desc.read_into(self.at(index) + 8, &mut bytes)?;
        let [a, b, c, d, low, high] = bytes;
        Ok((
            u16::from_le_bytes([low, high]),
            u32::from_le_bytes([a, b, c, d]),
        ))
    }

    /// Where the driver wants a call, and whether it wants any.
    pub fn set_driver_events(&self, position: u16, flags: u16) -> Result<()> {
        let [at, how] = words(&self.driver, self.layout.driver)?;
        store(at, position);
        store(how, flags);
        Ok(())
    }

    /// Where the device wants a kick, and whether it wants any.
    pub fn device_events(&self) -> Result<(u16, u16)> {
        let [at, how] = words(&self.device, self.layout.device)?;
        // The flags first: a position that is newer than they are is never too late.
        let flags = load(how);
        Ok((load(at), flags))
    }

    /// Guests are not supposed to write here once the ring runs.
    pub fn set_device_events(&self, position: u16, flags: u16) -> Result<()> {
        let [at, how] = words(&self.device, self.layout.device)?;
        store(at, position);
        store(how, flags);
        Ok(())
    }
}

/// Position and flags of an event suppression structure.
fn words(region: &Region, gpa: u64) -> Result<[&AtomicU16; 2]> {
    Ok([region.atomic_u16(gpa)?, region.atomic_u16(gpa + 2)?])
}

fn store(word: &AtomicU16, value: u16) {
    // Release: the position before the flags that make it count.
    word.store(value.to_le(), Ordering::Release);
}

fn load(word: &AtomicU16) -> u16 {
    // Acquire: pairs with the back-end's release of its wish.
    u16::from_le(word.load(Ordering::Acquire))
}

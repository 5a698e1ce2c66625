//! The three areas of a split virtqueue, as bytes in guest memory. Nothing
//! here keeps books: this is the door for rings that no driver would build.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::error::Result;
use super::memory::{GuestMemory, Region};
use super::wire::VringAddr;

pub const DESC_NEXT: u16 = 1;
pub const DESC_WRITE: u16 = 2;
pub const DESC_INDIRECT: u16 = 4;

pub const DESC_LEN: u64 = 16;

/// The driver's flag in the available ring: do not call.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// The device's flag in the used ring: do not kick.
pub const USED_NO_NOTIFY: u16 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    pub fn encode(&self) -> [u8; DESC_LEN as usize] {
        self.encode_in(false)
    }

    pub fn encode_in(&self, big_endian: bool) -> [u8; DESC_LEN as usize] {
        let mut bytes = [0; DESC_LEN as usize];
        bytes[0..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.next.to_le_bytes());
        if big_endian {
            for field in [0..8, 8..12, 12..14, 14..16] {
                bytes[field].reverse();
            }
        }
        bytes
    }
}

/// Guest addresses of the areas and the ring's size.
#[derive(Clone, Copy, Debug)]
pub struct RingLayout {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

impl RingLayout {
    /// Bytes of the available ring, with the used_event field.
    pub fn avail_len(size: u16) -> u64 {
        6 + 2 * u64::from(size)
    }

    /// Bytes of the used ring, with the avail_event field.
    pub fn used_len(size: u16) -> u64 {
        6 + 8 * u64::from(size)
    }

    pub fn alloc(memory: &GuestMemory, size: u16) -> Result<Self> {
        Ok(RingLayout {
            size,
            desc: memory.alloc(DESC_LEN * u64::from(size), 16)?,
            avail: memory.alloc(Self::avail_len(size), 2)?,
            used: memory.alloc(Self::used_len(size), 4)?,
        })
    }

    /// What SET_VRING_ADDR tells the back-end.
    pub fn vring_addr(&self, memory: &GuestMemory, index: u32) -> Result<VringAddr> {
        Ok(VringAddr {
            index,
            flags: 0,
            desc: memory.user_addr(self.desc)?,
            used: memory.user_addr(self.used)?,
            avail: memory.user_addr(self.avail)?,
            log: 0,
        })
    }
}

/// Raw access to a ring. It keeps the regions that the ring lies in.
pub struct Ring {
    layout: RingLayout,
    desc: Arc<Region>,
    avail: Arc<Region>,
    used: Arc<Region>,
    /// The ring of a legacy device's big-endian guest.
    pub big_endian: bool,
}

impl Ring {
    pub fn new(memory: &GuestMemory, layout: RingLayout) -> Result<Self> {
        let size = layout.size;
        Ok(Ring {
            layout,
            desc: memory.region_at(layout.desc, DESC_LEN * u64::from(size))?,
            avail: memory.region_at(layout.avail, RingLayout::avail_len(size))?,
            used: memory.region_at(layout.used, RingLayout::used_len(size))?,
            big_endian: false,
        })
    }

    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// All areas zero, as a driver leaves them before it starts a device.
    pub fn clear(&self) -> Result<()> {
        let layout = &self.layout;
        let size = layout.size;
        let desc_len = (DESC_LEN * u64::from(size)) as usize;
        self.desc.write(layout.desc, &vec![0; desc_len])?;
        let avail_len = RingLayout::avail_len(size) as usize;
        self.avail.write(layout.avail, &vec![0; avail_len])?;
        let used_len = RingLayout::used_len(size) as usize;
        self.used.write(layout.used, &vec![0; used_len])
    }

    pub fn set_desc(&self, index: u16, desc: Desc) -> Result<()> {
        let at = self.layout.desc + DESC_LEN * u64::from(index);
        self.desc.write(at, &desc.encode_in(self.big_endian))
    }

    fn avail_u16(&self, offset: u64) -> Result<&AtomicU16> {
        self.avail.atomic_u16(self.layout.avail + offset)
    }

    fn used_u16(&self, offset: u64) -> Result<&AtomicU16> {
        self.used.atomic_u16(self.layout.used + offset)
    }

    fn convert(&self, value: u16) -> u16 {
        if self.big_endian {
            value.to_be()
        } else {
            value.to_le()
        }
    }

    fn store(&self, field: &AtomicU16, value: u16) {
        // Release: pairs with the back-end's acquire load of the index, so
        // that it sees the entries and descriptors written before.
        field.store(self.convert(value), Ordering::Release);
    }

    fn load(&self, field: &AtomicU16) -> u16 {
        // Acquire: pairs with the back-end's release store of the index, so
        // that the entries and buffers written before it are visible.
        self.convert(field.load(Ordering::Acquire))
    }

    pub fn avail_flags(&self) -> Result<u16> {
        self.avail_u16(0).map(|field| self.load(field))
    }

    pub fn set_avail_flags(&self, flags: u16) -> Result<()> {
        self.store(self.avail_u16(0)?, flags);
        Ok(())
    }

    pub fn avail_idx(&self) -> Result<u16> {
        self.avail_u16(2).map(|field| self.load(field))
    }

    pub fn set_avail_idx(&self, index: u16) -> Result<()> {
        self.store(self.avail_u16(2)?, index);
        Ok(())
    }

    /// Entry `position` modulo the ring's size.
    pub fn set_avail_entry(&self, position: u16, head: u16) -> Result<()> {
        let slot = u64::from(position % self.layout.size);
        self.store(self.avail_u16(4 + 2 * slot)?, head);
        Ok(())
    }

    pub fn used_event(&self) -> Result<u16> {
        self.avail_u16(4 + 2 * u64::from(self.layout.size))
            .map(|field| self.load(field))
    }

    pub fn set_used_event(&self, index: u16) -> Result<()> {
        let offset = 4 + 2 * u64::from(self.layout.size);
        self.store(self.avail_u16(offset)?, index);
        Ok(())
    }

    pub fn used_flags(&self) -> Result<u16> {
        self.used_u16(0).map(|field| self.load(field))
    }

    pub fn used_idx(&self) -> Result<u16> {
        self.used_u16(2).map(|field| self.load(field))
    }

    /// Guests are not supposed to write here.
    pub fn set_used_idx(&self, index: u16) -> Result<()> {
        self.store(self.used_u16(2)?, index);
        Ok(())
    }

    /// Entry `position` modulo the ring's size: id and length.
    pub fn used_entry(&self, position: u16) -> Result<(u32, u32)> {
        let slot = u64::from(position % self.layout.size);
        let mut bytes = [0; 8];
        self.used
            .read_into(self.layout.used + 4 + 8 * slot, &mut bytes)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        let number = if self.big_endian {
            u32::from_be_bytes
        } else {
            u32::from_le_bytes
        };
        Ok((number([a, b, c, d]), number([e, f, g, h])))
    }

    /// Guests are not supposed to write here either.
    pub fn set_used_entry(&self, position: u16, id: u32) -> Result<()> {
        let slot = u64::from(position % self.layout.size);
        self.used
            .write(self.layout.used + 4 + 8 * slot, &id.to_le_bytes())
    }

    pub fn avail_event(&self) -> Result<u16> {
        self.used_u16(4 + 8 * u64::from(self.layout.size))
            .map(|field| self.load(field))
    }
}

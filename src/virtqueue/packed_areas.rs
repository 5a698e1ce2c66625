//! The three areas of a packed ring in guest memory, and the only way to touch them: aligned atomic accesses, each to a
//! word that is inside by construction.

use super::areas::{Desc, MAX_RING_SIZE};
use super::place::Place;
use super::ring_error::RingError;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Flags of a descriptor that say whose it is: both as the device's wrap counter once it is used, `USED` the opposite while
/// it is available.
pub(super) const AVAIL: u16 = 1 << 7;
pub(super) const USED: u16 = 1 << 15;

/// The descriptor is available to a device with this wrap counter.
#[inline(always)]
pub(super) fn is_available(flags: u16, wrap: bool) -> bool {
    flags & (AVAIL | USED) == if wrap { AVAIL } else { USED }
}

/// Host pointers to the areas, each resolved over its full length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedAreas {
    desc: *mut u8,
    driver: *mut u8,
    device: *mut u8,
    size: u16,
}

// SAFETY: pointers to shared memory without thread affinity, touched through atomics only.
unsafe impl Send for PackedAreas {}
// SAFETY: as above.
unsafe impl Sync for PackedAreas {}

impl PackedAreas {
    pub(crate) const DESC_ALIGN: usize = 16;
    pub(crate) const EVENT_ALIGN: usize = 4;

    /// # Errors
    /// The size is not one of a packed ring, or a host pointer is not aligned.
    ///
    /// # Safety
    /// Each pointer is good for the length that [`RingLayout::packed`](super::areas::RingLayout::packed) gives for this ring,
    /// as long as a copy of this lives.
    pub(crate) unsafe fn new(
        desc: *mut u8,
        driver: *mut u8,
        device: *mut u8,
        size: u16,
    ) -> Result<PackedAreas, RingError> {
        if size == 0 || size > MAX_RING_SIZE {
            return Err(RingError::PackedSize { size });
        }
        for (area, host, align) in [
            ("descriptor ring", desc, PackedAreas::DESC_ALIGN),
            ("driver event suppression", driver, PackedAreas::EVENT_ALIGN),
            ("device event suppression", device, PackedAreas::EVENT_ALIGN),
        ] {
            if host.addr() % align != 0 {
                return Err(RingError::Misaligned {
                    area,
                    host: host.addr(),
                    align,
                });
            }
        }
        Ok(PackedAreas {
            desc,
            driver,
            device,
            size,
        })
    }

    #[inline(always)]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The same event suppression with other descriptors.
    ///
    /// # Safety
    /// `desc` is good for `size` descriptors, 8-aligned, as long as a copy of this lives; nothing is written to them.
    pub(super) unsafe fn over(self, desc: *const u8, size: u16) -> PackedAreas {
        PackedAreas {
            desc: desc.cast_mut(),
            size,
            ..self
        }
    }

    #[inline(always)]
    pub(super) fn desc_ring(&self) -> *const u8 {
        self.desc
    }

    pub(super) fn device_area(&self) -> *const u8 {
        self.device
    }

    /// Length, id and flags of a descriptor.
    #[inline(always)]
    fn word(&self, place: Place) -> &AtomicU64 {
        let index = usize::from(place.index);
        debug_assert!(index < usize::from(self.size));
        // SAFETY: the index of a place is below the ring's size, and the area is 16-aligned.
        unsafe { &*self.desc.add(Desc::SIZE * index + 8).cast() }
    }

    /// Whether the descriptor at a place is available, as far as one relaxed load can tell.
    #[inline(always)]
    pub(super) fn has_available(&self, place: Place) -> bool {
        // Relaxed: a hint; the walk loads again.
        let word = u64::from_le(self.word(place).load(Ordering::Relaxed));
        is_available((word >> 48) as u16, place.wrap)
    }

    /// A descriptor, whoever has it.
    pub(super) fn desc(&self, index: u16) -> Desc {
        // SAFETY: below the ring's size. Acquire: whatever the flags say, the rest is not older.
        unsafe { Desc::read_packed(self.desc, index.min(self.size - 1), Ordering::Acquire) }
    }

    /// Writes a used descriptor: one store, so that the driver finds id and length whenever it finds the flags.
    #[inline(always)]
    pub(super) fn write_used(&self, place: Place, id: u16, len: u32) {
        let owner = if place.wrap { AVAIL | USED } else { 0 };
        let written = if len > 0 { 2 } else { 0 };
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(owner | written) << 48;
        // Release: pairs with the driver's acquiring load of the flags; what the device wrote is visible with them.
        self.word(place).store(word.to_le(), Ordering::Release);
    }

    /// What the driver wants to hear: index and wrap counter in the low half, flags in the high one.
    #[inline(always)]
    pub(super) fn driver_event(&self) -> &AtomicU32 {
        // SAFETY: 4 bytes, 4-aligned.
        unsafe { &*self.driver.cast() }
    }

    /// What the device wants to hear, in the same form.
    #[inline(always)]
    pub(super) fn device_event(&self) -> &AtomicU32 {
        // SAFETY: 4 bytes, 4-aligned.
        unsafe { &*self.device.cast() }
    }
}

/// The words of both event suppression structures.
pub(super) mod event {
    use super::Place;

    /// Every buffer is told.
    pub(in crate::virtqueue) const ENABLE: u32 = 0;
    /// None is.
    pub(in crate::virtqueue) const DISABLE: u32 = 1 << 16;
    /// The one at a place is; negotiated `EVENT_IDX` only.
    pub(in crate::virtqueue) const DESC: u32 = 2 << 16;
    /// Which of these it is.
    pub(in crate::virtqueue) const FLAGS: u32 = 3 << 16;

    /// Tells of the buffer at `place`.
    #[inline(always)]
    pub(in crate::virtqueue) fn at(place: Place) -> u32 {
        DESC | u32::from(place.word())
    }
}

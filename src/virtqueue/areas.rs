//! The three areas of a split ring in guest memory, and the only way to touch them: aligned atomic accesses, each to a
//! word that is inside by construction. How long the areas of either kind of ring are, and what a descriptor is.

use super::order::Order;
use super::ring_error::RingError;
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The largest ring of either kind.
pub(crate) const MAX_RING_SIZE: u16 = 1 << 15;

/// What the areas of a ring are called.
pub(crate) const SPLIT_AREAS: [&str; 3] = ["descriptor ring", "available ring", "used ring"];
pub(crate) const PACKED_AREAS: [&str; 3] = [
    "descriptor ring",
    "driver event suppression",
    "device event suppression",
];

/// Bytes of the areas of a ring. A packed one has the driver's and the device's event suppression in place of the available
/// and the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingLayout {
    pub(crate) desc: usize,
    pub(crate) avail: usize,
    pub(crate) used: usize,
}

impl RingLayout {
    /// The lengths for a split ring of this size, with the two event words if they were negotiated.
    pub(crate) const fn split(size: u16, event_idx: bool) -> RingLayout {
        let size = size as usize;
        let event = if event_idx { 2 } else { 0 };
        RingLayout {
            desc: 16 * size,
            avail: 4 + 2 * size + event,
            used: 4 + 8 * size + event,
        }
    }

    /// The lengths for a packed ring of this size.
    pub(crate) const fn packed(size: u16) -> RingLayout {
        RingLayout {
            desc: Desc::SIZE * size as usize,
            avail: 4,
            used: 4,
        }
    }
}

/// Host pointers to the areas, each resolved over its full [`RingLayout`] length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitAreas {
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
}

// SAFETY: pointers to shared memory without thread affinity, touched through atomics only.
unsafe impl Send for SplitAreas {}
// SAFETY: as above.
unsafe impl Sync for SplitAreas {}

/// A descriptor in private memory: two words, so that it is handed on in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    /// Length, flags and next, from the low bits up.
    rest: u64,
}

impl Desc {
    pub(super) const SIZE: usize = 16;
    pub(super) const NEXT: u64 = 1 << 32;
    pub(super) const WRITE: u64 = 2 << 32;
    pub(super) const INDIRECT: u64 = 4 << 32;

    /// Reads each byte of the descriptor exactly once.
    ///
    /// # Safety
    /// `table` is 8-aligned and `index` inside it.
    #[inline(always)]
    pub(super) unsafe fn read<O: Order>(table: *const u8, index: u16) -> Desc {
        // SAFETY: the caller's promise. Relaxed: the acquiring load of the available index comes before.
        unsafe {
            let words = table
                .add(usize::from(index) * Desc::SIZE)
                .cast::<AtomicU64>();
            Desc {
                addr: O::u64((*words).load(Ordering::Relaxed)),
                rest: O::desc_rest((*words.add(1)).load(Ordering::Relaxed)),
            }
        }
    }

    /// Reads each byte of a packed ring's descriptor exactly once, the flags with `order`; the buffer's id is where a split
    /// ring's has `next`.
    ///
    /// Length, id and flags are one word and one access, so that what the driver stored before the flags comes with them.
    ///
    /// # Safety
    /// `table` is 8-aligned and `index` inside it.
    #[inline(always)]
    pub(super) unsafe fn read_packed(table: *const u8, index: u16, order: Ordering) -> Desc {
        // SAFETY: the caller's promise. The address after the flags: relaxed, since they were loaded with what it needs.
        unsafe {
            let words = table
                .add(usize::from(index) * Desc::SIZE)
                .cast::<AtomicU64>();
            let word = u64::from_le((*words.add(1)).load(order));
            let addr = u64::from_le((*words).load(Ordering::Relaxed));
            let rest = word & 0xffff_ffff | word >> 48 << 32 | (word >> 32 & 0xffff) << 48;
            Desc { addr, rest }
        }
    }

    /// The same descriptor with these flags instead.
    #[inline(always)]
    pub(super) fn with_flags(self, flags: u64) -> Desc {
        Desc {
            addr: self.addr,
            rest: self.rest & !(0xffff << 32) | flags,
        }
    }

    #[inline(always)]
    pub(super) fn len(self) -> u32 {
        self.rest as u32
    }

    #[inline(always)]
    pub(super) fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }

    pub(super) fn flags(self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// Which of these flags it has.
    #[inline(always)]
    pub(super) fn has(self, flags: u64) -> u64 {
        self.rest & flags
    }
}

impl SplitAreas {
    pub(crate) const DESC_ALIGN: usize = 16;
    pub(crate) const AVAIL_ALIGN: usize = 2;
    pub(crate) const USED_ALIGN: usize = 4;
    pub(super) const USED_FLAGS_OFFSET: usize = 0;
    pub(super) const USED_INDEX_OFFSET: usize = 2;

    /// Where an entry of the used ring begins; the one behind the last is `avail_event`.
    pub(super) const fn used_entry_offset(index: usize) -> usize {
        4 + 8 * index
    }

    /// # Errors
    /// The size is not one of a split ring, or a host pointer is not aligned (the guest's address can be, and the
    /// region's place in its file not).
    ///
    /// # Safety
    /// Each pointer is good for the length that [`RingLayout`] gives for this ring, as long as a copy of this lives.
    pub(crate) unsafe fn new(
        desc: *mut u8,
        avail: *mut u8,
        used: *mut u8,
        size: u16,
    ) -> Result<SplitAreas, RingError> {
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(RingError::Size { size });
        }
        for (area, host, align) in [
            ("descriptor table", desc, SplitAreas::DESC_ALIGN),
            ("available ring", avail, SplitAreas::AVAIL_ALIGN),
            ("used ring", used, SplitAreas::USED_ALIGN),
        ] {
            if host.addr() % align != 0 {
                return Err(RingError::Misaligned {
                    area,
                    host: host.addr(),
                    align,
                });
            }
        }
        Ok(SplitAreas {
            desc,
            avail,
            used,
            size,
        })
    }

    #[inline(always)]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    pub(super) fn desc_table(&self) -> *const u8 {
        self.desc
    }

    /// Asks for a descriptor ahead of its use; `head` may be any number.
    #[inline(always)]
    pub(super) fn prefetch_desc(&self, head: u16) {
        prefetch(self.desc.wrapping_add(usize::from(head) * Desc::SIZE));
    }

    #[inline(always)]
    pub(super) fn avail_flags(&self) -> &AtomicU16 {
        // SAFETY: offset 0 of the area, aligned.
        unsafe { word(self.avail, 0) }
    }

    #[inline(always)]
    pub(super) fn avail_index(&self) -> &AtomicU16 {
        // SAFETY: the second word of the area.
        unsafe { word(self.avail, 2) }
    }

    /// The entries of the available ring from a position to the ring's end.
    #[inline(always)]
    pub(super) fn avail_heads(&self, position: u16) -> &[AtomicU16] {
        let index = usize::from(position & (self.size - 1));
        // SAFETY: `size` words behind flags and index; index < size.
        unsafe {
            let entries = self.avail.add(4).cast::<AtomicU16>();
            std::slice::from_raw_parts(entries.add(index), usize::from(self.size) - index)
        }
    }

    /// Behind the available ring; negotiated `EVENT_IDX` only.
    #[inline(always)]
    pub(super) fn used_event(&self) -> &AtomicU16 {
        // SAFETY: with EVENT_IDX the area includes the word.
        unsafe { word(self.avail, 4 + 2 * usize::from(self.size)) }
    }

    #[inline(always)]
    pub(super) fn used_flags(&self) -> &AtomicU16 {
        // SAFETY: offset 0 of the area, aligned.
        unsafe { word(self.used, 0) }
    }

    #[inline(always)]
    pub(super) fn used_index(&self) -> &AtomicU16 {
        // SAFETY: the second word of the area.
        unsafe { word(self.used, 2) }
    }

    /// Head and length at a position of the used ring.
    #[inline(always)]
    pub(super) fn used_entry(&self, position: u16) -> &[AtomicU32; 2] {
        let index = usize::from(position & (self.size - 1));
        // SAFETY: index < size, and the area is 4-aligned.
        unsafe { &*self.used.add(4 + 8 * index).cast() }
    }

    /// Behind the used ring; negotiated `EVENT_IDX` only.
    #[inline(always)]
    pub(super) fn avail_event(&self) -> &AtomicU16 {
        // SAFETY: with EVENT_IDX the area includes the word.
        unsafe { word(self.used, 4 + 8 * usize::from(self.size)) }
    }
}

/// # Safety
/// `area + offset` is 2-aligned guest memory that stays mapped while the reference lives.
#[inline(always)]
unsafe fn word<'a>(area: *mut u8, offset: usize) -> &'a AtomicU16 {
    // SAFETY: the caller's promise.
    unsafe { &*area.add(offset).cast::<AtomicU16>() }
}

/// Asks for the cache line at an address, which need not be a valid one.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

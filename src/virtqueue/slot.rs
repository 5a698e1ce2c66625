//! Element slots: the memory behind every `vu_elem`.

mod pool;

use libc::{c_void, iovec};

pub(super) use pool::NoSlot;
pub(crate) use pool::{SlotPool, SlotReturns};

use super::arena::Block;
use crate::sync::{AtomicU64, Ordering};

/// One request, as the application sees it: `vu_elem` of the C API.
#[repr(C)]
#[derive(Debug)]
pub struct Elem {
    /// Device-readable buffers, guest to device.
    pub out: *const iovec,
    /// How many of them.
    pub out_num: u32,
    /// Device-writable buffers, device to guest.
    pub in_: *const iovec,
    /// How many of them.
    pub in_num: u32,
    /// Bytes in `out`.
    pub out_len: u32,
    /// Bytes in `in_`.
    pub in_len: u32,
    /// The application's own bytes, 16-aligned, zeroed once; null if it asked for none.
    pub priv_: *mut c_void,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Elem, out) == 0);
    assert!(offset_of!(Elem, out_num) == 8);
    assert!(offset_of!(Elem, in_) == 16);
    assert!(offset_of!(Elem, in_num) == 24);
    assert!(offset_of!(Elem, out_len) == 28);
    assert!(offset_of!(Elem, in_len) == 32);
    assert!(offset_of!(Elem, priv_) == 40);
    assert!(size_of::<Elem>() == 48);
};

/// What [`Slot::state`] says.
pub(crate) mod state {
    /// In a free list. Zero, as fresh memory is.
    pub(crate) const FREE: u8 = 0;
    /// Popped, in the hands of the application.
    pub(crate) const LIVE: u8 = 1;
    /// Completed by the application, not published yet.
    pub(crate) const STAGED: u8 = 2;
}

/// Buffers that need no block of the arena.
pub(super) const INLINE_IOVECS: usize = 8;

/// An element and what the library remembers with it. The first two cache lines are all that a short chain touches, and
/// pop rewrites only what has changed since the slot's last use: stores are what bounds it.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// What the application sees. `out` always points to the slot's buffers, popped or not.
    pub(crate) elem: Elem,
    /// The queue it was popped from, as stamped.
    pub(crate) queue: *const (),
    /// Head, state and number in one word, see [`Slot::set_popped`]. Relaxed: handing an element to another thread is
    /// the application's synchronisation.
    tag: AtomicU64,
    /// The epoch it was popped in, as stamped.
    pub(crate) epoch: *const (),
    /// The next slot in the list of returned ones.
    link: *mut Slot,
    inline: [iovec; INLINE_IOVECS],
    /// Where a long chain's buffers are instead.
    spill: Block,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Slot, elem) == 0 && offset_of!(Slot, tag) == 56);
    assert!(offset_of!(Slot, inline) == 80 && size_of::<Slot>() == 256);
};

impl Slot {
    const STATE_SHIFT: u32 = 16;
    const STATE_MASK: u64 = 0xff << Slot::STATE_SHIFT;
    const LIVE: u64 = (state::LIVE as u64) << Slot::STATE_SHIFT;
    const SEQ_SHIFT: u32 = 24;
    /// How far a ring counts its pops before it begins again.
    pub(super) const SEQ_MASK: u64 = u64::MAX >> Slot::SEQ_SHIFT;

    /// The head of the descriptor chain; in a packed ring, the buffer's id.
    #[inline(always)]
    pub(crate) fn head(&self) -> u16 {
        self.tag.load(Ordering::Relaxed) as u16
    }

    /// One of [`state`].
    #[inline(always)]
    pub(crate) fn state(&self) -> u8 {
        (self.tag.load(Ordering::Relaxed) >> Slot::STATE_SHIFT) as u8
    }

    /// Not an atomic change: for the thread that has the element.
    #[inline(always)]
    pub(crate) fn set_state(&self, state: u8) {
        let rest = self.tag.load(Ordering::Relaxed) & !Slot::STATE_MASK;
        self.tag.store(
            rest | u64::from(state) << Slot::STATE_SHIFT,
            Ordering::Relaxed,
        );
    }

    /// LIVE to STAGED, for a thread that may race with another one: true for the one that wins.
    pub(crate) fn claim(&self) -> bool {
        let staged = |tag: u64| {
            let rest = tag & !Slot::STATE_MASK;
            (tag & Slot::STATE_MASK == Slot::LIVE)
                .then_some(rest | u64::from(state::STAGED) << Slot::STATE_SHIFT)
        };
        // AcqRel: the loser's thread sees nothing but the refusal; the winner sees the pop.
        self.tag
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, staged)
            .is_ok()
    }

    /// How many elements a split ring had popped before, up to [`Slot::SEQ_MASK`]; the low 16 bits are the position in the
    /// available ring. In a packed ring those are [`descs`](Self::descs), below the number of descriptors popped before.
    #[inline(always)]
    pub(crate) fn seq(&self) -> u64 {
        self.tag.load(Ordering::Relaxed) >> Slot::SEQ_SHIFT
    }

    /// For an element of a packed ring: how many descriptors it took.
    #[inline(always)]
    pub(super) fn descs(&self) -> u16 {
        self.seq() as u16
    }

    /// What a completion says of the chain: the head in the low half, and [`descs`](Self::descs) in the high one, which has
    /// no meaning for an element of a split ring.
    #[inline(always)]
    pub(super) fn chain(&self) -> u32 {
        let tag = self.tag.load(Ordering::Relaxed);
        (tag >> (Slot::SEQ_SHIFT - 16)) as u32 & 0xffff_0000 | u32::from(tag as u16)
    }

    #[inline(always)]
    pub(super) fn set_popped(&self, head: u16, seq: u64) {
        let tag = seq << Slot::SEQ_SHIFT | Slot::LIVE | u64::from(head);
        self.tag.store(tag, Ordering::Relaxed);
    }

    /// The inline buffers.
    ///
    /// # Safety
    /// `slot` is valid.
    #[inline(always)]
    pub(super) unsafe fn inline(slot: *mut Slot) -> *mut iovec {
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*slot).inline).cast() }
    }

    /// Makes `block` the place of the slot's buffers, and gives the one that was it before.
    ///
    /// # Safety
    /// `slot` is valid and nobody else uses it.
    pub(super) unsafe fn respill(slot: *mut Slot, block: Block) -> Block {
        // SAFETY: the caller's promise.
        unsafe {
            let inline = Slot::inline(slot);
            (*slot).elem.out = if block.is_none() {
                inline
            } else {
                block.iovecs
            };
            std::mem::replace(&mut (*slot).spill, block)
        }
    }
}

/// What a pop writes into every slot: opaque here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) queue: *const (),
    pub(crate) epoch: *const (),
}

impl Stamp {
    /// # Safety
    /// `slot` is valid and nobody else uses it.
    #[inline(always)]
    pub(super) unsafe fn apply(self, slot: *mut Slot) {
        // SAFETY: the caller's promise. Most often a slot has the same epoch as before; the queue it has from the start.
        unsafe {
            debug_assert_eq!((*slot).queue, self.queue);
            if (*slot).epoch != self.epoch {
                (*slot).epoch = self.epoch;
            }
        }
    }
}

//! Element slots: the memory behind every `vu_elem`.
//!
//! A pool belongs to one incarnation of a ring. Slots are allocated in chunks when they are first needed, never move, and
//! are handed out last-in first-out, so that a queue with few requests in flight stays in few cache lines whatever the
//! ring's size. Only the owner of the ring takes slots. It puts them back directly; other threads put them on a list
//! that the owner takes whole, with one swap, when it has run out.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr;

use libc::{c_void, iovec};

use super::arena::{Arena, Block};
use crate::sync::{Arc, AtomicPtr, AtomicU8, AtomicU64, Ordering};

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
    const SEQ_SHIFT: u32 = 24;
    /// How far a ring counts its pops before it begins again.
    pub(super) const SEQ_MASK: u64 = u64::MAX >> Slot::SEQ_SHIFT;

    /// The head of the descriptor chain.
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
            (tag & Slot::STATE_MASK == u64::from(state::LIVE) << Slot::STATE_SHIFT)
                .then_some(rest | u64::from(state::STAGED) << Slot::STATE_SHIFT)
        };
        // AcqRel: the loser's thread sees nothing but the refusal; the winner sees the pop.
        self.tag
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, staged)
            .is_ok()
    }

    /// How many elements the ring had popped before, up to [`Slot::SEQ_MASK`]; the low 16 bits are the position in the
    /// available ring.
    #[inline(always)]
    pub(crate) fn seq(&self) -> u64 {
        self.tag.load(Ordering::Relaxed) >> Slot::SEQ_SHIFT
    }

    #[inline(always)]
    pub(super) fn set_popped(&self, head: u16, seq: u64) {
        let live = u64::from(state::LIVE) << Slot::STATE_SHIFT;
        self.tag.store(
            seq << Slot::SEQ_SHIFT | live | u64::from(head),
            Ordering::Relaxed,
        );
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

/// The half of a pool that other threads use: returned slots, and which heads are outstanding.
#[derive(Debug)]
pub(crate) struct SlotReturns {
    list: AtomicPtr<Slot>,
    /// By head, 1 while a chain is outstanding. Relaxed: a head is seen again only after the used index that returned it
    /// went through the guest; a guest that does not wait for it risks finding its head still marked.
    busy: Box<[AtomicU8]>,
}

impl SlotReturns {
    /// Gives slots back from a thread that does not own the ring.
    ///
    /// # Safety
    /// Each is a slot of this pool, out of every free list, at most once in `slots`, and not used afterwards.
    pub(crate) unsafe fn release(&self, slots: &[*mut Slot]) {
        let [first, .., last] = slots else {
            if let [only] = slots {
                // SAFETY: the caller's promise.
                unsafe { self.push(*only, *only, slots) };
            }
            return;
        };
        for pair in slots.windows(2) {
            // SAFETY: the caller's promise: nobody else uses these slots now.
            unsafe { (*pair[0]).link = pair[1] };
        }
        // SAFETY: linked from first to last just now.
        unsafe { self.push(*first, *last, slots) };
    }

    /// # Safety
    /// As [`SlotReturns::release`]; `slots` are linked, `first` to `last`.
    unsafe fn push(&self, first: *mut Slot, last: *mut Slot, slots: &[*mut Slot]) {
        // Once a slot is on the list it may be in use again, so its mark goes first. In between it is in neither place,
        // which a guest that reuses the head too early can see as a pool that has run out.
        for &slot in slots {
            // SAFETY: not on the list yet.
            unsafe {
                (*slot).set_state(state::FREE);
                self.clear((*slot).head());
            }
        }
        let mut head = self.list.load(Ordering::Relaxed);
        loop {
            // SAFETY: not on the list yet.
            unsafe { (*last).link = head };
            // Release: pairs with the swap in `SlotPool::refill`; what this thread did with the slots happens before
            // their next use.
            match self
                .list
                .compare_exchange_weak(head, first, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    #[inline(always)]
    fn clear(&self, head: u16) {
        self.busy[usize::from(head)].store(0, Ordering::Relaxed);
    }
}

/// The owner's half of a pool.
pub(crate) struct SlotPool {
    free: Vec<*mut Slot>,
    returns: Arc<SlotReturns>,
    /// The marks in `returns`.
    busy: *const AtomicU8,
    pub(super) arena: Arena,
    chunks: Vec<Chunk>,
    /// Slots not allocated yet: there are never more than ring entries.
    left: usize,
    slot_size: usize,
    priv_offset: Option<usize>,
}

// SAFETY: the raw pointers are the pool's own allocations; which thread may use a slot is the ring's protocol.
unsafe impl Send for SlotPool {}

struct Chunk {
    memory: *mut u8,
    layout: Layout,
}

/// Slots allocated together.
const CHUNK_SLOTS: usize = 64;
const LINE: usize = 64;

/// No slot can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// As many elements are outstanding as the ring has entries.
    AllOutstanding,
    /// The system has no memory.
    NoMemory,
}

impl SlotPool {
    /// A pool for a ring of this size whose elements carry `priv_size` bytes of the application; allocates no slot yet.
    pub(crate) fn new(ring_size: u16, priv_size: u32) -> SlotPool {
        let marks: Box<[AtomicU8]> = (0..ring_size).map(|_| AtomicU8::new(0)).collect();
        // An odd number of cache lines spreads the slots' first lines over all sets of the cache.
        let lines = (size_of::<Slot>() + priv_size as usize).div_ceil(LINE) | 1;
        let slot_size = lines * LINE;
        SlotPool {
            free: Vec::new(),
            busy: marks.as_ptr(),
            returns: Arc::new(SlotReturns {
                list: AtomicPtr::new(ptr::null_mut()),
                busy: marks,
            }),
            arena: Arena::new(ring_size),
            chunks: Vec::new(),
            left: usize::from(ring_size),
            slot_size,
            priv_offset: (priv_size > 0).then_some(size_of::<Slot>()),
        }
    }

    /// What other threads need to give slots back.
    pub(crate) fn returns(&self) -> &Arc<SlotReturns> {
        &self.returns
    }

    /// Which heads are outstanding: one mark for each, as long as the pool lives.
    #[inline(always)]
    pub(super) fn busy(&self) -> *const AtomicU8 {
        self.busy
    }

    /// Gathers free slots, `wanted` if there are as many.
    #[inline(always)]
    pub(super) fn gather(&mut self, wanted: usize, stamp: Stamp) -> Result<usize, NoSlot> {
        if self.free.len() < wanted {
            self.refill(wanted, stamp)?;
        }
        Ok(self.free.len().min(wanted))
    }

    /// Behind the last gathered slot, which is the next one to use. Their stamps are those of their last use.
    #[inline(always)]
    pub(super) fn gathered(&self) -> *const *mut Slot {
        self.free.as_ptr_range().end
    }

    /// Takes the next `count` of the gathered slots out of the pool.
    #[inline(always)]
    pub(super) fn take(&mut self, count: usize) {
        debug_assert!(count <= self.free.len());
        // SAFETY: shorter by what the caller took; pointers need no drop.
        unsafe { self.free.set_len(self.free.len() - count) };
    }

    /// Takes the buffers from the next slot, which was filled in part and is not handed out.
    pub(super) fn clean_next(&mut self) {
        if let Some(&slot) = self.free.last() {
            // SAFETY: a free slot is the pool's alone.
            unsafe { self.drop_spill(slot) };
        }
    }

    /// Gives a slot back on the owner's thread.
    ///
    /// # Safety
    /// A slot of this pool, out of every free list, and not used afterwards.
    #[inline(always)]
    pub(crate) unsafe fn release(&mut self, slot: *mut Slot) {
        // SAFETY: the caller's promise; a slot's head is below the ring's size.
        unsafe {
            (*self.busy.add((*slot).head().into())).store(0, Ordering::Relaxed);
            (*slot).set_state(state::FREE);
            self.drop_spill(slot);
        }
        self.free.push(slot);
    }

    /// # Safety
    /// A slot of this pool that nobody else uses.
    #[inline(always)]
    pub(super) unsafe fn drop_spill(&mut self, slot: *mut Slot) {
        // SAFETY: the caller's promise.
        unsafe {
            if !(*slot).spill.is_none() {
                self.arena.free(Slot::respill(slot, Block::NONE));
            }
        }
    }

    /// Takes what other threads returned, and allocates if that is too little.
    #[cold]
    #[inline(never)]
    fn refill(&mut self, wanted: usize, stamp: Stamp) -> Result<(), NoSlot> {
        // A look first: the swap is a locked instruction.
        if !self.returns.list.load(Ordering::Relaxed).is_null() {
            // Acquire: pairs with the Release in `SlotReturns::push`.
            let mut slot = self.returns.list.swap(ptr::null_mut(), Ordering::Acquire);
            while !slot.is_null() {
                // SAFETY: everything on the list is a slot of this pool, and the whole list is ours now.
                unsafe {
                    self.drop_spill(slot);
                    self.free.push(slot);
                    slot = (*slot).link;
                }
            }
        }
        let mut why = NoSlot::AllOutstanding;
        while self.free.len() < wanted && self.left > 0 {
            if let Err(failed) = self.grow(stamp) {
                why = failed;
                break;
            }
        }
        if self.free.is_empty() {
            Err(why)
        } else {
            Ok(())
        }
    }

    fn grow(&mut self, stamp: Stamp) -> Result<(), NoSlot> {
        let count = self.left.min(CHUNK_SLOTS);
        let stride = self.slot_size;
        let layout = Layout::from_size_align(stride * count, LINE).map_err(|_| NoSlot::NoMemory)?;
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(NoSlot::NoMemory);
        }
        self.chunks.push(Chunk { memory, layout });
        self.left -= count;
        // Room for every slot there is, so that giving one back never allocates.
        let all = self.chunks.len() * CHUNK_SLOTS;
        self.free.reserve(all - self.free.len());
        for index in (0..count).rev() {
            // SAFETY: inside the chunk; zero bytes are valid for every field but the atomic and the block, which are
            // written here.
            let slot = unsafe {
                let slot = memory.add(index * stride).cast::<Slot>();
                (&raw mut (*slot).tag).write(AtomicU64::new(0));
                (&raw mut (*slot).spill).write(Block::NONE);
                (*slot).elem.out = Slot::inline(slot);
                (*slot).queue = stamp.queue;
                if let Some(offset) = self.priv_offset {
                    (*slot).elem.priv_ = slot.byte_add(offset).cast();
                }
                slot
            };
            self.free.push(slot);
        }
        Ok(())
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            // SAFETY: allocated by `grow` with this layout, freed once. Blocks that slots still hold are the arena's.
            unsafe { dealloc(chunk.memory, chunk.layout) };
        }
    }
}

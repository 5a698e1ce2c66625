//! The pool of slots of one incarnation of a ring.
//!
//! Slots are allocated in chunks when they are first needed, never move, and are handed out last-in first-out, so that a
//! queue with few requests in flight stays in few cache lines whatever the ring's size. Only the owner of the ring takes
//! slots. It puts them back directly; other threads put them on a list that the owner takes whole, with one swap, when it
//! has run out.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr;

use super::{Slot, Stamp, state};
use crate::sync::{Arc, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use crate::virtqueue::arena::{Arena, Block};

/// The half of a pool that other threads use: returned slots, and which heads are outstanding.
///
/// Aligned as the queue is: other threads put slots back.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct SlotReturns {
    list: AtomicPtr<Slot>,
    /// By head, 1 while a chain is outstanding. Relaxed: a head is seen again only after the used index that returned it
    /// went through the guest; a guest that does not wait for it risks finding its head still marked.
    busy: Box<[Marks]>,
}

/// The marks of as many heads as fit into a cache line of their own.
#[derive(Debug)]
#[repr(align(64))]
struct Marks([AtomicU8; LINE]);

impl Marks {
    fn clear() -> Self {
        Marks(std::array::from_fn(|_| AtomicU8::new(0)))
    }
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
        let head = usize::from(head);
        self.busy[head / LINE].0[head % LINE].store(0, Ordering::Relaxed);
    }
}

/// The owner's half of a pool.
pub(crate) struct SlotPool {
    free: Vec<*mut Slot>,
    returns: Arc<SlotReturns>,
    /// The marks in `returns`.
    busy: *const AtomicU8,
    pub(in crate::virtqueue) arena: Arena,
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
pub(in crate::virtqueue) enum NoSlot {
    /// As many elements are outstanding as the ring has entries.
    AllOutstanding,
    /// The system has no memory.
    NoMemory,
}

impl SlotPool {
    /// A pool for a ring of this size whose elements carry `priv_size` bytes of the application; allocates no slot yet.
    pub(crate) fn new(ring_size: u16, priv_size: u32) -> SlotPool {
        let lines = usize::from(ring_size).div_ceil(LINE);
        let marks: Box<[Marks]> = (0..lines).map(|_| Marks::clear()).collect();
        // An odd number of cache lines spreads the slots' first lines over all sets of the cache.
        let lines = (size_of::<Slot>() + priv_size as usize).div_ceil(LINE) | 1;
        let slot_size = lines * LINE;
        SlotPool {
            free: Vec::new(),
            busy: marks.as_ptr().cast(),
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
    pub(in crate::virtqueue) fn busy(&self) -> *const AtomicU8 {
        self.busy
    }

    /// Gathers free slots, `wanted` if there are as many.
    #[inline(always)]
    pub(in crate::virtqueue) fn gather(
        &mut self,
        wanted: usize,
        stamp: Stamp,
    ) -> Result<usize, NoSlot> {
        if self.free.len() < wanted {
            self.refill(wanted, stamp)?;
        }
        Ok(self.free.len().min(wanted))
    }

    /// Behind the last gathered slot, which is the next one to use. Their stamps are those of their last use.
    #[inline(always)]
    pub(in crate::virtqueue) fn gathered(&self) -> *const *mut Slot {
        self.free.as_ptr_range().end
    }

    /// Takes the next `count` of the gathered slots out of the pool.
    #[inline(always)]
    pub(in crate::virtqueue) fn take(&mut self, count: usize) {
        debug_assert!(count <= self.free.len());
        // SAFETY: shorter by what the caller took; pointers need no drop.
        unsafe { self.free.set_len(self.free.len() - count) };
    }

    /// Takes the buffers from the next slot, which was filled in part and is not handed out.
    pub(in crate::virtqueue) fn clean_next(&mut self) {
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
        const { assert!(state::FREE == 0) };
        // SAFETY: the caller's promise. A slot's head is below the ring's size.
        unsafe {
            let tag = (*slot).tag.load(Ordering::Relaxed);
            (*self.busy.add((tag as u16).into())).store(0, Ordering::Relaxed);
            (*slot)
                .tag
                .store(tag & !Slot::STATE_MASK, Ordering::Relaxed);
            self.drop_spill(slot);
        }
        self.push_free(slot);
    }

    #[inline(always)]
    fn push_free(&mut self, slot: *mut Slot) {
        let len = self.free.len();
        debug_assert!(len < self.free.capacity());
        // SAFETY: `grow` made room for every slot of the pool, and each is in the list at most once.
        unsafe {
            self.free.as_mut_ptr().add(len).write(slot);
            self.free.set_len(len + 1);
        }
    }

    /// # Safety
    /// A slot of this pool that nobody else uses.
    #[inline(always)]
    unsafe fn drop_spill(&mut self, slot: *mut Slot) {
        // SAFETY: the caller's promise. The first cache line tells whether there is a block.
        unsafe {
            if (*slot).elem.out != Slot::inline(slot).cast_const() {
                self.drop_block(slot);
            }
        }
    }

    /// # Safety
    /// As for [`SlotPool::drop_spill`].
    #[cold]
    #[inline(never)]
    unsafe fn drop_block(&mut self, slot: *mut Slot) {
        // SAFETY: the caller's promise.
        unsafe { self.arena.free(Slot::respill(slot, Block::NONE)) };
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
                    self.push_free(slot);
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
            self.push_free(slot);
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

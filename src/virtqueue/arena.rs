//! Blocks of buffers for chains that are longer than what a slot holds.
//!
//! Sizes are powers of two; a block that comes back is kept for the next chain of its size. The budget bounds what a
//! guest can make a queue allocate.

use std::alloc::{Layout, alloc, dealloc};

use libc::iovec;

/// The smallest block holds `1 << FIRST_CLASS` buffers.
const FIRST_CLASS: u8 = 5;
/// The largest holds 32768, the longest chain there is.
const CLASSES: usize = 11;

/// Buffers in a block, or no block at all.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) iovecs: *mut iovec,
    class: u8,
}

impl Block {
    pub(super) const NONE: Block = Block {
        iovecs: std::ptr::null_mut(),
        class: 0,
    };

    #[inline(always)]
    pub(super) fn is_none(&self) -> bool {
        self.iovecs.is_null()
    }

    /// How many buffers fit.
    pub(super) fn capacity(&self) -> usize {
        if self.is_none() {
            0
        } else {
            1 << (self.class + FIRST_CLASS)
        }
    }
}

/// The arena has nothing to give: the budget is spent, or the system has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spent;

#[derive(Debug)]
pub(super) struct Arena {
    free: [Vec<*mut iovec>; CLASSES],
    /// Every block that was allocated, with its class.
    all: Vec<(*mut iovec, u8)>,
    budget: usize,
}

impl Arena {
    /// Enough for all of a ring's entries with 128 buffers each, or for a good many with as many as there can be.
    pub(super) fn new(ring_size: u16) -> Arena {
        Arena {
            free: Default::default(),
            all: Vec::new(),
            budget: (16 << 20) + usize::from(ring_size) * 128 * size_of::<iovec>(),
        }
    }

    /// A block with room for at least `count` buffers.
    pub(super) fn alloc(&mut self, count: usize) -> Result<Block, Spent> {
        let class = count
            .next_power_of_two()
            .trailing_zeros()
            .saturating_sub(FIRST_CLASS.into());
        let Some(list) = self.free.get_mut(class as usize) else {
            return Err(Spent);
        };
        let class = class as u8;
        if let Some(iovecs) = list.pop() {
            return Ok(Block { iovecs, class });
        }
        let layout = layout(class);
        let Some(budget) = self.budget.checked_sub(layout.size()) else {
            return Err(Spent);
        };
        // SAFETY: the layout's size is not zero.
        let iovecs = unsafe { alloc(layout) }.cast::<iovec>();
        if iovecs.is_null() {
            return Err(Spent);
        }
        self.budget = budget;
        self.all.push((iovecs, class));
        Ok(Block { iovecs, class })
    }

    pub(super) fn free(&mut self, block: Block) {
        if !block.is_none() {
            self.free[usize::from(block.class)].push(block.iovecs);
        }
    }
}

fn layout(class: u8) -> Layout {
    // SAFETY: the size of at most 2^15 iovecs of 16 bytes, the alignment of an iovec.
    unsafe {
        Layout::from_size_align_unchecked(
            size_of::<iovec>() << (class + FIRST_CLASS),
            align_of::<iovec>(),
        )
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for &(iovecs, class) in &self.all {
            // SAFETY: allocated with this layout, freed once.
            unsafe { dealloc(iovecs.cast(), layout(class)) };
        }
    }
}

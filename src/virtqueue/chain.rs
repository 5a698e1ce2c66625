//! One descriptor chain into one slot.
//!
//! Everything here reads guest memory that changes under the reader's hands: a descriptor is read once, into private
//! memory, and only that copy is checked and used.
//!
//! [`walk`] knows the plain chain: buffers that are contiguous in the host and few enough for the slot, in the
//! ring's own table or in one indirect table that can be read in place. It is written for few live values, because it is
//! the hot path. From the first descriptor that is anything else, the rest of the chain goes to [`special`], for good.
//! Errors are boxed: a result is one register then, and a ring breaks once.

pub(super) mod packed;
mod special;

use std::marker::PhantomData;

use libc::{c_void, iovec};

use special::Walk;

use super::areas::{Desc, SplitAreas, prefetch};
use super::arena::Arena;
use super::order::Order;
use super::ring_error::RingError;
use super::slot::{INLINE_IOVECS, Slot};
use crate::memory::{Access, Translate};

/// What the chains of a ring may be.
pub(super) struct Rules {
    /// Descriptors of the ring.
    size: u16,
    /// Whether `INDIRECT_DESC` was negotiated.
    indirect: bool,
    /// Where an indirect table goes that cannot be read in place.
    copy: Vec<[u64; 2]>,
}

impl Rules {
    pub(super) fn new(size: u16, indirect: bool) -> Rules {
        Rules {
            size,
            indirect,
            copy: Vec::new(),
        }
    }

    /// The most buffers of an element, and entries of an indirect table.
    #[inline(always)]
    fn limit(&self) -> u16 {
        self.size.max(1024)
    }

    /// The indirect table of a chain, if nothing is special about it. The driver's `WRITE` flag on the descriptor that
    /// refers to it has no meaning.
    #[inline(always)]
    fn table_in_place<T: Translate>(&self, translate: &mut T, desc: Desc) -> Option<Table> {
        let (len, entries) = (desc.len(), desc.len() / Desc::SIZE as u32);
        let sound = self.indirect
            && desc.has(Desc::NEXT) == 0
            && len % Desc::SIZE as u32 == 0
            && entries.wrapping_sub(1) < u32::from(self.limit());
        if !sound {
            return None;
        }
        let base = translate.whole(desc.addr, len.into(), Access::Read)?;
        prefetch(base.wrapping_add(64));
        let aligned = base.addr() % align_of::<u64>() == 0;
        aligned.then_some(Table::indirect(base, entries as u16))
    }
}

/// How a ring's chains are linked.
pub(super) trait Format {
    /// A direct chain may go on in an indirect table.
    const MIXED: bool;

    /// The first descriptor of an indirect table.
    fn first(table: &Table) -> Desc;

    /// The descriptor behind `desc`, which has `NEXT`.
    fn next(table: &mut Table, desc: Desc, head: u16) -> Result<Desc, Box<RingError>>;
}

/// Descriptors of a split ring name the next one.
pub(super) struct Split<O>(PhantomData<O>);

impl<O: Order> Format for Split<O> {
    const MIXED: bool = true;

    #[inline(always)]
    fn first(table: &Table) -> Desc {
        // SAFETY: an indirect table has at least one entry.
        unsafe { Desc::read::<O>(table.base, 0) }
    }

    #[inline(always)]
    fn next(table: &mut Table, desc: Desc, head: u16) -> Result<Desc, Box<RingError>> {
        if desc.next() >= table.entries {
            return Err(bad_next(head, desc.next(), table.entries));
        }
        // SAFETY: next < entries.
        Ok(unsafe { Desc::read::<O>(table.base, desc.next()) })
    }
}

/// Reads the chains of one split ring.
pub(super) struct Reader<O> {
    pub(super) areas: SplitAreas,
    _order: PhantomData<O>,
    rules: Rules,
}

impl<O: Order> Reader<O> {
    pub(super) fn new(areas: SplitAreas, indirect: bool) -> Reader<O> {
        Reader {
            areas,
            _order: PhantomData,
            rules: Rules::new(areas.size(), indirect),
        }
    }

    /// Fills the element of `slot` with the chain at `head`.
    ///
    /// # Safety
    /// `head` is below the ring's size; the slot is of the pool with this arena, free, and has no block.
    #[inline(always)]
    pub(super) unsafe fn walk<T: Translate>(
        &mut self,
        translate: &mut T,
        arena: &mut Arena,
        slot: *mut Slot,
        head: u16,
    ) -> Result<(), Box<RingError>> {
        // SAFETY: head < size.
        let mut desc = unsafe { Desc::read::<O>(self.areas.desc_table(), head) };
        let mut table = Table::ring(self.areas.desc_table(), self.areas.size(), head, true);
        // SAFETY: the caller's promise.
        unsafe {
            walk::<Split<O>, T>(
                &mut self.rules,
                translate,
                arena,
                slot,
                head,
                &mut table,
                &mut desc,
            )
        }
    }
}

/// Fills the element of `slot` with the chain that begins with `desc`, in `table`. Both are the chain's last ones afterwards.
///
/// # Safety
/// The slot is of the pool with this arena, free, and has no block.
#[inline(always)]
pub(super) unsafe fn walk<F: Format, T: Translate>(
    rules: &mut Rules,
    translate: &mut T,
    arena: &mut Arena,
    slot: *mut Slot,
    head: u16,
    table: &mut Table,
    desc: &mut Desc,
) -> Result<(), Box<RingError>> {
    if desc.has(Desc::NEXT | Desc::INDIRECT) == 0 {
        let access = if desc.has(Desc::WRITE) == 0 {
            Access::Read
        } else {
            Access::Write
        };
        if let Some(host) = translate.whole(desc.addr, desc.len().into(), access) {
            // SAFETY: the caller's promise.
            unsafe { fill_single(slot, host, desc.len(), access) };
            return Ok(());
        }
    }
    // SAFETY: the caller's promise.
    unsafe { walk_plain::<F, T>(rules, translate, arena, slot, head, table, desc) }
}

/// The chain that begins with `desc` and has more than one descriptor, most likely.
///
/// # Safety
/// As for [`walk`].
#[inline(always)]
unsafe fn walk_plain<F: Format, T: Translate>(
    rules: &mut Rules,
    translate: &mut T,
    arena: &mut Arena,
    slot: *mut Slot,
    head: u16,
    table: &mut Table,
    desc: &mut Desc,
) -> Result<(), Box<RingError>> {
    // SAFETY: the caller's promise.
    let first = unsafe { Slot::inline(slot) };
    let mut buffers = Buffers {
        next: first,
        readable: first,
        len: 0,
        out_len: 0,
    };
    if desc.has(Desc::INDIRECT) != 0
        && let Some(found) = rules.table_in_place(translate, *desc)
    {
        *table = found;
        *desc = F::first(table);
    }
    // The device-readable buffers come first, then the device-writable ones.
    while desc.has(Desc::WRITE | Desc::INDIRECT) == 0
        && buffers.take(slot, *desc, translate, Access::Read)
    {
        buffers.readable = buffers.next;
        buffers.out_len = buffers.len;
        if desc.has(Desc::NEXT) == 0 {
            return buffers.fill(slot, head);
        }
        *desc = F::next(table, *desc, head)?;
    }
    while desc.has(Desc::WRITE | Desc::INDIRECT) == Desc::WRITE
        && buffers.take(slot, *desc, translate, Access::Write)
    {
        if desc.has(Desc::NEXT) == 0 {
            return buffers.fill(slot, head);
        }
        *desc = F::next(table, *desc, head)?;
    }
    let mut walk = Walk::resume(slot, head, *desc, *table, buffers);
    let result = walk.finish::<F, T>(rules, *translate, arena);
    (*desc, *table) = walk.end();
    result
}

/// Writes the element of a chain of one buffer.
///
/// # Safety
/// `slot` is free and has no block.
#[inline(always)]
unsafe fn fill_single(slot: *mut Slot, host: *mut u8, len: u32, access: Access) {
    // SAFETY: the caller's promise; the slot's `out` points to its first buffer.
    unsafe {
        let first = Slot::inline(slot);
        first.write(buffer(host, len as usize));
        let elem = &mut (*slot).elem;
        if access == Access::Read {
            (elem.out_num, elem.in_num) = (1, 0);
            (elem.out_len, elem.in_len) = (len, 0);
            elem.in_ = first.add(1);
        } else {
            (elem.out_num, elem.in_num) = (0, 1);
            (elem.out_len, elem.in_len) = (0, len);
            elem.in_ = first;
        }
    }
}

/// A descriptor table, and where in it the chain is; a split ring's descriptors know that themselves.
#[derive(Clone, Copy)]
pub(super) struct Table {
    base: *const u8,
    entries: u16,
    indirect: bool,
    at: u16,
    /// The wrap counter at `at`, in a packed ring.
    wrap: bool,
}

impl Table {
    /// The ring's own, at a descriptor.
    #[inline(always)]
    pub(super) fn ring(base: *const u8, entries: u16, at: u16, wrap: bool) -> Table {
        Table {
            base,
            entries,
            indirect: false,
            at,
            wrap,
        }
    }

    #[inline(always)]
    fn indirect(base: *const u8, entries: u16) -> Table {
        Table {
            base,
            entries,
            indirect: true,
            at: 0,
            wrap: true,
        }
    }
}

/// The buffers of a plain chain, in the slot.
#[derive(Clone, Copy)]
struct Buffers {
    /// Where the next one goes.
    next: *mut iovec,
    /// Where the device-readable ones end.
    readable: *mut iovec,
    /// Bytes in all, and in the device-readable ones.
    len: u64,
    out_len: u64,
}

impl Buffers {
    /// Takes in a descriptor, if its buffer is contiguous in the host and the slot has room.
    #[inline(always)]
    fn take<T: Translate>(
        &mut self,
        slot: *mut Slot,
        desc: Desc,
        translate: &mut T,
        access: Access,
    ) -> bool {
        // SAFETY: within the slot.
        let end = unsafe { Slot::inline(slot).add(INLINE_IOVECS) };
        if self.next == end {
            return false;
        }
        let Some(host) = translate.whole(desc.addr, desc.len().into(), access) else {
            return false;
        };
        // SAFETY: not the end of the slot's buffers.
        unsafe {
            self.next.write(buffer(host, desc.len() as usize));
            self.next = self.next.add(1);
        }
        self.len += u64::from(desc.len());
        true
    }

    /// Writes the element. Whether the chain is longer than its table need not be asked: a loop is never this short.
    #[inline(always)]
    fn fill(self, slot: *mut Slot, head: u16) -> Result<(), Box<RingError>> {
        // SAFETY: both point to the slot's buffers, `next` to the later one.
        let (out_num, in_num) = unsafe {
            let first = Slot::inline(slot);
            (
                distance(first, self.readable),
                distance(self.readable, self.next),
            )
        };
        if self.len > u32::MAX.into() {
            return Err(too_long(head, self.len));
        }
        // SAFETY: the slot is ours alone, and its `out` points to its first buffer.
        unsafe {
            let elem = &mut (*slot).elem;
            elem.out_num = out_num as u32;
            elem.in_ = self.readable;
            elem.in_num = in_num as u32;
            elem.out_len = self.out_len as u32;
            elem.in_len = (self.len - self.out_len) as u32;
        }
        Ok(())
    }
}

/// # Safety
/// Both point into the same array, `to` not before `from`.
#[inline(always)]
unsafe fn distance(from: *const iovec, to: *const iovec) -> usize {
    // SAFETY: the caller's promise.
    unsafe { to.offset_from(from) as usize }
}

#[inline(always)]
fn buffer(host: *mut u8, len: usize) -> iovec {
    iovec {
        iov_base: host.cast::<c_void>(),
        iov_len: len,
    }
}

#[cold]
#[inline(never)]
fn bad_next(head: u16, next: u16, entries: u16) -> Box<RingError> {
    Box::new(RingError::Next {
        head,
        next,
        entries,
    })
}

#[cold]
#[inline(never)]
fn too_long(head: u16, len: u64) -> Box<RingError> {
    Box::new(RingError::TooLong { head, len })
}

//! One descriptor chain into one slot.
//!
//! Everything here reads guest memory that changes under the reader's hands: a descriptor is read once, into private
//! memory, and only that copy is checked and used.
//!
//! [`Walker::walk`] knows the plain chain: buffers that are contiguous in the host and few enough for the slot, in the
//! ring's own table or in one indirect table that can be read in place. It is written for few live values, because it is
//! the hot path. From the first descriptor that is anything else, the rest of the chain goes to [`Walk`], for good.

use libc::{c_void, iovec};

use super::areas::{Desc, SplitAreas, prefetch};
use super::arena::Arena;
use super::ring_error::RingError;
use super::slot::{INLINE_IOVECS, Slot};
use crate::memory::{Access, Translate};

/// Walks the chains of one ring during one pop.
pub(super) struct Walker<'p, T> {
    pub(super) areas: SplitAreas,
    /// Whether `INDIRECT_DESC` was negotiated.
    pub(super) indirect: bool,
    pub(super) translate: T,
    pub(super) arena: &'p mut Arena,
    /// Where an indirect table goes that cannot be read in place.
    pub(super) copy: &'p mut Vec<[u64; 2]>,
}

impl<T: Translate> Walker<'_, T> {
    /// The most buffers of an element, and entries of an indirect table.
    #[inline(always)]
    fn limit(&self) -> u16 {
        self.areas.size().max(1024)
    }

    /// Fills the element of `slot` with the chain at `head`.
    ///
    /// # Safety
    /// `head` is below the ring's size; the slot is of the pool with this arena, free, and has no block.
    #[inline(always)]
    pub(super) unsafe fn walk(&mut self, slot: *mut Slot, head: u16) -> Result<(), RingError> {
        // SAFETY: head < size.
        let desc = unsafe { Desc::read(self.areas.desc_table(), head) };
        if desc.has(Desc::NEXT | Desc::INDIRECT) == 0 {
            let access = if desc.has(Desc::WRITE) == 0 { Access::Read } else { Access::Write };
            if let Some(host) = self.translate.whole(desc.addr, desc.len().into(), access) {
                // SAFETY: the caller's promise.
                unsafe { fill_single(slot, host, desc.len(), access) };
                return Ok(());
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.walk_plain(slot, head, desc) }
    }

    /// The chain that begins with `desc` and has more than one descriptor, most likely.
    ///
    /// # Safety
    /// As for [`Walker::walk`].
    #[inline(always)]
    unsafe fn walk_plain(
        &mut self,
        slot: *mut Slot,
        head: u16,
        mut desc: Desc,
    ) -> Result<(), RingError> {
        let mut table = Table {
            base: self.areas.desc_table(),
            entries: self.areas.size(),
            indirect: false,
        };
        // SAFETY: the caller's promise.
        let first = unsafe { Slot::inline(slot) };
        let mut buffers = Buffers { next: first, readable: first, len: 0, out_len: 0 };
        if desc.has(Desc::INDIRECT) != 0 {
            if let Some(found) = self.table_in_place(desc) {
                table = found;
                // SAFETY: an indirect table has at least one entry.
                desc = unsafe { Desc::read(table.base, 0) };
            }
        }
        // The device-readable buffers come first, then the device-writable ones.
        while desc.has(Desc::WRITE | Desc::INDIRECT) == 0
            && buffers.take(slot, desc, &mut self.translate, Access::Read)
        {
            buffers.readable = buffers.next;
            buffers.out_len = buffers.len;
            if desc.has(Desc::NEXT) == 0 {
                return buffers.fill(slot, head, &table);
            }
            desc = table.next(desc, head)?;
        }
        while desc.has(Desc::WRITE | Desc::INDIRECT) == Desc::WRITE
            && buffers.take(slot, desc, &mut self.translate, Access::Write)
        {
            if desc.has(Desc::NEXT) == 0 {
                return buffers.fill(slot, head, &table);
            }
            desc = table.next(desc, head)?;
        }
        Walk::resume(slot, head, desc, table, buffers).finish(self)
    }

    /// The indirect table of a chain, if nothing is special about it. The driver's `WRITE` flag on the descriptor that
    /// refers to it has no meaning.
    #[inline(always)]
    fn table_in_place(&mut self, desc: Desc) -> Option<Table> {
        let (len, entries) = (desc.len(), desc.len() / Desc::SIZE as u32);
        let sound = self.indirect
            && desc.has(Desc::NEXT) == 0
            && len % Desc::SIZE as u32 == 0
            && entries.wrapping_sub(1) < u32::from(self.limit());
        if !sound {
            return None;
        }
        let base = self.translate.whole(desc.addr, len.into(), Access::Read)?;
        prefetch(base.wrapping_add(64));
        let aligned = base.addr() % align_of::<u64>() == 0;
        aligned.then_some(Table { base, entries: entries as u16, indirect: true })
    }
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

/// A descriptor table.
#[derive(Clone, Copy)]
struct Table {
    base: *const u8,
    entries: u16,
    indirect: bool,
}

impl Table {
    /// The descriptor that `desc` names as the next.
    #[inline(always)]
    fn next(&self, desc: Desc, head: u16) -> Result<Desc, RingError> {
        if desc.next() >= self.entries {
            return Err(bad_next(head, desc.next(), self.entries));
        }
        // SAFETY: next < entries.
        Ok(unsafe { Desc::read(self.base, desc.next()) })
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

    /// Writes the element.
    #[inline(always)]
    fn fill(self, slot: *mut Slot, head: u16, table: &Table) -> Result<(), RingError> {
        // SAFETY: both point to the slot's buffers, `next` to the later one.
        let (out_num, in_num) = unsafe {
            let first = Slot::inline(slot);
            (
                distance(first, self.readable),
                distance(self.readable, self.next),
            )
        };
        // A chain with a loop is longer than its table.
        if out_num + in_num > usize::from(table.entries) {
            return Err(endless(head, table.entries));
        }
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

/// The walk of a chain that has something special; `desc` is read and not taken in yet.
struct Walk {
    slot: *mut Slot,
    head: u16,
    desc: Desc,
    table: Table,
    /// Descriptors that the chain can still have in this table, `desc` included.
    left: usize,
    iovecs: *mut iovec,
    room: usize,
    count: usize,
    readable: usize,
    len: u64,
    out_len: u64,
}

impl Walk {
    /// Takes over from the plain walk.
    fn resume(slot: *mut Slot, head: u16, desc: Desc, table: Table, buffers: Buffers) -> Walk {
        // SAFETY: all point to the slot's buffers, the first one not behind the others.
        let (iovecs, count, readable) = unsafe {
            let first = Slot::inline(slot);
            (first, distance(first, buffers.next), distance(first, buffers.readable))
        };
        Walk {
            slot,
            head,
            desc,
            table,
            left: usize::from(table.entries).saturating_sub(count),
            iovecs,
            room: INLINE_IOVECS,
            count,
            readable,
            len: buffers.len,
            out_len: buffers.out_len,
        }
    }

    /// Takes in the rest of the chain and writes the element.
    #[cold]
    #[inline(never)]
    fn finish<T: Translate>(mut self, walker: &mut Walker<'_, T>) -> Result<(), RingError> {
        loop {
            if self.left == 0 {
                return Err(endless(self.head, self.table.entries));
            }
            self.left -= 1;
            if self.desc.has(Desc::INDIRECT) != 0 {
                self.enter(walker)?;
                continue;
            }
            self.take(walker)?;
            if self.desc.has(Desc::NEXT) == 0 {
                return self.fill();
            }
            self.desc = self.table.next(self.desc, self.head)?;
        }
    }

    /// Takes in a descriptor with a buffer.
    fn take<T: Translate>(&mut self, walker: &mut Walker<'_, T>) -> Result<(), RingError> {
        let (head, desc, limit) = (self.head, self.desc, walker.limit());
        let access = if desc.has(Desc::WRITE) == 0 { Access::Read } else { Access::Write };
        if access == Access::Read && self.readable != self.count {
            return Err(RingError::ReadableAfterWritable { head, addr: desc.addr });
        }
        for_pieces(&mut walker.translate, head, desc, access, |host, run| {
            if self.count == self.room {
                self.grow(walker.arena, limit.into())?;
            }
            // SAFETY: count < room.
            unsafe { self.iovecs.add(self.count).write(buffer(host, run)) };
            self.count += 1;
            Ok(())
        })?;
        self.len += u64::from(desc.len());
        if access == Access::Read {
            self.readable = self.count;
            self.out_len = self.len;
        }
        Ok(())
    }

    /// Goes on in an indirect table.
    fn enter<T: Translate>(&mut self, walker: &mut Walker<'_, T>) -> Result<(), RingError> {
        let Walk { head, desc, .. } = *self;
        let (len, limit) = (desc.len(), usize::from(walker.limit()));
        if !walker.indirect {
            return Err(RingError::IndirectNotNegotiated { head });
        }
        if self.table.indirect {
            return Err(RingError::IndirectNested { head });
        }
        if desc.has(Desc::NEXT) != 0 {
            return Err(RingError::IndirectNext { head, flags: desc.flags() });
        }
        let entries = len as usize / Desc::SIZE;
        if len as usize % Desc::SIZE != 0 || entries == 0 || entries > limit {
            return Err(RingError::IndirectLen { head, len, limit });
        }
        self.table = match walker.table_in_place(desc) {
            Some(table) => table,
            None => Table {
                base: copy_table(&mut walker.translate, head, desc, walker.copy)?,
                entries: entries as u16,
                indirect: true,
            },
        };
        self.left = entries;
        // SAFETY: the first of at least one entry.
        self.desc = unsafe { Desc::read(self.table.base, 0) };
        Ok(())
    }

    /// Moves the buffers to a larger block.
    fn grow(&mut self, arena: &mut Arena, limit: usize) -> Result<(), RingError> {
        let (head, buffers) = (self.head, self.count + 1);
        if buffers > limit {
            return Err(RingError::TooManyBuffers { head, limit });
        }
        let block = arena.alloc(buffers).map_err(|_| RingError::Budget { head, buffers })?;
        self.room = block.capacity().min(limit);
        // SAFETY: the new block is larger than `count` and nobody else's; the slot is ours alone.
        unsafe {
            block.iovecs.copy_from_nonoverlapping(self.iovecs, self.count);
            self.iovecs = block.iovecs;
            arena.free(Slot::respill(self.slot, block));
        }
        Ok(())
    }

    /// Writes the element.
    fn fill(self) -> Result<(), RingError> {
        if self.len > u32::MAX.into() {
            return Err(too_long(self.head, self.len));
        }
        // SAFETY: the slot is ours alone, and its `out` points to the first of `count` buffers.
        unsafe {
            let elem = &mut (*self.slot).elem;
            elem.out_num = self.readable as u32;
            elem.in_ = self.iovecs.add(self.readable);
            elem.in_num = (self.count - self.readable) as u32;
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

/// A private copy of a table that is not contiguous, or not aligned, in the host.
fn copy_table<T: Translate>(
    translate: &mut T,
    head: u16,
    desc: Desc,
    copy: &mut Vec<[u64; 2]>,
) -> Result<*const u8, RingError> {
    copy.clear();
    copy.resize(desc.len() as usize / Desc::SIZE, [0; 2]);
    let to = copy.as_mut_ptr().cast::<u8>();
    let mut at = 0;
    for_pieces(translate, head, desc, Access::Read, |host, run| {
        for offset in at..at + run {
            // SAFETY: `run` bytes at `host` are guest memory, and all runs together are as long as the copy. Volatile:
            // each byte is read once.
            unsafe { to.add(offset).write(host.add(offset - at).read_volatile()) };
        }
        at += run;
        Ok(())
    })?;
    Ok(to)
}

/// Cuts the range of a descriptor into what is contiguous in the host: at least one piece, which is empty if the range is.
fn for_pieces<T: Translate>(
    translate: &mut T,
    head: u16,
    desc: Desc,
    access: Access,
    mut piece: impl FnMut(*mut u8, usize) -> Result<(), RingError>,
) -> Result<(), RingError> {
    let (addr, len) = (desc.addr, desc.len());
    if addr.checked_add(len.into()).is_none() {
        return Err(RingError::AddressWrap { head, addr, len });
    }
    let mut done = 0;
    loop {
        let Some((host, run)) = translate.run(addr + done, access) else {
            return Err(RingError::Unmapped { head, addr, len });
        };
        let run = run.min(u64::from(len) - done);
        piece(host, run as usize)?;
        done += run;
        if done == u64::from(len) {
            return Ok(());
        }
    }
}

#[cold]
fn bad_next(head: u16, next: u16, entries: u16) -> RingError {
    RingError::Next {
        head,
        next,
        entries,
    }
}

#[cold]
fn endless(head: u16, entries: u16) -> RingError {
    RingError::Endless { head, entries }
}

#[cold]
fn too_long(head: u16, len: u64) -> RingError {
    RingError::TooLong { head, len }
}

//! The rest of a chain that is not a plain one: buffers over several regions, more buffers than the slot holds, tables that
//! cannot be read in place, and every mistake that the plain walk leaves to this one.

use libc::iovec;

use super::{Buffers, Format, Rules, Table, buffer, distance, too_long};
use crate::memory::{Access, Translate};
use crate::virtqueue::areas::Desc;
use crate::virtqueue::arena::Arena;
use crate::virtqueue::ring_error::RingError;
use crate::virtqueue::slot::{INLINE_IOVECS, Slot};

/// The walk of a chain that has something special; `desc` is read and not taken in yet.
pub(super) struct Walk {
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
    pub(super) fn resume(
        slot: *mut Slot,
        head: u16,
        desc: Desc,
        table: Table,
        buffers: Buffers,
    ) -> Walk {
        // SAFETY: all point to the slot's buffers, the first one not behind the others.
        let (iovecs, count, readable) = unsafe {
            let first = Slot::inline(slot);
            (
                first,
                distance(first, buffers.next),
                distance(first, buffers.readable),
            )
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

    /// Where the walk has ended.
    pub(super) fn end(&self) -> (Desc, Table) {
        (self.desc, self.table)
    }

    /// Takes in the rest of the chain and writes the element.
    #[cold]
    #[inline(never)]
    pub(super) fn finish<F: Format, T: Translate>(
        &mut self,
        rules: &mut Rules,
        mut translate: T,
        arena: &mut Arena,
    ) -> Result<(), Box<RingError>> {
        loop {
            if self.left == 0 {
                let (head, entries) = (self.head, self.table.entries);
                return Err(Box::new(RingError::Endless { head, entries }));
            }
            self.left -= 1;
            if self.desc.has(Desc::INDIRECT) != 0 {
                self.enter::<F, T>(rules, &mut translate)?;
                continue;
            }
            self.take(rules.limit().into(), &mut translate, arena)?;
            if self.desc.has(Desc::NEXT) == 0 {
                return self.fill();
            }
            self.desc = F::next(&mut self.table, self.desc, self.head)?;
        }
    }

    /// Takes in a descriptor with a buffer.
    fn take<T: Translate>(
        &mut self,
        limit: usize,
        translate: &mut T,
        arena: &mut Arena,
    ) -> Result<(), Box<RingError>> {
        let (head, desc) = (self.head, self.desc);
        let access = if desc.has(Desc::WRITE) == 0 {
            Access::Read
        } else {
            Access::Write
        };
        if access == Access::Read && self.readable != self.count {
            return Err(Box::new(RingError::ReadableAfterWritable {
                head,
                addr: desc.addr,
            }));
        }
        for_pieces(translate, head, desc, access, |host, run| {
            if self.count == self.room {
                self.grow(arena, limit)?;
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
    fn enter<F: Format, T: Translate>(
        &mut self,
        rules: &mut Rules,
        translate: &mut T,
    ) -> Result<(), Box<RingError>> {
        let Walk { head, desc, .. } = *self;
        let (len, limit) = (desc.len(), usize::from(rules.limit()));
        if !rules.indirect {
            return Err(Box::new(RingError::IndirectNotNegotiated { head }));
        }
        if self.table.indirect {
            return Err(Box::new(RingError::IndirectNested { head }));
        }
        if !F::MIXED && self.count > 0 {
            return Err(Box::new(RingError::IndirectMixed { head }));
        }
        if desc.has(Desc::NEXT) != 0 {
            return Err(Box::new(RingError::IndirectNext {
                head,
                flags: desc.flags(),
            }));
        }
        let entries = len as usize / Desc::SIZE;
        if !(len as usize).is_multiple_of(Desc::SIZE) || entries == 0 || entries > limit {
            return Err(Box::new(RingError::IndirectLen { head, len, limit }));
        }
        self.table = match rules.table_in_place(translate, desc) {
            Some(table) => table,
            None => {
                let base = copy_table(translate, head, desc, &mut rules.copy)?;
                Table::indirect(base, entries as u16)
            }
        };
        self.left = entries;
        self.desc = F::first(&self.table);
        Ok(())
    }

    /// Moves the buffers to a larger block.
    fn grow(&mut self, arena: &mut Arena, limit: usize) -> Result<(), Box<RingError>> {
        let (head, buffers) = (self.head, self.count + 1);
        if buffers > limit {
            return Err(Box::new(RingError::TooManyBuffers { head, limit }));
        }
        let block = arena
            .alloc(buffers)
            .map_err(|_| Box::new(RingError::Budget { head, buffers }))?;
        self.room = block.capacity().min(limit);
        // SAFETY: the new block is larger than `count` and nobody else's; the slot is ours alone.
        unsafe {
            block
                .iovecs
                .copy_from_nonoverlapping(self.iovecs, self.count);
            self.iovecs = block.iovecs;
            arena.free(Slot::respill(self.slot, block));
        }
        Ok(())
    }

    /// Writes the element.
    fn fill(&self) -> Result<(), Box<RingError>> {
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

/// A private copy of a table that is not contiguous, or not aligned, in the host.
fn copy_table<T: Translate>(
    translate: &mut T,
    head: u16,
    desc: Desc,
    copy: &mut Vec<[u64; 2]>,
) -> Result<*const u8, Box<RingError>> {
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
    mut piece: impl FnMut(*mut u8, usize) -> Result<(), Box<RingError>>,
) -> Result<(), Box<RingError>> {
    let (addr, len) = (desc.addr, desc.len());
    if addr.checked_add(len.into()).is_none() {
        return Err(Box::new(RingError::AddressWrap { head, addr, len }));
    }
    let mut done = 0;
    loop {
        let Some((host, run)) = translate.run(addr + done, access) else {
            return Err(Box::new(RingError::Unmapped {
                head,
                addr,
                len,
                access,
            }));
        };
        let run = run.min(u64::from(len) - done);
        piece(host, run as usize)?;
        done += run;
        if done == u64::from(len) {
            return Ok(());
        }
    }
}

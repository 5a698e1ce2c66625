//! Chains of a packed ring: descriptors that follow each other around the ring, or one indirect table.

use super::{Format, Rules, Table, walk};
use crate::memory::Translate;
use crate::sync::Ordering;
use crate::virtqueue::areas::Desc;
use crate::virtqueue::arena::Arena;
use crate::virtqueue::packed_areas::{PackedAreas, is_available};
use crate::virtqueue::place::Place;
use crate::virtqueue::ring_error::RingError;
use crate::virtqueue::slot::Slot;

struct Packed;

impl Format for Packed {
    const MIXED: bool = false;

    fn first(table: &Table) -> Desc {
        entry(table)
    }

    #[inline(always)]
    fn next(table: &mut Table, _: Desc, head: u16) -> Result<Desc, Box<RingError>> {
        table.at += 1;
        if table.indirect {
            return Ok(entry(table));
        }
        if table.at == table.entries {
            table.at = 0;
            table.wrap = !table.wrap;
        }
        if table.at == head {
            let entries = table.entries;
            return Err(Box::new(RingError::Endless { head, entries }));
        }
        // SAFETY: at < entries. Relaxed: the flags of the first descriptor were loaded with Acquire, and the driver stores
        // those last.
        let desc = unsafe { Desc::read_packed(table.base, table.at, Ordering::Relaxed) };
        if is_available(desc.flags(), table.wrap) {
            Ok(desc)
        } else {
            Err(out_of_step(table, desc, head))
        }
    }
}

/// The entry at the place of an indirect table. The device ignores all of its flags but `WRITE` (virtio 1.3, section 2.8.7;
/// drivers do set others), and the order is the table's: so what has another one behind it gets `NEXT` here.
fn entry(table: &Table) -> Desc {
    // SAFETY: the first entry, or one behind an entry with NEXT.
    let desc = unsafe { Desc::read_packed(table.base, table.at, Ordering::Relaxed) };
    let more = table.entries - table.at > 1;
    desc.with_flags(desc.has(Desc::WRITE) | if more { Desc::NEXT } else { 0 })
}

#[cold]
#[inline(never)]
fn out_of_step(table: &Table, desc: Desc, head: u16) -> Box<RingError> {
    Box::new(RingError::OutOfStep {
        head,
        position: table.at,
        flags: desc.flags(),
        wrap: table.wrap,
    })
}

/// The buffer that a chain was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtqueue) struct Taken {
    pub(in crate::virtqueue) id: u16,
    /// How many descriptors of the ring it took: from one to all of them.
    pub(in crate::virtqueue) descs: u16,
}

/// Fills the element of `slot` with the chain at `place`, if that is available.
///
/// # Safety
/// `place` is one of this ring; the slot is of the pool with this arena, free, and has no block.
#[inline(always)]
pub(in crate::virtqueue) unsafe fn walk_packed<T: Translate>(
    areas: PackedAreas,
    rules: &mut Rules,
    translate: &mut T,
    arena: &mut Arena,
    slot: *mut Slot,
    place: Place,
) -> Result<Option<Taken>, Box<RingError>> {
    let (ring, size, head) = (areas.desc_ring(), areas.size(), place.index);
    // SAFETY: the index of a place is below the ring's size. Acquire: pairs with the driver's release of the first
    // descriptor's flags; the rest of the chain, and the buffers, come after.
    let first = unsafe { Desc::read_packed(ring, head, Ordering::Acquire) };
    if !is_available(first.flags(), place.wrap) {
        return Ok(None);
    }
    let (mut table, mut last) = (Table::ring(ring, size, head, place.wrap), first);
    // SAFETY: the caller's promise.
    unsafe { walk::<Packed, T>(rules, translate, arena, slot, head, &mut table, &mut last)? };
    if first.has(Desc::INDIRECT) != 0 {
        let id = first.next();
        return Ok(Some(Taken { id, descs: 1 }));
    }
    let behind = table.at + if table.at < head { size } else { 0 } - head;
    Ok(Some(Taken {
        id: last.next(),
        descs: behind + 1,
    }))
}

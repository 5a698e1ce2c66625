//! What the virtio specification and this library's limits say of a packed ring, without any thought of speed.

use crate::harness::sim::Position;
use crate::harness::sim::packed_ring::{
    DESC_AVAIL, DESC_USED, EVENTS_DESC, EVENTS_DISABLE, avail_flags,
};
use crate::harness::sim::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use crate::harness::split_ring::reference::{Broken, Buffer, Desc, Walk, check_total};

#[derive(Debug, PartialEq)]
pub struct Chain {
    pub id: u16,
    /// Descriptors of the ring.
    pub count: u16,
    pub buffers: Vec<Buffer>,
}

/// The chains from a place on, up to the first descriptor that is not available or the first chain that breaks the
/// ring, and where the next one would be.
pub fn chains(walk: &Walk, mut at: Position) -> (Vec<Chain>, Position, Result<(), Broken>) {
    let mut chains: Vec<Chain> = Vec::new();
    loop {
        let chain = match chain(walk, at) {
            Ok(None) => return (chains, at, Ok(())),
            Ok(Some(chain)) => chain,
            Err(Broken) => return (chains, at, Err(Broken)),
        };
        let busy = chains.iter().any(|other| other.id == chain.id);
        if chain.id >= walk.size || busy {
            return (chains, at, Err(Broken));
        }
        at = at.after(chain.count, walk.size);
        chains.push(chain);
    }
}

/// A descriptor of the ring or of a table. Where a split ring's has flags and the next one, this has id and flags.
fn read(walk: &Walk, table: u64, index: u16) -> Result<Desc, Broken> {
    let desc = walk.read(table, index)?;
    Ok(Desc {
        flags: desc.next,
        next: desc.flags,
        ..desc
    })
}

fn is_available(desc: &Desc, at: Position) -> bool {
    desc.flags & (DESC_AVAIL | DESC_USED) == avail_flags(at.wrap)
}

fn chain(walk: &Walk, head: Position) -> Result<Option<Chain>, Broken> {
    let mut buffers = Vec::new();
    let (mut at, mut desc) = (head, read(walk, walk.desc, head.index)?);
    if !is_available(&desc, head) {
        return Ok(None);
    }
    let mut count = 1;
    if desc.flags & DESC_INDIRECT != 0 {
        let entries = walk.table(&desc, false)?;
        for index in 0..entries {
            let mut entry = read(walk, desc.addr, index as u16)?;
            entry.flags &= DESC_WRITE;
            walk.take(&entry, &mut buffers)?;
        }
    } else {
        walk.take(&desc, &mut buffers)?;
        while desc.flags & DESC_NEXT != 0 {
            at = at.after(1, walk.size);
            desc = read(walk, walk.desc, at.index)?;
            let mixed = desc.flags & DESC_INDIRECT != 0;
            if at.index == head.index || !is_available(&desc, at) || mixed {
                return Err(Broken);
            }
            walk.take(&desc, &mut buffers)?;
            count += 1;
        }
    }
    check_total(&buffers)?;
    Ok(Some(Chain {
        // The id.
        id: desc.next,
        count,
        buffers,
    }))
}

/// Which publications the driver is told of.
pub struct Calls {
    pub event: (u16, u16),
    pub event_idx: bool,
    pub size: u16,
    /// A publication has been compared with the driver's place.
    pub compared: bool,
}

impl Calls {
    /// Whether the driver is told that `count` descriptors from `from` on are used.
    pub fn expects(&mut self, from: Position, count: u16) -> bool {
        let (at, flags) = self.event;
        match flags & 3 {
            EVENTS_DISABLE => false,
            EVENTS_DESC if self.event_idx => {
                // The first one's neighbours are unknown, so it is told in any case.
                let first = !std::mem::replace(&mut self.compared, true);
                let at = Position::decode(at);
                first || at.index >= self.size || self.is_among(at, from, count)
            }
            _ => true,
        }
    }

    fn is_among(&self, at: Position, from: Position, count: u16) -> bool {
        (0..count).any(|offset| from.after(offset, self.size) == at)
    }
}

//! The walk as the virtio specification and this library's limits say it, without any thought of speed.

use crate::harness::sim::packed_ring::{DESC_AVAIL, DESC_USED, Position, avail_flags};
use crate::harness::sim::ring::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE};
use crate::harness::sim::{GuestMemory, PackedDesc};
use crate::harness::split_ring::reference::{Broken, Buffer, pieces};

#[derive(Debug, PartialEq)]
pub struct Chain {
    pub id: u16,
    pub buffers: Vec<Buffer>,
    /// Descriptors of the ring.
    pub count: u16,
}

/// A ring that is walked.
pub struct Walk<'m> {
    pub memory: &'m GuestMemory,
    pub desc: u64,
    pub size: u16,
    pub indirect: bool,
}

impl Walk<'_> {
    /// The chains that are available, up to the first that breaks the ring.
    pub fn all(&self, mut at: Position) -> (Vec<Chain>, Result<(), Broken>) {
        let mut chains: Vec<Chain> = Vec::new();
        loop {
            match self.available(at) {
                Ok(None) => return (chains, Ok(())),
                Ok(Some(head)) => match self.chain(at, head) {
                    Ok(chain) if chains.iter().all(|other| other.id != chain.id) => {
                        at = at.after(chain.count, self.size);
                        chains.push(chain);
                    }
                    _ => return (chains, Err(Broken)),
                },
                Err(Broken) => return (chains, Err(Broken)),
            }
        }
    }

    fn limit(&self) -> usize {
        usize::from(self.size).max(1024)
    }

    fn available(&self, at: Position) -> Result<Option<PackedDesc>, Broken> {
        let desc = self.read(self.desc, at.index)?;
        let available = desc.flags & (DESC_AVAIL | DESC_USED) == avail_flags(at.wrap);
        Ok(available.then_some(desc))
    }

    fn chain(&self, head: Position, first: PackedDesc) -> Result<Chain, Broken> {
        let mut buffers = Vec::new();
        let (mut at, mut desc, mut count) = (head, first, 1);
        if first.flags & DESC_INDIRECT != 0 {
            self.table(&first, &mut buffers)?;
        } else {
            loop {
                if desc.flags & DESC_INDIRECT != 0 {
                    return Err(Broken);
                }
                self.take(&desc, &mut buffers)?;
                if desc.flags & DESC_NEXT == 0 {
                    break;
                }
                at = at.after(1, self.size);
                count += 1;
                if count > self.size {
                    return Err(Broken);
                }
                desc = self.available(at)?.ok_or(Broken)?;
            }
        }
        let total: u64 = buffers.iter().map(|buffer| buffer.1).sum();
        if total > u32::MAX.into() || desc.id >= self.size {
            return Err(Broken);
        }
        Ok(Chain {
            id: desc.id,
            buffers,
            count,
        })
    }

    /// The buffers of an indirect table, in which no flag but WRITE has a meaning.
    fn table(&self, desc: &PackedDesc, buffers: &mut Vec<Buffer>) -> Result<(), Broken> {
        let len = desc.len as usize;
        let entries = len / DESC_LEN as usize;
        let legal = self.indirect
            && desc.flags & DESC_NEXT == 0
            && len.is_multiple_of(DESC_LEN as usize)
            && (1..=self.limit()).contains(&entries);
        if !legal {
            return Err(Broken);
        }
        pieces(desc.addr, len as u64)?;
        for index in 0..entries as u16 {
            self.take(&self.read(desc.addr, index)?, buffers)?;
        }
        Ok(())
    }

    fn take(&self, desc: &PackedDesc, buffers: &mut Vec<Buffer>) -> Result<(), Broken> {
        let write = desc.flags & DESC_WRITE != 0;
        if !write && buffers.last().is_some_and(|last| last.2) {
            return Err(Broken);
        }
        for (addr, len) in pieces(desc.addr, desc.len.into())? {
            buffers.push((addr, len, write));
        }
        if buffers.len() > self.limit() {
            return Err(Broken);
        }
        Ok(())
    }

    fn read(&self, table: u64, index: u16) -> Result<PackedDesc, Broken> {
        let at = table + DESC_LEN * u64::from(index);
        let bytes = self
            .memory
            .read(at, DESC_LEN as usize)
            .map_err(|_| Broken)?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let rest = word(8);
        Ok(PackedDesc {
            addr: word(0),
            len: rest as u32,
            id: (rest >> 32) as u16,
            flags: (rest >> 48) as u16,
        })
    }
}

//! The walk as the virtio specification and this library's limits say it, without any thought of speed.

use crate::harness::sim::GuestMemory;
use crate::harness::sim::ring::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE};
use crate::harness::world::REGIONS;

/// A buffer: guest address, length, whether the device may write it.
pub type Buffer = (u64, u64, bool);

#[derive(Debug, PartialEq)]
pub struct Chain {
    pub head: u16,
    pub buffers: Vec<Buffer>,
}

/// A ring that is walked.
pub struct Walk<'m> {
    pub memory: &'m GuestMemory,
    pub desc: u64,
    pub size: u16,
    pub indirect: bool,
}

/// The ring is broken.
#[derive(Debug, PartialEq)]
pub struct Broken;

struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Walk<'_> {
    /// The chains of these heads, up to the first that breaks the ring.
    pub fn all(&self, heads: impl Iterator<Item = u16>) -> (Vec<Chain>, Result<(), Broken>) {
        let mut chains: Vec<Chain> = Vec::new();
        for head in heads {
            let busy = chains.iter().any(|chain| chain.head == head);
            if head >= self.size || busy {
                return (chains, Err(Broken));
            }
            match self.chain(head) {
                Ok(buffers) => chains.push(Chain { head, buffers }),
                Err(Broken) => return (chains, Err(Broken)),
            }
        }
        (chains, Ok(()))
    }

    fn limit(&self) -> usize {
        usize::from(self.size).max(1024)
    }

    fn chain(&self, head: u16) -> Result<Vec<Buffer>, Broken> {
        let mut buffers = Vec::new();
        let (mut table, mut entries, mut inside) = (self.desc, usize::from(self.size), false);
        let (mut index, mut visited) = (head, 0);
        loop {
            visited += 1;
            if usize::from(index) >= entries || visited > entries {
                return Err(Broken);
            }
            let desc = self.read(table, index)?;
            if desc.flags & DESC_INDIRECT != 0 {
                entries = self.table(&desc, inside)?;
                (table, inside) = (desc.addr, true);
                (index, visited) = (0, 0);
                continue;
            }
            self.take(&desc, &mut buffers)?;
            if desc.flags & DESC_NEXT == 0 {
                break;
            }
            index = desc.next;
        }
        let total: u64 = buffers.iter().map(|buffer| buffer.1).sum();
        if total > u32::MAX.into() {
            return Err(Broken);
        }
        Ok(buffers)
    }

    /// Entries of the indirect table that a descriptor refers to.
    fn table(&self, desc: &Desc, inside: bool) -> Result<usize, Broken> {
        let len = desc.len as usize;
        let entries = len / DESC_LEN as usize;
        let legal = self.indirect
            && !inside
            && desc.flags & DESC_NEXT == 0
            && len.is_multiple_of(DESC_LEN as usize)
            && (1..=self.limit()).contains(&entries);
        if !legal {
            return Err(Broken);
        }
        pieces(desc.addr, len as u64).map(|_| entries)
    }

    fn take(&self, desc: &Desc, buffers: &mut Vec<Buffer>) -> Result<(), Broken> {
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

    fn read(&self, table: u64, index: u16) -> Result<Desc, Broken> {
        let at = table + DESC_LEN * u64::from(index);
        let bytes = self
            .memory
            .read(at, DESC_LEN as usize)
            .map_err(|_| Broken)?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let rest = word(8);
        Ok(Desc {
            addr: word(0),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        })
    }
}

/// A range cut at the regions' ends; at least one piece, which is empty if the range is.
pub fn pieces(addr: u64, len: u64) -> Result<Vec<(u64, u64)>, Broken> {
    addr.checked_add(len).ok_or(Broken)?;
    let mut done = 0;
    let mut found = Vec::new();
    loop {
        let at = addr + done;
        let (gpa, size) = REGIONS
            .into_iter()
            .find(|(gpa, size)| at >= *gpa && at - gpa < *size)
            .ok_or(Broken)?;
        let run = (len - done).min(size - (at - gpa));
        found.push((at, run));
        done += run;
        if done == len {
            return Ok(found);
        }
    }
}

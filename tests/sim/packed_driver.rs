//! The driver's side of one packed virtqueue, by the book; `packed_ring` is the way past the book.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::deadline::Deadline;
use super::driver::{Seg, Used};
use super::error::{Error, Result};
use super::eventfd::EventFd;
use super::memory::GuestMemory;
use super::packed_ring::{
    EVENTS_DESC, EVENTS_DISABLE, EVENTS_ENABLE, PackedDesc, PackedLayout, PackedRing, Position,
    avail_flags, used_flags,
};
use super::ring::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE};

impl Seg {
    fn packed(&self, id: u16, more: bool) -> PackedDesc {
        let write = if self.writable { DESC_WRITE } else { 0 };
        let next = if more { DESC_NEXT } else { 0 };
        PackedDesc {
            addr: self.gpa,
            len: self.len,
            id,
            flags: write | next,
        }
    }
}

pub struct PackedDriver {
    pub ring: PackedRing,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    /// Kicks that were written, and those the device did not want.
    pub kicks: u64,
    pub kicks_suppressed: u64,
    /// Calls taken from the call fd so far.
    pub calls: u64,
    memory: Arc<GuestMemory>,
    event_idx: bool,
    free_ids: Vec<u16>,
    /// By id: how many descriptors of the ring the chain that is out takes.
    chains: Vec<Option<u16>>,
    outstanding: usize,
    /// Descriptors of the ring that belong to no chain that is out.
    room: u16,
    /// By id: guest address and capacity of its indirect table.
    tables: Vec<Option<(u64, usize)>>,
    /// Where the next chain is added.
    next: Position,
    /// The first head that was added and not published, and its flags: the device sees none behind it.
    unpublished: Option<(u16, u16)>,
    /// Descriptors added since the last publication, and published since the last kick or decision against one.
    added: u16,
    unkicked: u16,
    /// Where the next completion is.
    taken: Position,
}

impl PackedDriver {
    /// A queue in freshly allocated guest memory.
    pub fn new(memory: &Arc<GuestMemory>, size: u16, event_idx: bool) -> Result<Self> {
        Self::with_layout(memory, PackedLayout::alloc(memory, size)?, event_idx)
    }

    pub fn with_layout(
        memory: &Arc<GuestMemory>,
        layout: PackedLayout,
        event_idx: bool,
    ) -> Result<Self> {
        let mut driver = PackedDriver {
            ring: PackedRing::new(memory, layout)?,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            err: EventFd::new()?,
            kicks: 0,
            kicks_suppressed: 0,
            calls: 0,
            memory: Arc::clone(memory),
            event_idx,
            free_ids: Vec::new(),
            chains: Vec::new(),
            outstanding: 0,
            room: 0,
            tables: vec![None; layout.size.into()],
            next: Position::START,
            unpublished: None,
            added: 0,
            unkicked: 0,
            taken: Position::START,
        };
        driver.reset(Position::START)?;
        Ok(driver)
    }

    /// Forgets everything and clears the ring, which goes on at a position.
    pub fn reset(&mut self, next: Position) -> Result<()> {
        let size = self.size();
        self.ring.clear(next)?;
        self.free_ids = (0..size).rev().collect();
        self.chains = vec![None; size.into()];
        self.outstanding = 0;
        self.room = size;
        self.next = next;
        self.unpublished = None;
        self.added = 0;
        self.unkicked = 0;
        self.taken = next;
        Ok(())
    }

    pub fn size(&self) -> u16 {
        self.ring.layout().size
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub fn free_descriptors(&self) -> usize {
        self.room.into()
    }

    /// Chains added and not yet taken back.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Where the next chain goes.
    pub fn next(&self) -> Position {
        self.next
    }

    /// Where the next completion will be.
    pub fn taken(&self) -> Position {
        self.taken
    }

    /// Where the device's next completion goes, as the completions say that are there and were not taken.
    pub fn used(&self) -> Result<Position> {
        let mut position = self.taken;
        let mut left = self.outstanding;
        while left > 0 && self.is_used(position)? {
            let (id, _) = self.ring.used(position.index)?;
            let count = self.chains.get(usize::from(id)).copied().flatten();
            position = position.after(count.unwrap_or(1), self.size());
            left -= 1;
        }
        Ok(position)
    }

    /// Adds a chain of descriptors in the ring, not yet visible to the device. Its id comes from a stack, so that ids have
    /// nothing to do with positions.
    pub fn add(&mut self, segs: &[Seg]) -> Result<u16> {
        self.add_chain(segs, None)
    }

    /// Adds a chain in an indirect table, one descriptor in the ring.
    pub fn add_indirect(&mut self, segs: &[Seg]) -> Result<u16> {
        self.add_chain(&[], Some(segs))
    }

    fn add_chain(&mut self, direct: &[Seg], indirect: Option<&[Seg]>) -> Result<u16> {
        let count = direct.len() + usize::from(indirect.is_some());
        let id = self.free_ids.last().copied();
        let (Some(id), true) = (id, (1..=usize::from(self.room)).contains(&count)) else {
            return Err(Error::Broken(format!(
                "packed virtqueue: {count} descriptors wanted, {} free",
                self.room
            )));
        };
        let mut descs: Vec<PackedDesc> = (1..)
            .zip(direct)
            .map(|(end, seg)| seg.packed(id, end < count))
            .collect();
        if let Some(segs) = indirect {
            descs.push(self.write_table(id, segs)?);
        }
        self.free_ids.pop();
        let head = self.next;
        for (index, desc) in descs.iter().enumerate() {
            let flags = desc.flags | avail_flags(self.next.wrap);
            self.ring.set_body(self.next.index, *desc)?;
            if index == 0 && self.unpublished.is_none() {
                self.unpublished = Some((head.index, flags));
            } else {
                self.ring.set_flags(self.next.index, flags)?;
            }
            self.next = self.next.after(1, self.size());
        }
        let count = count as u16;
        self.room -= count;
        self.added += count;
        self.chains[usize::from(id)] = Some(count);
        self.outstanding += 1;
        Ok(id)
    }

    /// Writes the indirect table of `id` and returns its descriptor. Neither NEXT nor ids mean anything in a table.
    fn write_table(&mut self, id: u16, segs: &[Seg]) -> Result<PackedDesc> {
        let known = self.tables[usize::from(id)].filter(|(_, room)| *room >= segs.len());
        let gpa = match known {
            Some((gpa, _)) => gpa,
            None => {
                let gpa = self.memory.alloc(DESC_LEN * segs.len() as u64, 16)?;
                self.tables[usize::from(id)] = Some((gpa, segs.len()));
                gpa
            }
        };
        for (index, seg) in segs.iter().enumerate() {
            let at = gpa + DESC_LEN * index as u64;
            self.memory.write(at, &seg.packed(0, false).encode())?;
        }
        Ok(PackedDesc {
            addr: gpa,
            len: DESC_LEN as u32 * segs.len() as u32,
            id,
            flags: DESC_INDIRECT,
        })
    }

    /// Makes what was added visible to the device.
    pub fn publish(&mut self) -> Result<()> {
        if let Some((index, flags)) = self.unpublished.take() {
            self.ring.set_flags(index, flags)?;
        }
        self.unkicked = self.unkicked.saturating_add(self.added);
        self.added = 0;
        Ok(())
    }

    /// Kicks if the device wants to be told, and says whether it did.
    pub fn kick(&mut self) -> Result<bool> {
        // SeqCst: the published flags before the device's wish; pairs with the device's fence between its wish and its
        // last look.
        fence(Ordering::SeqCst);
        let wanted = match self.ring.device_events()? {
            (at, EVENTS_DESC) if self.event_idx => self.passed(Position::decode(at)),
            (_, flags) => flags != EVENTS_DISABLE,
        };
        if wanted {
            self.kick_always()?;
        } else {
            self.kicks_suppressed += 1;
            self.unkicked = 0;
        }
        Ok(wanted)
    }

    /// Whether what was published since the last kick includes the descriptor at `event`.
    fn passed(&self, event: Position) -> bool {
        let behind = if event.wrap == self.next.wrap {
            i32::from(self.next.index) - i32::from(event.index)
        } else {
            i32::from(self.next.index) + i32::from(self.size()) - i32::from(event.index)
        };
        (1..=i32::from(self.unkicked)).contains(&behind)
    }

    pub fn kick_always(&mut self) -> Result<()> {
        self.unkicked = 0;
        self.kicks += 1;
        self.kick.signal()
    }

    /// Adds a direct chain, publishes it and kicks if wanted.
    pub fn submit(&mut self, segs: &[Seg]) -> Result<u16> {
        let id = self.add(segs)?;
        self.publish()?;
        self.kick()?;
        Ok(id)
    }

    pub fn submit_indirect(&mut self, segs: &[Seg]) -> Result<u16> {
        let id = self.add_indirect(segs)?;
        self.publish()?;
        self.kick()?;
        Ok(id)
    }

    /// Makes these descriptors available as they are, but for the flags of this lap, at once and without keeping books.
    pub fn publish_raw(&mut self, descs: &[PackedDesc]) -> Result<()> {
        let head = self.next;
        for (index, desc) in descs.iter().enumerate() {
            self.ring.set_body(self.next.index, *desc)?;
            if index > 0 {
                let flags = desc.flags | avail_flags(self.next.wrap);
                self.ring.set_flags(self.next.index, flags)?;
            }
            self.next = self.next.after(1, self.size());
        }
        if let Some(desc) = descs.first() {
            let flags = desc.flags | avail_flags(head.wrap);
            self.ring.set_flags(head.index, flags)?;
        }
        Ok(())
    }

    fn is_used(&self, position: Position) -> Result<bool> {
        let both = used_flags(true);
        Ok(self.ring.flags(position.index)? & both == used_flags(position.wrap))
    }

    /// The next completion, if there is one. An id that is not out is the device's fault and an error.
    pub fn poll_used(&mut self) -> Result<Option<Used>> {
        if !self.is_used(self.taken)? {
            return Ok(None);
        }
        let (id, len) = self.ring.used(self.taken.index)?;
        let chain = self.chains.get_mut(usize::from(id)).and_then(Option::take);
        let Some(count) = chain else {
            return Err(Error::Broken(format!(
                "packed ring: id {id} at {:?} is not out",
                self.taken
            )));
        };
        self.taken = self.taken.after(count, self.size());
        self.room += count;
        self.free_ids.push(id);
        self.outstanding -= 1;
        Ok(Some(Used { head: id, len }))
    }

    /// The used descriptor where the next is due whatever it says, for a chain of `count` that was made available with
    /// `publish_raw`.
    pub fn poll_used_raw(&mut self, count: u16) -> Result<Option<(u16, u32)>> {
        if !self.is_used(self.taken)? {
            return Ok(None);
        }
        let used = self.ring.used(self.taken.index)?;
        self.taken = self.taken.after(count, self.size());
        Ok(Some(used))
    }

    /// Asks for a call at the next completion.
    pub fn enable_calls(&mut self) -> Result<()> {
        if self.event_idx {
            self.ring
                .set_driver_events(self.taken.encode(), EVENTS_DESC)?;
        } else {
            self.ring.set_driver_events(0, EVENTS_ENABLE)?;
        }
        // SeqCst: the wish before the next look at the flags; pairs with the device's fence between its flags and the
        // wish.
        fence(Ordering::SeqCst);
        Ok(())
    }

    pub fn disable_calls(&mut self) -> Result<()> {
        self.ring.set_driver_events(0, EVENTS_DISABLE)
    }

    /// The next completion, waiting on the call fd for it.
    pub fn wait_used(&mut self, deadline: Deadline) -> Result<Used> {
        loop {
            if let Some(used) = self.poll_used()? {
                return Ok(used);
            }
            self.enable_calls()?;
            if let Some(used) = self.poll_used()? {
                return Ok(used);
            }
            let what = format!(
                "completion ({} chains out, next {:?}, taken {:?})",
                self.outstanding, self.next, self.taken
            );
            self.calls += self.call.wait(&what, deadline)?;
        }
    }

    pub fn wait_used_all(&mut self, count: usize, deadline: Deadline) -> Result<Vec<Used>> {
        (0..count).map(|_| self.wait_used(deadline)).collect()
    }

    /// Waits until the device says that the ring is broken.
    pub fn wait_err(&self, deadline: Deadline) -> Result<u64> {
        self.err.wait("signal on the err fd", deadline)
    }
}

//! The driver's side of one split virtqueue, by the book; `ring` is the way
//! past the book.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::deadline::Deadline;
use super::error::{Error, Result};
use super::eventfd::EventFd;
use super::memory::GuestMemory;
use super::ring::{
    AVAIL_NO_INTERRUPT, DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE, Desc, Ring, RingLayout,
    USED_NO_NOTIFY,
};

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seg {
    pub gpa: u64,
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Seg {
    pub fn readable(gpa: u64, len: u32) -> Self {
        Seg {
            gpa,
            len,
            writable: false,
        }
    }

    pub fn writable(gpa: u64, len: u32) -> Self {
        Seg {
            gpa,
            len,
            writable: true,
        }
    }

    fn desc(&self, next: Option<u16>) -> Desc {
        let write = if self.writable { DESC_WRITE } else { 0 };
        let more = if next.is_some() { DESC_NEXT } else { 0 };
        Desc {
            addr: self.gpa,
            len: self.len,
            flags: write | more,
            next: next.unwrap_or(0),
        }
    }
}

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub len: u32,
}

pub struct SplitDriver {
    pub ring: Ring,
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
    free: Vec<u16>,
    /// By head: the descriptors of the chain that is out, head included.
    chains: Vec<Option<Vec<u16>>>,
    outstanding: usize,
    /// By head: guest address and capacity of its indirect table.
    tables: Vec<Option<(u64, usize)>>,
    /// The available index: what has been added, published and kicked for.
    added: u16,
    published: u16,
    kicked: u16,
    /// The used index up to which completions were taken.
    taken: u16,
}

impl SplitDriver {
    /// A queue in freshly allocated guest memory.
    pub fn new(memory: &Arc<GuestMemory>, size: u16, event_idx: bool) -> Result<Self> {
        Self::with_layout(memory, RingLayout::alloc(memory, size)?, event_idx)
    }

    pub fn with_layout(
        memory: &Arc<GuestMemory>,
        layout: RingLayout,
        event_idx: bool,
    ) -> Result<Self> {
        let size = layout.size;
        let mut driver = SplitDriver {
            ring: Ring::new(memory, layout)?,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            err: EventFd::new()?,
            kicks: 0,
            kicks_suppressed: 0,
            calls: 0,
            memory: Arc::clone(memory),
            event_idx,
            free: Vec::new(),
            chains: Vec::new(),
            outstanding: 0,
            tables: vec![None; size.into()],
            added: 0,
            published: 0,
            kicked: 0,
            taken: 0,
        };
        driver.reset(0)?;
        Ok(driver)
    }

    /// Forgets everything and clears the ring; indexes go on from `base`.
    pub fn reset(&mut self, base: u16) -> Result<()> {
        let size = self.size();
        self.ring.clear()?;
        self.ring.set_avail_idx(base)?;
        self.ring.set_used_idx(base)?;
        self.ring.set_used_event(base)?;
        self.free = (0..size).rev().collect();
        self.chains = vec![None; size.into()];
        self.outstanding = 0;
        self.added = base;
        self.published = base;
        self.kicked = base;
        self.taken = base;
        Ok(())
    }

    pub fn size(&self) -> u16 {
        self.ring.layout().size
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// The available index that the device may see.
    pub fn published(&self) -> u16 {
        self.published
    }

    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Chains added and not yet taken back.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Adds a chain of direct descriptors, not yet visible to the device.
    pub fn add(&mut self, segs: &[Seg]) -> Result<u16> {
        self.add_chain(segs, None)
    }

    /// Adds a chain in an indirect table, one descriptor in the ring.
    pub fn add_indirect(&mut self, segs: &[Seg]) -> Result<u16> {
        self.add_chain(&[], Some(segs))
    }

    /// Adds direct descriptors followed by one for an indirect table.
    pub fn add_mixed(&mut self, direct: &[Seg], indirect: &[Seg]) -> Result<u16> {
        self.add_chain(direct, Some(indirect))
    }

    fn add_chain(&mut self, direct: &[Seg], indirect: Option<&[Seg]>) -> Result<u16> {
        let count = direct.len() + usize::from(indirect.is_some());
        if count == 0 || count > self.free.len() {
            return Err(Error::Broken(format!(
                "virtqueue: {count} descriptors wanted, {} free",
                self.free.len()
            )));
        }
        // From the free list's end, like a stack.
        let slots: Vec<u16> = self.free.iter().rev().take(count).copied().collect();
        let head = slots[0];
        for (position, seg) in direct.iter().enumerate() {
            let next = slots.get(position + 1).copied();
            self.ring.set_desc(slots[position], seg.desc(next))?;
        }
        if let Some(segs) = indirect {
            let table = self.write_table(head, segs)?;
            self.ring.set_desc(slots[count - 1], table)?;
        }
        self.free.truncate(self.free.len() - count);
        self.chains[usize::from(head)] = Some(slots);
        self.outstanding += 1;
        self.ring.set_avail_entry(self.added, head)?;
        self.added = self.added.wrapping_add(1);
        Ok(head)
    }

    /// Writes the indirect table of `head` and returns its descriptor.
    fn write_table(&mut self, head: u16, segs: &[Seg]) -> Result<Desc> {
        let known = self.tables[usize::from(head)].filter(|(_, room)| *room >= segs.len());
        let gpa = match known {
            Some((gpa, _)) => gpa,
            None => {
                let gpa = self.memory.alloc(DESC_LEN * segs.len() as u64, 16)?;
                self.tables[usize::from(head)] = Some((gpa, segs.len()));
                gpa
            }
        };
        for (index, seg) in segs.iter().enumerate() {
            let next = (index + 1 < segs.len()).then_some(index as u16 + 1);
            let at = gpa + DESC_LEN * index as u64;
            self.memory
                .write(at, &seg.desc(next).encode_in(self.ring.big_endian))?;
        }
        Ok(Desc {
            addr: gpa,
            len: DESC_LEN as u32 * segs.len() as u32,
            flags: DESC_INDIRECT,
            next: 0,
        })
    }

    /// Makes what was added visible to the device.
    pub fn publish(&mut self) -> Result<()> {
        self.ring.set_avail_idx(self.added)?;
        self.published = self.added;
        Ok(())
    }

    /// Kicks if the device wants to be told, and says whether it did.
    pub fn kick(&mut self) -> Result<bool> {
        // SeqCst: the published index before the device's wish; pairs with
        // the device's fence between enabling kicks and its last look.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.ring.avail_event()?;
            passed(event, self.kicked, self.published)
        } else {
            self.ring.used_flags()? & USED_NO_NOTIFY == 0
        };
        if wanted {
            self.kick_always()?;
        } else {
            self.kicks_suppressed += 1;
            self.kicked = self.published;
        }
        Ok(wanted)
    }

    pub fn kick_always(&mut self) -> Result<()> {
        self.kicked = self.published;
        self.kicks += 1;
        self.kick.signal()
    }

    /// Adds a direct chain, publishes it and kicks if wanted.
    pub fn submit(&mut self, segs: &[Seg]) -> Result<u16> {
        let head = self.add(segs)?;
        self.publish()?;
        self.kick()?;
        Ok(head)
    }

    pub fn submit_indirect(&mut self, segs: &[Seg]) -> Result<u16> {
        let head = self.add_indirect(segs)?;
        self.publish()?;
        self.kick()?;
        Ok(head)
    }

    /// Makes any head available, at once and without keeping books, for a
    /// chain that was written through `ring`.
    pub fn publish_raw(&mut self, head: u16) -> Result<()> {
        self.ring.set_avail_entry(self.added, head)?;
        self.added = self.added.wrapping_add(1);
        self.publish()
    }

    /// The next completion, if there is one. A head that is not out, or an
    /// index that runs ahead, is the device's fault and an error.
    pub fn poll_used(&mut self) -> Result<Option<Used>> {
        let ahead = self.ring.used_idx()?.wrapping_sub(self.taken);
        if ahead == 0 {
            return Ok(None);
        }
        if usize::from(ahead) > self.outstanding() {
            return Err(Error::Broken(format!(
                "used ring: {ahead} completions, but {} chains are out",
                self.outstanding()
            )));
        }
        let (id, len) = self.ring.used_entry(self.taken)?;
        self.taken = self.taken.wrapping_add(1);
        let chain = self.chains.get_mut(id as usize).and_then(Option::take);
        let Some(chain) = chain else {
            return Err(Error::Broken(format!("used ring: head {id} is not out")));
        };
        self.free.extend(chain.iter().rev());
        self.outstanding -= 1;
        Ok(Some(Used {
            head: id as u16,
            len,
        }))
    }

    /// The next entry of the used ring whatever it says, for chains that
    /// were made available with `publish_raw`.
    pub fn poll_used_raw(&mut self) -> Result<Option<(u32, u32)>> {
        if self.ring.used_idx()? == self.taken {
            return Ok(None);
        }
        let entry = self.ring.used_entry(self.taken)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Asks for a call at the next completion.
    pub fn enable_calls(&mut self) -> Result<()> {
        self.ring.set_avail_flags(0)?;
        self.ring.set_used_event(self.taken)?;
        // SeqCst: the wish before the next look at the used index; pairs
        // with the device's fence between its used index and the wish.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Asks for no calls: by the flag, or by an event far away.
    pub fn disable_calls(&mut self) -> Result<()> {
        if self.event_idx {
            return self.ring.set_used_event(self.taken.wrapping_sub(1));
        }
        self.ring.set_avail_flags(AVAIL_NO_INTERRUPT)
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
                "completion ({} chains out, available {}, used {})",
                self.outstanding(),
                self.published,
                self.taken
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

/// Whether `event` lies among the indexes from `old` up to before `new`.
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

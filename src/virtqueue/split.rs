//! The available side of a split ring: what the owner of the queue pops from.

use super::areas::SplitAreas;
use super::chain::Reader;
use super::notify;
use super::order::{Big, Little, Order};
use super::ring::RingFeatures;
use super::ring_error::RingError;
use super::slot::{NoSlot, Slot, SlotPool, Stamp, state};
use super::used::UsedLog;
use crate::memory::{Cursor, Hint, Iotlb, IotlbCursor, RegionTable, Translate};
use crate::sync::{Arc, AtomicU16, Ordering};

/// The device wants no kicks (flags of the used ring; without `EVENT_IDX` only).
const NO_NOTIFY: u16 = 1;

/// How many chains ahead of the one being walked the descriptors are asked for.
const AHEAD: usize = 8;

/// Chains that a predecessor had in flight, to be popped before those in the available ring. They take the places of the
/// last ones that it had popped there.
#[derive(Debug)]
pub(crate) struct RecoveredHeads {
    /// How many chains had been popped before the first of them.
    start: u64,
    /// As in an available ring, in the ring's order of bytes.
    heads: Vec<AtomicU16>,
}

impl RecoveredHeads {
    pub(crate) fn new(start: u64, heads: &[u16], features: RingFeatures) -> RecoveredHeads {
        let entry = |&head: &u16| {
            AtomicU16::new(if features.big_endian {
                Big::u16(head)
            } else {
                Little::u16(head)
            })
        };
        RecoveredHeads {
            start,
            heads: heads.iter().map(entry).collect(),
        }
    }

    /// How many chains have been popped when all of them are.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.heads.len() as u64
    }
}

/// The elements given to [`SplitRing::unpop`] are not the newest ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotNewest;

/// The owner's private state of a split ring.
pub(crate) struct SplitRing<O> {
    reader: Reader<O>,
    event_idx: bool,
    hint: Hint,
    /// Chains popped, counted from the first position: the low 16 bits are the next position to pop.
    popped: u64,
    /// What comes before the available ring's own entries.
    recovered: Option<Arc<RecoveredHeads>>,
    /// The available index up to which pop may go: loaded and checked.
    bound: u16,
    /// The available index as it was loaded last, by whomever.
    seen: u16,
    /// Whether `NO_NOTIFY` is set.
    quiet: bool,
    /// Where writes to the used ring's flags and event word are marked.
    log: Option<UsedLog>,
    /// What broke the ring.
    broken: Option<RingError>,
}

impl<O: Order> SplitRing<O> {
    /// The available side, to continue where `popped` chains have been popped (see the field).
    pub(crate) fn new(areas: SplitAreas, features: RingFeatures, popped: u64) -> SplitRing<O> {
        SplitRing {
            reader: Reader::new(areas, features.indirect),
            event_idx: features.event_idx,
            hint: Hint::default(),
            popped,
            recovered: None,
            bound: popped as u16,
            seen: popped as u16,
            quiet: false,
            log: None,
            broken: None,
        }
    }

    /// From here on, writes to the used ring's flags and event word are marked.
    pub(crate) fn set_log(&mut self, log: Option<UsedLog>) {
        self.log = log;
    }

    /// After the flags or the event word were written.
    fn mark(&self, offset: usize) {
        if let Some(log) = &self.log {
            log.mark(offset, 2);
        }
    }

    /// The chains before the list's end are taken from it.
    pub(crate) fn set_recovered(&mut self, list: Option<Arc<RecoveredHeads>>) {
        self.recovered = list;
    }

    /// How many chains were popped: see the field.
    pub(crate) fn popped(&self) -> u64 {
        self.popped
    }

    /// The position of the next chain.
    #[inline(always)]
    pub(crate) fn last_avail(&self) -> u16 {
        self.popped as u16
    }

    /// The available index as it was loaded last.
    #[cfg(test)]
    pub(crate) fn avail_seen(&self) -> u16 {
        self.seen
    }

    /// Whether there is a chain that was not popped: one relaxed load.
    #[cfg(test)]
    pub(crate) fn has_available(&self) -> bool {
        self.peek() != self.last_avail()
    }

    /// Whether there is a chain that no load has seen yet: one relaxed load.
    #[inline]
    pub(crate) fn has_new(&self) -> bool {
        self.peek() != self.seen
    }

    #[inline(always)]
    fn peek(&self) -> u16 {
        // Relaxed: a hint; pop loads again.
        O::u16(self.reader.areas.avail_index().load(Ordering::Relaxed))
    }

    /// Pops up to `out.len()` chains.
    ///
    /// # Errors
    /// The first chain cannot be popped; chains before a bad one are returned first. [`RingError::Unmapped`] is not
    /// remembered and consumes nothing, so that it can be tried again with a newer table; every other error stays.
    #[inline(never)]
    pub(crate) fn pop(
        &mut self,
        table: &RegionTable,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> Result<usize, RingError> {
        match table.iotlb() {
            None => {
                let cursor = Cursor::new(table.regions(), self.hint);
                self.pop_with(cursor, pool, stamp, out)
            }
            Some(iotlb) => self.pop_translated(iotlb, table, pool, stamp, out),
        }
    }

    /// As [`pop`](Self::pop), for I/O virtual addresses.
    #[cold]
    #[inline(never)]
    fn pop_translated(
        &mut self,
        iotlb: &Iotlb,
        table: &RegionTable,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> Result<usize, RingError> {
        let cursor = IotlbCursor::new(iotlb, table.regions(), self.hint);
        self.pop_with(cursor, pool, stamp, out)
    }

    #[inline(always)]
    fn pop_with<T: Translate>(
        &mut self,
        translate: T,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> Result<usize, RingError> {
        let ready = self.available(out.len())?;
        if ready == 0 {
            return Ok(0);
        }
        let count = match pool.gather(ready, stamp) {
            Ok(count) => count,
            Err(why) => return self.fail(no_slot(why, self.reader.areas.size()), 0),
        };
        let mut done = 0;
        while done < count {
            let round = &mut out[done..count];
            let areas = self.reader.areas;
            let (popped, failed) = match self.recovered() {
                None => {
                    let heads = areas.avail_heads(self.last_avail());
                    self.pop_round(heads, translate, pool, stamp, round)
                }
                Some((list, at)) => {
                    self.pop_round(&list.heads[at..], translate, pool, stamp, round)
                }
            };
            self.popped += popped as u64;
            pool.take(popped);
            done += popped;
            if let Some(error) = failed {
                pool.clean_next();
                return self.fail(*error, done);
            }
        }
        Ok(done)
    }

    /// What a predecessor had in flight, as long as the next chain is one of those, and where in the list that is.
    #[inline(always)]
    fn recovered(&self) -> Option<(Arc<RecoveredHeads>, usize)> {
        let list = self.recovered.as_ref()?;
        let at = self.popped.wrapping_sub(list.start);
        (at < list.heads.len() as u64).then(|| (list.clone(), at as usize))
    }

    /// Pops the chains at the first of `heads`, as many as there is room for, into slots that are gathered. Says how many,
    /// and what was wrong with the next one.
    #[inline(always)]
    fn pop_round<T: Translate>(
        &mut self,
        heads: &[AtomicU16],
        mut translate: T,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> (usize, Option<Box<RingError>>) {
        let areas = self.reader.areas;
        let count = out.len().min(heads.len());
        let (heads, out) = (&heads[..count], &mut out[..count]);
        let (busy, free) = (pool.busy(), pool.gathered());
        for index in 0..count {
            if let Some(ahead) = heads.get(index + AHEAD) {
                // A hint only: the head is read for good when its turn comes.
                areas.prefetch_desc(O::u16(ahead.load(Ordering::Relaxed)));
            }
            let seq = self.popped + index as u64;
            let head = O::u16(heads[index].load(Ordering::Relaxed));
            // SAFETY: a head below the ring's size has a mark; the pool has gathered as many free slots as `out` has
            // room for, and a free slot has no block.
            unsafe {
                if head >= areas.size() || (*busy.add(head.into())).load(Ordering::Relaxed) != 0 {
                    return (index, Some(bad_head(head, seq as u16, areas.size())));
                }
                let slot = *free.sub(index + 1);
                if let Err(error) = self
                    .reader
                    .walk(&mut translate, &mut pool.arena, slot, head)
                {
                    return (index, Some(error));
                }
                (*busy.add(head.into())).store(1, Ordering::Relaxed);
                (*slot).set_popped(head, seq);
                stamp.apply(slot);
                out[index] = slot;
            }
        }
        self.hint = translate.hint();
        (count, None)
    }

    /// How many chains can be popped, `wanted` at most.
    #[inline(always)]
    fn available(&mut self, wanted: usize) -> Result<usize, RingError> {
        let mut ready = self.bound.wrapping_sub(self.last_avail());
        if usize::from(ready) < wanted {
            ready = self.fetch()?;
        }
        Ok(wanted.min(ready.into()))
    }

    /// Loads the available index and returns how many chains there are.
    ///
    /// # Errors
    /// The ring is broken, or the index is nonsense and no chain is left from before.
    #[inline]
    pub(crate) fn fetch(&mut self) -> Result<u16, RingError> {
        if self.broken.is_some() {
            return self.leftover();
        }
        // Acquire: pairs with the driver's release of the index; the ring entries and descriptors come after.
        let index = O::u16(self.reader.areas.avail_index().load(Ordering::Acquire));
        self.seen = index;
        let ready = index.wrapping_sub(self.last_avail());
        if ready > self.reader.areas.size() {
            return self.bad_index(index);
        }
        self.bound = index;
        Ok(ready)
    }

    /// Puts the newest elements back, as if they had not been popped: `slots` in the order of their pop.
    ///
    /// # Errors
    /// They are not exactly the newest ones, or one of them is not live; nothing has changed.
    ///
    /// # Safety
    /// Each was popped from this ring with this pool and is not used afterwards.
    pub(crate) unsafe fn unpop(
        &mut self,
        pool: &mut SlotPool,
        slots: &[*mut Slot],
    ) -> Result<(), NotNewest> {
        let first = self
            .popped
            .checked_sub(slots.len() as u64)
            .ok_or(NotNewest)?;
        for (expected, &slot) in (first..).zip(slots) {
            // SAFETY: the caller's promise.
            let (seq, state) = unsafe { ((*slot).seq(), (*slot).state()) };
            if seq != expected & Slot::SEQ_MASK || state != state::LIVE {
                return Err(NotNewest);
            }
        }
        for &slot in slots.iter().rev() {
            // SAFETY: the caller's promise; their numbers differ, so each occurs once.
            unsafe { pool.release(slot) };
        }
        self.popped = first;
        Ok(())
    }

    /// Asks the driver not to kick.
    #[inline]
    pub(crate) fn disable_notifications(&mut self) {
        // With EVENT_IDX the event stays where it is: the driver has passed it, and passes it again after 65536 chains.
        if !self.event_idx && !self.quiet {
            self.quiet = true;
            // Relaxed: a kick too many does no harm.
            self.reader
                .areas
                .used_flags()
                .store(O::u16(NO_NOTIFY), Ordering::Relaxed);
            self.mark(SplitAreas::USED_FLAGS_OFFSET);
        }
    }

    /// Asks the driver to kick for the next chain. True: there are chains already that no load has seen.
    #[inline]
    pub(crate) fn rearm(&mut self) -> bool {
        let areas = self.reader.areas;
        let index = if self.event_idx {
            let index =
                notify::store_then_load::<O>(areas.avail_event(), self.seen, areas.avail_index());
            self.mark(SplitAreas::used_entry_offset(areas.size().into()));
            index
        } else {
            self.quiet = false;
            let index = notify::store_then_load::<O>(areas.used_flags(), 0, areas.avail_index());
            self.mark(SplitAreas::USED_FLAGS_OFFSET);
            index
        };
        let new = index != self.seen;
        self.seen = index;
        new
    }

    /// A chain failed after `done` good ones.
    #[cold]
    #[inline(never)]
    fn fail(&mut self, error: RingError, done: usize) -> Result<usize, RingError> {
        if !error.is_unmapped() {
            // From here on nothing is available but the error.
            self.bound = self.last_avail();
            self.broken = Some(error.clone());
        }
        if done > 0 { Ok(done) } else { Err(error) }
    }

    #[cold]
    fn bad_index(&mut self, index: u16) -> Result<u16, RingError> {
        let last = self.last_avail();
        let error = RingError::AvailIndex {
            index,
            last,
            size: self.reader.areas.size(),
        };
        self.broken = Some(error);
        self.leftover()
    }

    /// What a broken ring still has: the chains found good before, then the error.
    #[cold]
    fn leftover(&self) -> Result<u16, RingError> {
        match (self.bound.wrapping_sub(self.last_avail()), &self.broken) {
            (0, Some(error)) => Err(error.clone()),
            (ready, _) => Ok(ready),
        }
    }
}

#[cold]
#[inline(never)]
fn bad_head(head: u16, position: u16, size: u16) -> Box<RingError> {
    Box::new(if head >= size {
        RingError::Head {
            head,
            position,
            size,
        }
    } else {
        RingError::HeadBusy { head, position }
    })
}

#[cold]
fn no_slot(why: NoSlot, size: u16) -> RingError {
    match why {
        NoSlot::AllOutstanding => RingError::Outstanding { size },
        NoSlot::NoMemory => RingError::NoMemory,
    }
}

#[cfg(test)]
#[path = "split_tests/mod.rs"]
mod tests;

//! The available side of a packed ring: what the owner of the queue pops from.
//!
//! There is no available index: a chain is there when the flags of its first descriptor say so, which the driver stores
//! last. A chain takes as many descriptors as it has, and its element remembers how many, because the used descriptor that
//! returns it stands for all of them.

use super::chain::Rules;
use super::chain::packed::{Taken, walk_packed};
use super::notify;
use super::packed_areas::{PackedAreas, event};
use super::packed_recovered::RecoveredChains;
use super::place::Place;
use super::ring::RingFeatures;
use super::ring_error::RingError;
use super::slot::{NoSlot, Slot, SlotPool, Stamp, state};
use super::split::NotNewest;
use super::used::UsedLog;
use crate::memory::{Cursor, Hint, IotlbCursor, RegionTable, Translate};
use crate::sync::{Arc, Ordering};

/// The owner's private state of a packed ring.
pub(crate) struct PackedRing {
    areas: PackedAreas,
    rules: Rules,
    event_idx: bool,
    hint: Hint,
    /// The next chain.
    next: Place,
    /// What comes before the ring's own chains, and how many descriptors are popped when that is.
    recovered: Option<Arc<RecoveredChains>>,
    recovered_end: u64,
    /// Behind the last descriptor that was seen available, by whomever; not before `next`.
    seen: Place,
    /// Whether the driver was told not to kick.
    quiet: bool,
    /// Where writes to the device's event suppression are marked.
    log: Option<UsedLog>,
    /// What broke the ring.
    broken: Option<RingError>,
}

impl PackedRing {
    /// The available side, to continue where `popped` descriptors have been popped.
    pub(crate) fn new(areas: PackedAreas, features: RingFeatures, popped: u64) -> PackedRing {
        let next = Place::at(popped, areas.size());
        PackedRing {
            areas,
            rules: Rules::new(areas.size(), features.indirect),
            event_idx: features.event_idx,
            hint: Hint::default(),
            next,
            recovered: None,
            recovered_end: 0,
            seen: next,
            quiet: false,
            log: None,
            broken: None,
        }
    }

    /// From here on, writes to the device's event suppression are marked, if writes to the ring are.
    pub(crate) fn set_log(&mut self, log: Option<UsedLog>, table: &RegionTable) {
        let base = table.regions().host_to_gpa(self.areas.device_area());
        self.log = log.zip(base).map(|(log, base)| UsedLog { base, ..log });
    }

    /// The chains of the list come before those of the ring.
    pub(crate) fn set_recovered(&mut self, list: Option<Arc<RecoveredChains>>) {
        self.recovered_end = list.as_ref().map_or(0, |list| list.end());
        self.recovered = list;
        if self.seen.count < self.recovered_end {
            self.seen = Place::at(self.recovered_end, self.areas.size());
        }
    }

    /// The next chain is one of those, or in the ring.
    #[inline(always)]
    fn has_next(&self) -> bool {
        self.next.count < self.recovered_end || self.areas.has_available(self.next)
    }

    /// How many descriptors were popped.
    pub(crate) fn popped(&self) -> u64 {
        self.next.count
    }

    /// Whether there is a chain that no load has seen yet: one relaxed load.
    #[inline]
    pub(crate) fn has_new(&self) -> bool {
        // Whatever the guest writes, there are no more than the ring has room for.
        self.seen.count - self.next.count < self.areas.size().into()
            && self.areas.has_available(self.seen)
    }

    /// Looks at all that is available now, each descriptor once. The driver stores the flags of a chain's first descriptor
    /// last, so this ends between two chains.
    fn look(&mut self) {
        while self.has_new() {
            self.seen = self.seen.step(1, self.areas.size());
        }
    }

    /// Pops up to `out.len()` chains.
    ///
    /// # Errors
    /// As [`SplitRing::pop`](super::split::SplitRing::pop).
    #[inline(never)]
    pub(crate) fn pop(
        &mut self,
        table: &RegionTable,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> Result<usize, RingError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if out.is_empty() || !self.has_next() {
            return Ok(0);
        }
        match table.iotlb() {
            None => {
                let cursor = Cursor::new(table.regions(), self.hint);
                self.pop_with(cursor, pool, stamp, out)
            }
            Some(iotlb) => {
                let cursor = IotlbCursor::new(iotlb, table.regions(), self.hint);
                self.pop_with(cursor, pool, stamp, out)
            }
        }
    }

    #[inline(always)]
    fn pop_with<T: Translate>(
        &mut self,
        mut translate: T,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> Result<usize, RingError> {
        let count = match pool.gather(out.len(), stamp) {
            Ok(count) => count,
            Err(NoSlot::AllOutstanding) => {
                let size = self.areas.size();
                return self.fail(RingError::Outstanding { size }, 0);
            }
            Err(NoSlot::NoMemory) => return self.fail(RingError::NoMemory, 0),
        };
        let free = pool.gathered();
        let mut done = 0;
        let mut failed = None;
        while done < count {
            // SAFETY: the pool has gathered `count` free slots, and a free slot has no block.
            let popped = unsafe {
                let slot = *free.sub(done + 1);
                let popped = self.pop_one(&mut translate, pool, slot);
                if matches!(popped, Ok(true)) {
                    stamp.apply(slot);
                    out[done] = slot;
                }
                popped
            };
            match popped {
                Ok(true) => done += 1,
                Ok(false) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.hint = translate.hint();
        if self.seen.count < self.next.count {
            self.seen = self.next;
        }
        pool.take(done);
        match failed {
            None => Ok(done),
            Some(error) => {
                pool.clean_next();
                self.fail(*error, done)
            }
        }
    }

    /// Fills a slot with the next chain. False if there is none.
    ///
    /// # Safety
    /// The slot is one of the pool, free, and has no block.
    #[inline(always)]
    unsafe fn pop_one<T: Translate>(
        &mut self,
        translate: &mut T,
        pool: &mut SlotPool,
        slot: *mut Slot,
    ) -> Result<bool, Box<RingError>> {
        let (areas, place) = (self.areas, self.next);
        if place.count < self.recovered_end {
            // SAFETY: the caller's promise.
            return unsafe { self.pop_recovered(translate, pool, slot) };
        }
        // SAFETY: the caller's promise; the place is one of this ring.
        let taken = unsafe {
            walk_packed(
                areas,
                &mut self.rules,
                translate,
                &mut pool.arena,
                slot,
                place,
            )?
        };
        let Some(taken) = taken else {
            return Ok(false);
        };
        // SAFETY: the caller's promise.
        unsafe { self.took(pool, slot, taken) }
    }

    /// The slot holds the next chain now.
    ///
    /// # Safety
    /// As for [`pop_one`](Self::pop_one).
    #[inline(always)]
    unsafe fn took(
        &mut self,
        pool: &SlotPool,
        slot: *mut Slot,
        taken: Taken,
    ) -> Result<bool, Box<RingError>> {
        let (areas, place, Taken { id, descs }) = (self.areas, self.next, taken);
        // SAFETY: an id below the ring's size has a mark; the slot is the pool's.
        unsafe {
            if id >= areas.size() || (*pool.busy().add(id.into())).load(Ordering::Relaxed) != 0 {
                return Err(bad_id(place.index, id, areas.size()));
            }
            (*pool.busy().add(id.into())).store(1, Ordering::Relaxed);
            (*slot).set_popped(id, tagged(place, descs));
        }
        self.next = place.step(descs, areas.size());
        Ok(true)
    }

    /// As [`pop_one`](Self::pop_one), for a chain that a predecessor had popped.
    ///
    /// # Safety
    /// As for [`pop_one`](Self::pop_one).
    #[cold]
    #[inline(never)]
    unsafe fn pop_recovered<T: Translate>(
        &mut self,
        translate: &mut T,
        pool: &mut SlotPool,
        slot: *mut Slot,
    ) -> Result<bool, Box<RingError>> {
        let Some(list) = self.recovered.clone() else {
            return Ok(false);
        };
        // SAFETY: the list lives until the end of this.
        let Some((ring, count)) = (unsafe { list.ring(self.next.count, self.areas) }) else {
            return Ok(false);
        };
        // SAFETY: the caller's promise; the place is one of that ring.
        let taken = unsafe {
            walk_packed(
                ring,
                &mut self.rules,
                translate,
                &mut pool.arena,
                slot,
                RecoveredChains::START,
            )?
        };
        match taken {
            // SAFETY: the caller's promise.
            Some(taken) if taken.descs == count => unsafe { self.took(pool, slot, taken) },
            // Flags that make another chain of it.
            _ => Err(Box::new(RingError::InflightArea {
                field: "num",
                value: count,
            })),
        }
    }

    /// Says whether there is a chain.
    ///
    /// # Errors
    /// The ring is broken.
    pub(crate) fn fetch(&mut self) -> Result<u16, RingError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.look();
        Ok(self.has_next().into())
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
        let size = self.areas.size();
        let mut first = self.next.count;
        for &slot in slots.iter().rev() {
            // SAFETY: the caller's promise.
            let (seq, descs, state) = unsafe { ((*slot).seq(), (*slot).descs(), (*slot).state()) };
            first = first.checked_sub(descs.into()).ok_or(NotNewest)?;
            if seq != tagged(Place::at(first, size), descs) || state != state::LIVE {
                return Err(NotNewest);
            }
        }
        for &slot in slots.iter().rev() {
            // SAFETY: the caller's promise; each has descriptors of its own, so each occurs once.
            unsafe { pool.release(slot) };
        }
        self.next = Place::at(first, size);
        Ok(())
    }

    /// Asks the driver not to kick.
    #[inline]
    pub(crate) fn disable_notifications(&mut self) {
        if !self.quiet {
            self.quiet = true;
            // Relaxed: a kick too many does no harm.
            self.areas
                .device_event()
                .store(event::DISABLE.to_le(), Ordering::Relaxed);
            self.mark();
        }
    }

    /// Asks the driver to kick for the next chain. True: there are chains already that no load has seen.
    #[inline]
    pub(crate) fn rearm(&mut self) -> bool {
        let event = if self.event_idx {
            event::at(self.seen)
        } else {
            event::ENABLE
        };
        self.quiet = false;
        let own = self.areas.device_event();
        let new = notify::in_order(
            // Release: as in `notify::store_then_load`.
            || own.store(event.to_le(), Ordering::Release),
            || self.has_new(),
        );
        self.mark();
        if new {
            self.look();
        }
        new
    }

    /// After the device's event suppression was written.
    fn mark(&self) {
        if let Some(log) = &self.log {
            log.mark(0, 4);
        }
    }

    /// A chain failed after `done` good ones.
    #[cold]
    #[inline(never)]
    fn fail(&mut self, error: RingError, done: usize) -> Result<usize, RingError> {
        if !error.is_unmapped() {
            self.broken = Some(error.clone());
        }
        if done > 0 { Ok(done) } else { Err(error) }
    }
}

/// What a slot remembers of a chain: where it was, and how many descriptors it had.
#[inline(always)]
fn tagged(place: Place, descs: u16) -> u64 {
    (place.count << 16 | u64::from(descs)) & Slot::SEQ_MASK
}

#[cold]
#[inline(never)]
fn bad_id(head: u16, id: u16, size: u16) -> Box<RingError> {
    Box::new(if id >= size {
        RingError::Id { head, id, size }
    } else {
        RingError::IdBusy { head, id }
    })
}

#[cfg(test)]
#[path = "packed_tests/mod.rs"]
mod tests;

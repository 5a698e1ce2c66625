//! The available side of a packed ring: what the owner of the queue pops from.
//!
//! There is no available index: a chain is there when the flags of its first descriptor say so, which the driver stores
//! last. A chain takes as many descriptors as it has, and its element remembers how many, because the used descriptor that
//! returns it stands for all of them.

use super::chain::Rules;
use super::chain::packed::{Taken, walk_packed};
use super::notify;
use super::packed_areas::{PackedAreas, event};
use super::place::Place;
use super::ring::RingFeatures;
use super::ring_error::RingError;
use super::slot::{NoSlot, Slot, SlotPool, Stamp, state};
use super::split::NotNewest;
use super::used::UsedLog;
use crate::memory::{Cursor, Hint, IotlbCursor, RegionTable, Translate};
use crate::sync::Ordering;

/// The owner's private state of a packed ring.
pub(crate) struct PackedRing {
    areas: PackedAreas,
    rules: Rules,
    event_idx: bool,
    hint: Hint,
    /// The next chain.
    next: Place,
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
        if out.is_empty() || !self.areas.has_available(self.next) {
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
        let Some(Taken { id, descs }) = taken else {
            return Ok(false);
        };
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

    /// Says whether there is a chain.
    ///
    /// # Errors
    /// The ring is broken.
    pub(crate) fn fetch(&mut self) -> Result<u16, RingError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.look();
        Ok(self.areas.has_available(self.next).into())
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

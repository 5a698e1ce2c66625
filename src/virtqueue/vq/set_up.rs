//! The internal thread's side: what it prepares before an offer, and what it does with a queue that nobody holds.

use crate::context::owner::State;
use crate::device::StopReason;
use crate::error::{Error, Result};
use crate::memory::RegionTable;
use crate::sync::{Arc, MutexGuard, Ordering};
use crate::virtqueue::areas::{PACKED_AREAS, RingLayout, SPLIT_AREAS, SplitAreas};
use crate::virtqueue::packed_areas::PackedAreas;
use crate::virtqueue::publication::Publication;
use crate::virtqueue::ring::Areas;
use crate::virtqueue::ring_error::RingError;

use super::{Base, Queue, Setup};

impl Queue {
    /// A fresh ring that begins at `base`, or with `None` a new kick descriptor for the same one. The queue is
    /// INTERNAL.
    pub(crate) fn prepare(&self, mut setup: Setup, base: Option<Base>) {
        let mut place = self.setup.lock();
        setup.incarnation = place.as_ref().map_or(0, |before| before.incarnation);
        if let Some(base) = base {
            setup.incarnation = self.incarnations.fetch_add(1, Ordering::Relaxed) + 1;
            self.broken.store(false, Ordering::Release);
            *self.failure.lock() = None;
            self.popped.store(base.avail, Ordering::Release);
            *self.recovered.lock() = None;
            self.publication.lock().revive(base.used);
            self.condemned.store(false, Ordering::Relaxed);
            self.gate.reopen();
        }
        *place = Some(setup);
    }

    /// Nothing is published from here on. Takes no lock: a publication that is stuck in a page fault keeps it, and is
    /// the last one.
    pub(crate) fn condemn(&self) {
        // Release pairs with the Acquire in `is_condemned`.
        self.condemned.store(true, Ordering::Release);
    }

    /// Under the publication lock, or just before it is taken.
    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Acquire)
    }

    /// The ring is no more: nothing in flight, or the connection is gone. Completions that are still to come
    /// do not touch guest memory. Nobody can be stuck in a page fault any more.
    pub(crate) fn retire(&self) {
        // Two statements: what is unmapped here is unmapped outside of the lock.
        let table = self.publication.lock().retire();
        self.pinned.store(0, Ordering::Relaxed);
        drop(table);
    }

    /// The ring is no more, and what was wrong with it neither.
    pub(crate) fn forget_setup(&self) {
        *self.setup.lock() = None;
        self.broken.store(false, Ordering::Release);
        *self.failure.lock() = None;
    }

    /// The used ring lies in an older table than that of `generation`.
    pub(crate) fn is_behind(&self, generation: u64) -> bool {
        // Relaxed: whoever asks has waited for the bracket in which the owner stored it.
        let pinned = self.pinned.load(Ordering::Relaxed);
        pinned != 0 && pinned < generation
    }

    /// The queue is INTERNAL: its used ring moves to the current table, or dies if it is not in there.
    pub(crate) fn rebase(&self, table: &Arc<RegionTable>) {
        if let Some(setup) = self.setup.lock().clone() {
            let areas = self.resolve_or_fail(&setup, table);
            self.move_to(self.publication.lock(), &setup, areas, table);
        }
    }

    /// The same while page faults may take long. False if a completion holds the lock, perhaps through one; the old table
    /// stays pinned until then.
    #[must_use]
    pub(crate) fn try_rebase(&self, table: &Arc<RegionTable>) -> bool {
        let Some(setup) = self.setup.lock().clone() else {
            return true;
        };
        let areas = self.resolve_or_fail(&setup, table);
        match self.publication.try_lock() {
            Some(publication) => {
                self.move_to(publication, &setup, areas, table);
                true
            }
            None => false,
        }
    }

    fn resolve_or_fail(&self, setup: &Setup, table: &RegionTable) -> Option<Areas> {
        match resolve(setup, table, self.index) {
            Ok(areas) => Some(areas),
            Err(error) => {
                self.condemn();
                self.fail(error);
                None
            }
        }
    }

    fn move_to(
        &self,
        mut publication: MutexGuard<'_, Publication>,
        setup: &Setup,
        areas: Option<Areas>,
        table: &Arc<RegionTable>,
    ) {
        self.pinned.store(table.generation(), Ordering::Relaxed);
        match areas {
            Some(areas) if !self.is_condemned() => {
                publication.rebase(areas, setup.features, table.clone(), self.used_log_base());
            }
            _ => {
                let table = publication.retire();
                // Unmapped outside of the lock.
                drop(publication);
                drop(table);
            }
        }
    }

    /// Where the driver's next buffer is; exact while the queue is INTERNAL. What a predecessor had in flight lies before
    /// that, popped again by now or not.
    fn next_avail(&self) -> u64 {
        let end = self.recovered.lock().as_ref().map_or(0, |list| list.end());
        self.popped().max(end)
    }

    /// Where a retired ring has stopped.
    pub(crate) fn base(&self) -> Base {
        Base {
            avail: self.next_avail(),
            used: self.publication.lock().base(),
        }
    }

    /// How many chains were popped; exact while the queue is INTERNAL.
    pub(super) fn popped(&self) -> u64 {
        self.popped.load(Ordering::Acquire)
    }

    /// The front-end is stopping the ring.
    pub(super) fn is_stopping_for_base(&self) -> bool {
        self.stop_reason.load(Ordering::Acquire) == StopReason::VringBase as u32
    }

    pub(crate) fn set_stop_reason(&self, reason: StopReason) {
        self.stop_reason.store(reason as u32, Ordering::Release);
    }

    /// A recalled queue is in nobody's hands and has nothing in flight. The gate is closed only when the owner
    /// has let go: one that is just arriving must find it open.
    pub(crate) fn is_drained(&self) -> bool {
        self.owner.load().state == State::Internal && self.gate.close()
    }

    /// The drain is given up: from here on this queue lives on what is in flight.
    pub(crate) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Release);
    }
}

pub(super) fn ring_error(index: u32, error: &RingError) -> Error {
    Error::new(error.errno(), format!("queue {index}: {error}"))
}

/// Host pointers of the three areas, each in full length inside one region.
pub(crate) fn resolve(setup: &Setup, table: &RegionTable, index: u32) -> Result<Areas> {
    let (layout, names) = if setup.packed {
        (RingLayout::packed(setup.size), PACKED_AREAS)
    } else {
        let layout = RingLayout::split(setup.size, setup.features.event_idx);
        (layout, SPLIT_AREAS)
    };
    let area = |name: &str, address: u64, len: usize| {
        table.translate_user(address, len as u64).ok_or_else(|| {
            Error::new(
                libc::EFAULT,
                format!("queue {index}: {name} at {address:#x}, {len} bytes: not in one region"),
            )
        })
    };
    let desc = area(names[0], setup.desc, layout.desc)?;
    let avail = area(names[1], setup.avail, layout.avail)?;
    let used = area(names[2], setup.used, layout.used)?;
    // SAFETY: each area is translated in its full length, and who keeps the result keeps `table`.
    let areas = unsafe {
        if setup.packed {
            PackedAreas::new(desc, avail, used, setup.size).map(Areas::Packed)
        } else {
            SplitAreas::new(desc, avail, used, setup.size).map(Areas::Split)
        }
    };
    areas.map_err(|e| ring_error(index, &e))
}

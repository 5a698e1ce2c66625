//! The used side of a queue: everything that a completion touches, under one lock per publication.

use crate::memory::{DirtyLog, RegionTable};
use crate::sync::Arc;

use super::inflight_area::Tracker;
use super::inflight_area::packed::StoredDesc;
use super::ring::{Areas, RingFeatures, Used};
use super::slot::{Slot, SlotReturns};
use super::used::{UsedElem, UsedLog};

/// Guarded by the queue's publication lock.
#[derive(Default)]
pub(super) struct Publication {
    /// Whoever still arrives or moves to another table does not bring the ring back.
    dead: bool,
    used: Option<Used>,
    /// Where the used side of a packed ring starts, or has stopped.
    base: u64,
    /// Pins the mapping that `used` points into.
    table: Option<Arc<RegionTable>>,
    /// Where what completions wrote is marked. As new as the server's, also while the ring lies in an older table.
    log: Option<Arc<DirtyLog>>,
    /// Where what is written to the used ring is marked.
    used_log: Option<UsedLog>,
    /// Keeps the in-flight area true, if there is one.
    tracker: Option<Tracker>,
    /// That of a ring that is dead, until it is known why.
    last_tracker: Option<Tracker>,
    /// Where other threads put slots back.
    returns: Option<Arc<SlotReturns>>,
}

impl Publication {
    /// The owner, as it takes a ring: `areas` were resolved with `table`.
    ///
    /// A ring that is running keeps its position.
    pub(super) fn place(
        &mut self,
        areas: Areas,
        features: RingFeatures,
        table: Arc<RegionTable>,
        used_log_base: Option<u64>,
        returns: Arc<SlotReturns>,
    ) {
        self.returns = Some(returns);
        if self.dead {
            return;
        }
        self.set_log(table.log(), used_log_base);
        self.used = Some(match &self.used {
            Some(used) => Used::new(areas, features, used.position()),
            None => Used::start(areas, features, self.base),
        });
        self.table = Some(table);
    }

    /// The internal thread, for a queue without an owner: the same ring over a newer table.
    pub(super) fn rebase(
        &mut self,
        areas: Areas,
        features: RingFeatures,
        table: Arc<RegionTable>,
        used_log_base: Option<u64>,
    ) {
        if let Some(used) = &self.used {
            self.used = Some(Used::new(areas, features, used.position()));
            self.set_log(table.log(), used_log_base);
            self.table = Some(table);
        }
    }

    /// The ring is dead until [`revive`](Self::revive): completions no longer touch it. The caller drops the
    /// mapping, outside of the lock.
    pub(super) fn retire(&mut self) -> Option<Arc<RegionTable>> {
        self.dead = true;
        if let Some(used) = self.used.take() {
            self.base = used.position();
        }
        // What is in flight stays marked: it is the successor's.
        self.last_tracker = self.tracker.take().or(self.last_tracker.take());
        self.set_log(None, None);
        self.table.take()
    }

    /// A fresh ring takes the dead one's place. The used side of a packed one starts at `base`.
    pub(super) fn revive(&mut self, base: u64) {
        self.dead = false;
        self.base = base;
    }

    /// The ring has died because the front-end has stopped it, which is told where it stands.
    pub(super) fn stopped(&mut self) {
        if let Some(tracker) = self.last_tracker.take() {
            tracker.stopped();
        }
    }

    /// Lets go of a dead ring's in-flight area.
    pub(super) fn forget(&mut self) {
        self.last_tracker = None;
    }

    /// Where the used side of a packed ring starts; nothing of it has been placed yet.
    pub(super) fn set_base(&mut self, base: u64) {
        self.base = base;
    }

    /// These were popped just now, behind all that were popped before.
    ///
    /// # Safety
    /// They are live elements of this queue.
    pub(super) unsafe fn mark_popped(&mut self, slots: &[*mut Slot]) {
        let (Some(used), Some(tracker)) = (&self.used, &mut self.tracker) else {
            return;
        };
        let desc = |index| match used {
            Used::Packed(used) => used.areas().desc(index).into(),
            Used::Split(_) => StoredDesc::default(),
        };
        for &slot in slots {
            // SAFETY: the caller's promise.
            tracker.popped(unsafe { &*slot }, desc);
        }
    }

    /// Where the used side has stopped.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// From here on what is in flight is marked in an area.
    pub(super) fn track(&mut self, tracker: Tracker) {
        if !self.dead {
            self.tracker = Some(tracker);
        }
    }

    pub(super) fn tracker(&mut self) -> Option<&mut Tracker> {
        self.tracker.as_mut()
    }

    /// From here on, writes are marked in `log`, and those to the used ring as if that were at `used_base`.
    pub(super) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>, used_base: Option<u64>) {
        self.log = log.cloned();
        self.used_log = self
            .log
            .clone()
            .zip(used_base)
            .map(|(log, base)| UsedLog { log, base });
    }

    /// Where what a completion wrote must be marked.
    pub(super) fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// Publishes a batch. True if the driver wants a notification; `None` if the ring is dead.
    pub(super) fn publish(&mut self, batch: &[UsedElem]) -> Option<bool> {
        let used = self.used.as_mut()?;
        if let Some(tracker) = &mut self.tracker {
            tracker.before_publication(batch);
        }
        let notify = used.publish(batch);
        if let Some(tracker) = &mut self.tracker {
            tracker.after_publication(batch, used.position() as u16);
        }
        if let (Some(log), Some(table)) = (&self.used_log, &self.table) {
            used.mark_published(log, batch.len(), table.regions());
        }
        Some(notify)
    }

    /// A slot whose element was completed on a thread that does not own the queue.
    ///
    /// # Safety
    /// The slot belongs to this queue's pool and nobody uses it any more.
    pub(super) unsafe fn give_back(&self, slot: *mut Slot) {
        if let Some(returns) = &self.returns {
            // SAFETY: the caller's promise.
            unsafe { returns.release(&[slot]) };
        }
    }
}

//! In-flight tracking: the marks of what is popped, and what a predecessor has left.

use crate::context::owner::State;
use crate::error::{Error, Result};
use crate::memory::RegionTable;
use crate::sync::{Arc, Ordering};
use crate::virtqueue::inflight_area::Tracker;
use crate::virtqueue::ring::Areas;
use crate::virtqueue::slot::Slot;
use crate::virtqueue::split::RecoveredHeads;
use crate::virtqueue::used::UsedRing;

use super::epoch::complete_in;
use super::set_up::{resolve, ring_error};
use super::{Queue, Setup};

impl Queue {
    /// The owner, as it takes a fresh ring: what the in-flight area says is popped again, before anything else.
    ///
    /// What a predecessor had popped and not returned lies between the used index and where it had come in the available
    /// ring, so the position is known, whatever the front-end was able to say.
    pub(super) fn recover(&self, setup: &Setup, table: &RegionTable) -> Result<()> {
        let Some(region) = &setup.inflight else {
            return Ok(());
        };
        let Areas::Split(areas) = resolve(setup, table, self.index)? else {
            return Ok(());
        };
        let used = UsedRing::read_index(areas, setup.features);
        let returned = |n| UsedRing::read_head(areas, setup.features, used, n);
        let recovered = region
            .recover(setup.size, used, returned)
            .map_err(|error| ring_error(self.index, &error))?;
        let count = recovered.heads.len();
        if count > 0 {
            let list = RecoveredHeads::new(used.into(), &recovered.heads, setup.features);
            *self.recovered.lock() = Some(Arc::new(list));
            self.popped.store(used.into(), Ordering::Release);
            self.server.logger.info(format_args!(
                "queue {}: {count} requests were in flight and are done again",
                self.index
            ));
        }
        self.publication
            .lock()
            .track(Tracker::new(region.clone(), &recovered));
        // Whoever returned the last chain may have died before it could say so.
        self.notify();
        Ok(())
    }

    /// The owner: these were popped just now. The lock is what keeps a mark of a head's last request from being cleared
    /// after that of this one was set.
    pub(super) fn mark_popped(&self, slots: &[*mut Slot]) {
        let mut publication = self.publication.lock();
        if let Some(tracker) = publication.tracker() {
            for &slot in slots {
                // SAFETY: popped just now, and not handed out yet.
                tracker.popped(unsafe { (*slot).head() });
            }
        }
    }

    /// The owner: these were put back just now. What a predecessor had popped stays in flight until it is returned.
    pub(super) fn mark_unpopped(&self, slots: &[*mut Slot]) {
        let recovered = self.recovered.lock().as_ref().map_or(0, |list| list.end());
        let mut publication = self.publication.lock();
        if let Some(tracker) = publication.tracker() {
            for &slot in slots {
                // SAFETY: in the pool's list, which is the owner's alone; what it says of its last use is still there.
                let slot = unsafe { &*slot };
                if slot.seq() >= recovered & Slot::SEQ_MASK {
                    tracker.unpopped(slot.head());
                }
            }
        }
    }

    /// Lets go of an element that stays in flight: whoever starts the ring next finds it in the area and does it. Any thread.
    ///
    /// # Errors
    /// `ENOTSUP` unless the front-end takes rings over with requests in flight, `EBUSY` unless it is just stopping this
    /// one, `EINVAL` for an element that is completed already. The element is as it was.
    ///
    /// # Safety
    /// `slot` was popped from this queue, whose memory lives as long as the element is not completed.
    pub(in crate::virtqueue) unsafe fn suspend(&self, slot: *mut Slot) -> Result<()> {
        if !self.server.suspends_inflight() {
            let text = format!(
                "queue {}: GET_VRING_BASE_INFLIGHT is not negotiated",
                self.index
            );
            return Err(Error::new(libc::ENOTSUP, text));
        }
        if self.owner.load().state == State::Owned || !self.is_stopping_for_base() {
            let text = format!("queue {}: the ring is not being stopped", self.index);
            return Err(Error::new(libc::EBUSY, text));
        }
        let mut publication = self.publication.lock();
        if publication.tracker().is_none() {
            let text = format!("queue {}: no in-flight area", self.index);
            return Err(Error::new(libc::ENOTSUP, text));
        }
        // SAFETY: the caller's promise.
        if !unsafe { (*slot).claim() } {
            return Err(Error::invalid(format!(
                "queue {}: the element is completed already",
                self.index
            )));
        }
        // SAFETY: the caller's promise; the slot stays valid until it is given back.
        let epoch = unsafe { (*slot).epoch.cast() };
        self.publications.suspended.add(1);
        // SAFETY: the slot is of this queue's pool and nobody uses it after this.
        unsafe { publication.give_back(slot) };
        drop(publication);
        // SAFETY: the element kept its epoch alive until here; neither it nor `self` is used afterwards.
        unsafe { complete_in(epoch) };
        Ok(())
    }
}

//! In-flight tracking: the marks of what is popped, and what a predecessor has left.

use crate::context::owner::State;
use crate::error::{Error, Result};
use crate::memory::RegionTable;
use crate::sync::{Arc, Ordering};
use crate::virtqueue::areas::SplitAreas;
use crate::virtqueue::inflight_area::packed::{PackedRegion, PackedTracker};
use crate::virtqueue::inflight_area::split::{SplitRegion, SplitTracker};
use crate::virtqueue::inflight_area::{InflightRegion, Tracker};
use crate::virtqueue::packed_areas::PackedAreas;
use crate::virtqueue::packed_recovered::RecoveredChains;
use crate::virtqueue::place::Base;
use crate::virtqueue::ring::{Areas, RecoveredList};
use crate::virtqueue::ring_error::RingError;
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
        let areas = resolve(setup, table, self.index)?;
        let recovered = match (region, areas) {
            (InflightRegion::Split(region), Areas::Split(areas)) => {
                self.recover_split(region, areas, setup)
            }
            (InflightRegion::Packed(region), Areas::Packed(areas)) => {
                self.recover_packed(region, areas, setup)
            }
            // The session made it for this ring.
            _ => return Ok(()),
        };
        let (tracker, count) = recovered.map_err(|error| ring_error(self.index, &error))?;
        if count > 0 {
            self.server.logger.info(format_args!(
                "queue {}: {count} requests were in flight and are done again",
                self.index
            ));
        }
        self.publication.lock().track(tracker);
        // Whoever returned the last chain may have died before it could say so.
        self.notify();
        Ok(())
    }

    fn recover_split(
        &self,
        region: &SplitRegion,
        areas: SplitAreas,
        setup: &Setup,
    ) -> std::result::Result<(Tracker, usize), RingError> {
        let used = UsedRing::read_index(areas, setup.features);
        let returned = |n| UsedRing::read_head(areas, setup.features, used, n);
        let recovered = region.recover(setup.size, used, returned)?;
        let count = recovered.heads.len();
        if count > 0 {
            let list = RecoveredHeads::new(used.into(), &recovered.heads, setup.features);
            *self.recovered.lock() = Some(RecoveredList::Split(Arc::new(list)));
            self.popped.store(used.into(), Ordering::Release);
        }
        let tracker = SplitTracker::new(region.clone(), &recovered);
        Ok((Tracker::Split(tracker), count))
    }

    /// Where a packed ring stands is nowhere in guest memory. A region that somebody has used knows; a front-end that has
    /// seen the predecessor die does not.
    fn recover_packed(
        &self,
        region: &PackedRegion,
        areas: PackedAreas,
        setup: &Setup,
    ) -> std::result::Result<(Tracker, usize), RingError> {
        let base = Base {
            avail: self.popped(),
            used: self.publication.lock().base(),
        };
        let recovered = region.recover(setup.size, base, |index| areas.desc(index).flags())?;
        let (used, count) = (recovered.used.count, recovered.chains.len());
        if recovered.is_used {
            let list = RecoveredChains::new(used, &recovered.chains);
            *self.recovered.lock() = Some(RecoveredList::Packed(Arc::new(list)));
            self.popped.store(used, Ordering::Release);
            self.publication.lock().set_base(used);
        }
        let tracker = PackedTracker::new(region.clone(), recovered);
        Ok((Tracker::Packed(tracker), count))
    }

    /// The owner: these were popped just now. The lock is what keeps a mark of a head's last request from being cleared
    /// after that of this one was set.
    pub(super) fn mark_popped(&self, slots: &[*mut Slot]) {
        // SAFETY: popped just now, and not handed out yet.
        unsafe { self.publication.lock().mark_popped(slots) };
    }

    /// The owner: these were put back just now. What a predecessor had popped stays in flight until it is returned.
    pub(super) fn mark_unpopped(&self, slots: &[*mut Slot]) {
        let recovered = self.recovered.lock().as_ref().map_or(0, |list| list.end());
        let mut publication = self.publication.lock();
        if let Some(tracker) = publication.tracker() {
            for &slot in slots.iter().rev() {
                // SAFETY: in the pool's list, which is the owner's alone; what it says of its last use is still there.
                tracker.unpopped(unsafe { &*slot }, recovered);
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

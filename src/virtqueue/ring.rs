//! The available side of a ring of either byte order.

use super::areas::SplitAreas;
use super::order::{Big, Little};
use super::ring_error::RingError;
use super::slot::{Slot, SlotPool, Stamp};
use super::split::{NotNewest, RecoveredHeads, SplitFeatures, SplitRing};
use super::used::UsedLog;
use crate::memory::RegionTable;
use crate::sync::Arc;

/// See [`SplitRing`] for what each method does.
pub(crate) enum Ring {
    Little(SplitRing<Little>),
    Big(SplitRing<Big>),
}

/// The same for both, each in code of its own.
macro_rules! each {
    ($ring:expr, $inner:ident => $body:expr) => {
        match $ring {
            Ring::Little($inner) => $body,
            Ring::Big($inner) => $body,
        }
    };
}

impl Ring {
    pub(crate) fn new(areas: SplitAreas, features: SplitFeatures, popped: u64) -> Ring {
        if features.big_endian {
            Ring::Big(SplitRing::new(areas, features, popped))
        } else {
            Ring::Little(SplitRing::new(areas, features, popped))
        }
    }

    pub(crate) fn set_log(&mut self, log: Option<UsedLog>) {
        each!(self, ring => ring.set_log(log));
    }

    pub(crate) fn set_recovered(&mut self, list: Option<Arc<RecoveredHeads>>) {
        each!(self, ring => ring.set_recovered(list));
    }

    pub(crate) fn popped(&self) -> u64 {
        each!(self, ring => ring.popped())
    }

    #[inline]
    pub(crate) fn has_new(&self) -> bool {
        each!(self, ring => ring.has_new())
    }

    #[inline(always)]
    pub(crate) fn pop(
        &mut self,
        table: &RegionTable,
        pool: &mut SlotPool,
        stamp: Stamp,
        out: &mut [*mut Slot],
    ) -> Result<usize, RingError> {
        each!(self, ring => ring.pop(table, pool, stamp, out))
    }

    pub(crate) fn fetch(&mut self) -> Result<u16, RingError> {
        each!(self, ring => ring.fetch())
    }

    /// # Safety
    /// As [`SplitRing::unpop`].
    pub(crate) unsafe fn unpop(
        &mut self,
        pool: &mut SlotPool,
        slots: &[*mut Slot],
    ) -> Result<(), NotNewest> {
        // SAFETY: the caller's promise.
        each!(self, ring => unsafe { ring.unpop(pool, slots) })
    }

    pub(crate) fn disable_notifications(&mut self) {
        each!(self, ring => ring.disable_notifications());
    }

    pub(crate) fn rearm(&mut self) -> bool {
        each!(self, ring => ring.rearm())
    }
}

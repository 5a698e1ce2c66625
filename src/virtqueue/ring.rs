//! A ring of either kind and byte order: its areas, its available side, its used side.

use super::areas::SplitAreas;
use super::order::{Big, Little};
use super::packed::PackedRing;
use super::packed_areas::PackedAreas;
use super::packed_recovered::RecoveredChains;
use super::packed_used::PackedUsed;
use super::ring_error::RingError;
use super::slot::{Slot, SlotPool, Stamp};
use super::split::{NotNewest, RecoveredHeads, SplitRing};
use super::used::{UsedElem, UsedLog, UsedRing};
use crate::memory::{RegionTable, Regions};
use crate::sync::Arc;

/// Negotiated features that change how the ring is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    pub(crate) indirect: bool,
    pub(crate) event_idx: bool,
    /// A legacy ring of a big-endian guest; never a packed one.
    pub(crate) big_endian: bool,
}

/// Where the ring is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Areas {
    Split(SplitAreas),
    Packed(PackedAreas),
}

/// What a predecessor had in flight.
#[derive(Clone, Debug)]
pub(crate) enum RecoveredList {
    Split(Arc<RecoveredHeads>),
    Packed(Arc<RecoveredChains>),
}

impl RecoveredList {
    /// How much has been popped when all of it is: see [`Ring::new`].
    pub(crate) fn end(&self) -> u64 {
        match self {
            RecoveredList::Split(heads) => heads.end(),
            RecoveredList::Packed(chains) => chains.end(),
        }
    }
}

/// The available side: see [`SplitRing`] for what each method does.
pub(crate) enum Ring {
    Little(SplitRing<Little>),
    Big(SplitRing<Big>),
    Packed(PackedRing),
}

/// The same for all, each in code of its own.
macro_rules! each {
    ($ring:expr, $inner:ident => $body:expr) => {
        match $ring {
            Ring::Little($inner) => $body,
            Ring::Big($inner) => $body,
            Ring::Packed($inner) => $body,
        }
    };
}

impl Ring {
    /// `popped` counts the chains of a split ring, and the descriptors of a packed one.
    pub(crate) fn new(areas: Areas, features: RingFeatures, popped: u64) -> Ring {
        match areas {
            Areas::Packed(areas) => Ring::Packed(PackedRing::new(areas, features, popped)),
            Areas::Split(areas) if features.big_endian => {
                Ring::Big(SplitRing::new(areas, features, popped))
            }
            Areas::Split(areas) => Ring::Little(SplitRing::new(areas, features, popped)),
        }
    }

    /// `table` is what the ring was resolved with.
    pub(crate) fn set_log(&mut self, log: Option<UsedLog>, table: &RegionTable) {
        match self {
            Ring::Little(ring) => ring.set_log(log),
            Ring::Big(ring) => ring.set_log(log),
            Ring::Packed(ring) => ring.set_log(log, table),
        }
    }

    /// What a predecessor had in flight, if that is of this kind of ring.
    pub(crate) fn set_recovered(&mut self, list: Option<RecoveredList>) {
        let (heads, chains) = match list {
            None => (None, None),
            Some(RecoveredList::Split(heads)) => (Some(heads), None),
            Some(RecoveredList::Packed(chains)) => (None, Some(chains)),
        };
        match self {
            Ring::Little(ring) => ring.set_recovered(heads),
            Ring::Big(ring) => ring.set_recovered(heads),
            Ring::Packed(ring) => ring.set_recovered(chains),
        }
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

/// The used side: see [`UsedRing`] for what each method does.
#[derive(Debug)]
pub(crate) enum Used {
    Split(UsedRing),
    Packed(PackedUsed),
}

impl Used {
    /// The used side, to continue at [`position`](Self::position).
    pub(crate) fn new(areas: Areas, features: RingFeatures, position: u64) -> Used {
        match areas {
            Areas::Split(areas) => Used::Split(UsedRing::new(areas, features, position as u16)),
            Areas::Packed(areas) => {
                Used::Packed(PackedUsed::new(areas, features.event_idx, position))
            }
        }
    }

    /// The used side of a ring that starts: a split ring goes on where the used ring in guest memory says, which is what a
    /// driver that survived another back-end expects; a packed one at `base`, which only the front-end knows.
    pub(crate) fn start(areas: Areas, features: RingFeatures, base: u64) -> Used {
        let position = match areas {
            Areas::Split(areas) => UsedRing::read_index(areas, features).into(),
            Areas::Packed(_) => base,
        };
        Used::new(areas, features, position)
    }

    /// Where the next returned chain goes: the index of a split ring, the descriptors returned of a packed one.
    pub(crate) fn position(&self) -> u64 {
        match self {
            Used::Split(used) => used.next_index().into(),
            Used::Packed(used) => used.returned(),
        }
    }

    #[inline]
    pub(crate) fn publish(&mut self, batch: &[UsedElem]) -> bool {
        match self {
            Used::Split(used) => used.publish(batch),
            Used::Packed(used) => used.publish(batch),
        }
    }

    /// After the newest `count` chains were published to a ring in `regions`.
    pub(crate) fn mark_published(&self, log: &UsedLog, count: usize, regions: &Regions) {
        match self {
            Used::Split(used) => used.mark_published(log, count),
            Used::Packed(used) => used.mark_published(log, regions),
        }
    }
}

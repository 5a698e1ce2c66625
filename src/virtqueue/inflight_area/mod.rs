//! What is in flight, where a successor finds it when this back-end dies (vhost-user specification, "Inflight I/O
//! tracking").
//!
//! Each queue has a region in memory that the front-end keeps. A chain is marked when it is popped, and the mark is cleared
//! when the chain is returned. The driver may use a head or an id again as soon as it sees that it was returned, so both
//! happen under the queue's publication lock: a mark that is cleared late would be that of the next request. The process can
//! die between any two instructions, and nothing else; so it is the program's order of the stores that counts, which Release
//! keeps.
//!
//! * [`split`] the region of a split ring: heads
//! * [`packed`] the region of a packed ring: descriptors, since the ring's own may be overwritten

pub(crate) mod packed;
pub(crate) mod split;

use super::slot::Slot;
use super::used::UsedElem;
use crate::memory::SharedArea;
use crate::sync::Arc;
use packed::{PackedRegion, PackedTracker, StoredDesc};
use split::{SplitRegion, SplitTracker};

/// The only version there is; 0 is a region that nobody has used yet.
const VERSION: u16 = 1;

/// Regions begin at cache lines.
const ALIGN: usize = 64;

/// A queue's part of the area.
#[derive(Clone, Debug)]
struct Region {
    area: Arc<SharedArea>,
    offset: usize,
    entries: u16,
}

impl Region {
    /// The region at `index` where all have `size` bytes; `None` if the area does not reach as far.
    fn new(area: &Arc<SharedArea>, index: usize, size: usize, entries: u16) -> Option<Region> {
        let offset = index.checked_mul(size)?;
        let end = offset.checked_add(size)?;
        (end <= area.size()).then(|| Region {
            area: area.clone(),
            offset,
            entries,
        })
    }

    /// # Safety
    /// `at` is inside of the region and aligned for `T`, which is an atomic.
    unsafe fn field<T>(&self, at: usize) -> &T {
        // SAFETY: the caller's promise; the area is aligned to a page and lives as long as `self`.
        unsafe { &*self.area.base().add(self.offset + at).cast::<T>() }
    }
}

/// A queue's region, for either kind of ring.
#[derive(Clone, Debug)]
pub(crate) enum InflightRegion {
    Split(SplitRegion),
    Packed(PackedRegion),
}

impl InflightRegion {
    /// Bytes of a region for a ring of this size.
    pub(crate) fn size(packed: bool, entries: u16) -> usize {
        if packed {
            PackedRegion::size(entries)
        } else {
            SplitRegion::size(entries)
        }
    }

    /// The region at `index`; `None` if the area does not reach as far.
    pub(crate) fn new(
        packed: bool,
        area: &Arc<SharedArea>,
        index: usize,
        entries: u16,
    ) -> Option<InflightRegion> {
        if packed {
            PackedRegion::new(area, index, entries).map(InflightRegion::Packed)
        } else {
            SplitRegion::new(area, index, entries).map(InflightRegion::Split)
        }
    }
}

/// Keeps a region true while the ring runs. Guarded by the queue's publication lock.
pub(super) enum Tracker {
    Split(SplitTracker),
    Packed(PackedTracker),
}

impl Tracker {
    /// A chain was popped, behind all that were popped before. `desc(index)` reads the packed ring's descriptor there.
    pub(super) fn popped(&mut self, slot: &Slot, desc: impl Fn(u16) -> StoredDesc) {
        match self {
            Tracker::Split(tracker) => tracker.popped(slot.head()),
            Tracker::Packed(tracker) => tracker.popped(slot.head(), slot.descs(), desc),
        }
    }

    /// The newest chain was put back. What a predecessor had popped stays in flight until it is returned: those are the
    /// chains of a split ring before `recovered`; of a packed one they are known.
    pub(super) fn unpopped(&mut self, slot: &Slot, recovered: u64) {
        match self {
            Tracker::Packed(tracker) => tracker.unpopped(slot.head()),
            Tracker::Split(_) if slot.seq() < recovered & Slot::SEQ_MASK => {}
            Tracker::Split(tracker) => tracker.unpopped(slot.head()),
        }
    }

    /// Before the ring says that these chains are returned.
    pub(super) fn before_publication(&mut self, batch: &[UsedElem]) {
        match self {
            Tracker::Split(tracker) => tracker.before_publication(batch),
            Tracker::Packed(tracker) => tracker.before_publication(ids(batch)),
        }
    }

    /// After it has said so; `used` is a split ring's used index now.
    pub(super) fn after_publication(&mut self, batch: &[UsedElem], used: u16) {
        match self {
            Tracker::Split(tracker) => tracker.after_publication(batch, used),
            Tracker::Packed(tracker) => tracker.after_publication(ids(batch)),
        }
    }

    /// The ring was stopped, and the front-end is told where it stands.
    pub(super) fn stopped(self) {
        match self {
            // A split ring's region is compared with the used ring when it is used again.
            Tracker::Split(_) => {}
            Tracker::Packed(tracker) => tracker.stopped(),
        }
    }
}

fn ids(batch: &[UsedElem]) -> impl Iterator<Item = u16> {
    batch.iter().map(|elem| elem.head())
}

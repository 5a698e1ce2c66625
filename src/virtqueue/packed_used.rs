//! The used side of a packed ring: used descriptors, and the decision to interrupt.
//!
//! It lives under the queue's publication lock. Nothing that is written here is ever read back.

use super::notify;
use super::packed_areas::{PackedAreas, event};
use super::place::Place;
use super::used::{UsedElem, UsedLog};
use crate::memory::Regions;
use crate::sync::Ordering;

/// Where the next used descriptor goes, and what the driver has been told.
#[derive(Debug)]
pub(crate) struct PackedUsed {
    areas: PackedAreas,
    event_idx: bool,
    next: Place,
    /// Where the newest batch began.
    last: Place,
    /// Whether there was an interrupt since the start. Before that, what the driver was told last is unknown, and an event
    /// that seems to be passed already counts.
    told: bool,
}

impl PackedUsed {
    /// The used side, to continue where `used` descriptors have been returned.
    pub(crate) fn new(areas: PackedAreas, event_idx: bool, used: u64) -> PackedUsed {
        let next = Place::at(used, areas.size());
        PackedUsed {
            areas,
            event_idx,
            next,
            last: next,
            told: false,
        }
    }

    /// Where the ring is.
    pub(crate) fn areas(&self) -> PackedAreas {
        self.areas
    }

    /// How many descriptors have been returned.
    pub(crate) fn returned(&self) -> u64 {
        self.next.count
    }

    /// Returns the chains to the driver. Says whether to interrupt.
    ///
    /// The driver looks at the first one's descriptor, so that is written last, and the whole batch is there at once.
    #[inline(never)]
    pub(crate) fn publish(&mut self, batch: &[UsedElem]) -> bool {
        let Some((first, rest)) = batch.split_first() else {
            return false;
        };
        let (areas, start) = (self.areas, self.next);
        let behind = |place: Place, elem: &UsedElem| {
            // A guest that breaks the rules can confuse the counts of its own chains; the ring's bounds hold all the same.
            let descs = elem.descs().clamp(1, areas.size());
            place.step(descs, areas.size())
        };
        let mut next = behind(start, first);
        for elem in rest {
            areas.write_used(next, elem.head(), elem.len());
            next = behind(next, elem);
        }
        (self.last, self.next) = (start, next);
        let event = notify::in_order(
            || areas.write_used(start, first.head(), first.len()),
            // Relaxed: decides about a notification only.
            || u32::from_le(areas.driver_event().load(Ordering::Relaxed)),
        );
        self.is_awaited(event)
    }

    /// Whether the driver waits for a descriptor of the newest batch.
    #[inline(always)]
    fn is_awaited(&mut self, event: u32) -> bool {
        let awaited = match event & event::FLAGS {
            event::DISABLE => false,
            event::DESC if self.event_idx => !self.told || self.passes(event as u16),
            // What has no meaning costs an interrupt too many.
            _ => true,
        };
        self.told |= awaited;
        awaited
    }

    /// Whether the newest batch went past the place that the driver waits for. Index and wrap counter count two rounds of
    /// the ring.
    fn passes(&self, event: u16) -> bool {
        let size = self.areas.size();
        let moved = self.next.count - self.last.count;
        let Some(event) = Place::from_word(event, size) else {
            return true;
        };
        let rounds = 2 * u64::from(size);
        let ahead = (event.count + rounds - self.last.count % rounds) % rounds;
        ahead < moved
    }

    /// After the newest batch was published.
    ///
    /// Marked where the front-end says that the ring is in the log, and where it is in the guest's memory: QEMU gives the
    /// address of the device's event suppression for the former.
    pub(crate) fn mark_published(&self, log: &UsedLog, regions: &Regions) {
        let size = usize::from(self.areas.size());
        let moved = self.next.count - self.last.count;
        let count = size.min(usize::try_from(moved).unwrap_or(size));
        let first = usize::from(self.last.index);
        let before_end = count.min(size - first);
        let real = regions
            .host_to_gpa(self.areas.desc_ring())
            .map(|base| UsedLog {
                base,
                ..log.clone()
            });
        for log in [Some(log), real.as_ref()].into_iter().flatten() {
            log.mark(16 * first, 16 * before_end);
            log.mark(0, 16 * (count - before_end));
        }
    }
}

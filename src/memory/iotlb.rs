//! Translations of I/O virtual addresses, as the front-end's IOMMU has told them (vhost-user specification, "IOMMU
//! support").
//!
//! Immutable, like the table that it is a part of: an update or an invalidation makes the next one. What the front-end has
//! not told is a miss, for which it is asked; so forgetting a translation costs a question and nothing else.

use super::Regions;
use super::translate::{Access, Hint, Translate};

/// More translations than this are not kept: a front-end that sends them for ever must not make this process grow.
const MAX_ENTRIES: usize = 8192;

/// Bits of a translation's permissions.
const READ: u8 = 1;
const WRITE: u8 = 2;

impl Access {
    /// As in the permissions of an IOTLB message.
    pub(crate) fn permission(self) -> u8 {
        match self {
            Access::Read => READ,
            Access::Write => WRITE,
            Access::ReadWrite => READ | WRITE,
        }
    }
}

/// One translation. Ranges are up to and with their last byte, for the last one can end the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    first: u64,
    last: u64,
    /// The front-end's address for `first`.
    user: u64,
    permissions: u8,
}

impl Entry {
    fn user_at(&self, iova: u64) -> u64 {
        self.user.wrapping_add(iova - self.first)
    }

    /// What is left of it on both sides of a range that it overlaps.
    fn around(&self, first: u64, last: u64) -> impl Iterator<Item = Entry> {
        let before = (self.first < first).then(|| Entry {
            last: first - 1,
            ..*self
        });
        let after = (self.last > last).then(|| Entry {
            first: last + 1,
            user: self.user_at(last + 1),
            ..*self
        });
        before.into_iter().chain(after)
    }
}

/// Why an access cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is no translation for this address.
    Miss(u64),
    /// The translation of this address does not permit it.
    Denied(u64),
    /// The front-end's address for this one is in no region.
    Unmapped(u64),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Iotlb {
    /// Disjoint, in ascending order.
    entries: Vec<Entry>,
    /// Grows whenever something that was translated no longer is, or is translated to something else.
    removals: u64,
}

impl Iotlb {
    /// The index of the entry with this address, or where it would be.
    fn find(&self, iova: u64) -> Result<usize, usize> {
        let at = self.entries.partition_point(|entry| entry.last < iova);
        match self.entries.get(at) {
            Some(entry) if entry.first <= iova => Ok(at),
            _ => Err(at),
        }
    }

    /// Without the range `first` to `last`. Entries that reach beyond it are cut.
    pub(crate) fn without(&self, first: u64, last: u64) -> Iotlb {
        let from = self.entries.partition_point(|entry| entry.last < first);
        let to = self.entries.partition_point(|entry| entry.first <= last);
        let mut next = self.clone();
        if from < to {
            let left = self.entries[from..to]
                .iter()
                .flat_map(|entry| entry.around(first, last));
            next.entries.splice(from..to, left);
            next.removals += 1;
        }
        next
    }

    /// With a translation more, in place of those that it overlaps.
    pub(crate) fn with(&self, first: u64, last: u64, user: u64, permissions: u8) -> Iotlb {
        let mut next = self.without(first, last);
        if next.entries.len() >= MAX_ENTRIES {
            // Any will do, as long as it is not the same one again and again.
            let victim = (self.removals as usize).wrapping_mul(7919) % next.entries.len();
            next.entries.remove(victim);
            next.removals += 1;
        }
        let at = next.entries.partition_point(|entry| entry.last < first);
        let entry = Entry {
            first,
            last,
            user,
            permissions,
        };
        next.entries.insert(at, entry);
        next
    }

    /// Everything that `older` translates is translated in the same way here.
    pub(crate) fn keeps_all_of(&self, older: &Iotlb) -> bool {
        self.removals == older.removals
    }

    /// The front-end's address for `len` bytes that are contiguous there.
    ///
    /// # Errors
    /// What the first byte that cannot be accessed lacks. Bytes that are somewhere else are unmapped here.
    pub(crate) fn to_user(&self, iova: u64, len: u64, access: Access) -> Result<u64, Obstacle> {
        let Some(last) = iova.checked_add(len.saturating_sub(1)) else {
            return Err(Obstacle::Unmapped(iova));
        };
        let mut at = iova;
        let mut user = None;
        loop {
            let entry = self.entry(at, access)?;
            let here = entry.user_at(at);
            let expected = *user.get_or_insert(here);
            if here.wrapping_sub(expected) != at - iova {
                return Err(Obstacle::Unmapped(at));
            }
            if entry.last >= last {
                return Ok(expected);
            }
            at = entry.last + 1;
        }
    }

    fn entry(&self, iova: u64, access: Access) -> Result<&Entry, Obstacle> {
        let at = self.find(iova).map_err(|_| Obstacle::Miss(iova))?;
        let entry = &self.entries[at];
        if !entry.permissions & access.permission() != 0 {
            return Err(Obstacle::Denied(iova));
        }
        Ok(entry)
    }

    /// Why not all of `len` bytes can be accessed; `None` if they can.
    pub(crate) fn obstacle(
        &self,
        regions: &Regions,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Option<Obstacle> {
        let last = iova.saturating_add(len.saturating_sub(1));
        let mut at = iova;
        loop {
            let entry = match self.entry(at, access) {
                Ok(entry) => entry,
                Err(obstacle) => return Some(obstacle),
            };
            let end = entry.last.min(last);
            let Some((_, run)) = regions.user_run(entry.user_at(at)) else {
                return Some(Obstacle::Unmapped(at));
            };
            let reached = at.saturating_add(run - 1).min(end);
            if reached == last {
                return None;
            }
            at = reached + 1;
        }
    }
}

/// Translation through the IOTLB during one pop, beginning with the hinted entry.
#[derive(Clone, Copy)]
pub(crate) struct IotlbCursor<'t> {
    iotlb: &'t Iotlb,
    regions: &'t Regions,
    hint: Hint,
}

impl<'t> IotlbCursor<'t> {
    pub(crate) fn new(iotlb: &'t Iotlb, regions: &'t Regions, hint: Hint) -> Self {
        IotlbCursor {
            iotlb,
            regions,
            hint,
        }
    }
}

impl Translate for IotlbCursor<'_> {
    fn run(&mut self, addr: u64, access: Access) -> Option<(*mut u8, u64)> {
        let entries = &self.iotlb.entries;
        let at = match entries.get(self.hint.index()) {
            Some(entry) if entry.first <= addr && addr <= entry.last => self.hint.index(),
            _ => self.iotlb.find(addr).ok()?,
        };
        self.hint = Hint::new(at);
        let entry = &entries[at];
        if entry.permissions & access.permission() == 0 {
            return None;
        }
        let (host, run) = self.regions.user_run(entry.user_at(addr))?;
        // A translation of the whole address space has one byte too many to be counted.
        Some((host, run.min((entry.last - addr).saturating_add(1))))
    }

    fn hint(&self) -> Hint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: u8 = READ | WRITE;

    fn ranges(iotlb: &Iotlb) -> Vec<(u64, u64, u64)> {
        let range = |entry: &Entry| (entry.first, entry.last, entry.user);
        iotlb.entries.iter().map(range).collect()
    }

    #[test]
    fn updates_stay_in_order_and_replace_what_they_overlap() {
        let mut iotlb = Iotlb::default();
        for page in [5, 1, 9, 3] {
            iotlb = iotlb.with(page << 12, (page << 12) + 0xfff, page << 20, RW);
        }
        assert_eq!(iotlb.removals, 0);
        let starts: Vec<u64> = ranges(&iotlb).iter().map(|range| range.0 >> 12).collect();
        assert_eq!(starts, [1, 3, 5, 9]);
        let next = iotlb.with(0x1800, 0x57ff, 0x7000_0000, READ);
        assert_eq!(
            ranges(&next),
            [
                (0x1000, 0x17ff, 1 << 20),
                (0x1800, 0x57ff, 0x7000_0000),
                (0x5800, 0x5fff, (5 << 20) + 0x800),
                (0x9000, 0x9fff, 9 << 20),
            ]
        );
        assert!(!next.keeps_all_of(&iotlb));
        assert!(iotlb.with(0, 0xfff, 0, RW).keeps_all_of(&iotlb));
    }

    #[test]
    fn an_invalidation_cuts_a_hole() {
        let whole = Iotlb::default().with(0, u64::MAX, 0x1000, RW);
        let cut = whole.without(0x2000, 0x2fff);
        assert_eq!(
            ranges(&cut),
            [(0, 0x1fff, 0x1000), (0x3000, u64::MAX, 0x4000)]
        );
        assert_eq!(cut.to_user(0x3000, 1, Access::Read), Ok(0x4000));
        assert_eq!(
            cut.to_user(0x2000, 1, Access::Read),
            Err(Obstacle::Miss(0x2000))
        );
        assert!(whole.without(0, u64::MAX).entries.is_empty());
        assert_eq!(
            whole.to_user(u64::MAX - 1, 3, Access::Read),
            Err(Obstacle::Unmapped(u64::MAX - 1)),
            "wraps"
        );
        assert!(
            cut.without(0x2000, 0x2fff).keeps_all_of(&cut),
            "nothing there"
        );
    }

    #[test]
    fn a_range_is_translated_if_it_is_contiguous_and_permitted() {
        let iotlb = Iotlb::default()
            .with(0x1000, 0x1fff, 0x8000, RW)
            .with(0x2000, 0x2fff, 0x9000, READ)
            .with(0x3000, 0x3fff, 0x5000, RW);
        let user = |iova, len, access| iotlb.to_user(iova, len, access);
        assert_eq!(user(0x1800, 0x1000, Access::Read), Ok(0x8800));
        assert_eq!(
            user(0x1800, 0x1000, Access::Write),
            Err(Obstacle::Denied(0x2000))
        );
        assert_eq!(
            user(0x2800, 0x1000, Access::Read),
            Err(Obstacle::Unmapped(0x3000)),
            "not contiguous"
        );
        assert_eq!(
            user(0x3800, 0x1000, Access::Read),
            Err(Obstacle::Miss(0x4000))
        );
        assert_eq!(user(0x1000, 0, Access::Read), Ok(0x8000));
    }

    #[test]
    fn as_many_as_there_are_the_number_is_bounded() {
        let mut iotlb = Iotlb::default();
        for page in 0..MAX_ENTRIES as u64 + 500 {
            iotlb = iotlb.with(page << 12, (page << 12) + 0xfff, 0, RW);
            assert_eq!(iotlb.to_user(page << 12, 1, Access::Read), Ok(0));
        }
        assert_eq!(iotlb.entries.len(), MAX_ENTRIES);
    }
}

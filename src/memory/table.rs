//! The immutable snapshot of all regions.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use super::mapping::{FileRange, Mapping};
use super::translate::Span;
use super::{MAX_SLOTS, MemoryError, MemoryPolicy, RegionDesc};
use crate::sync::Arc;

#[derive(Clone, Debug)]
struct Region {
    desc: RegionDesc,
    mapping: Arc<Mapping>,
}

/// All regions at one moment, sorted by guest address. Never changes; see the module for what that buys.
#[derive(Debug)]
pub struct RegionTable {
    generation: u64,
    regions: Vec<Region>,
    /// `regions[i].desc.gpa`, alone and dense: what the search reads.
    starts: Vec<u64>,
    /// The same regions, as translation wants them.
    spans: Vec<Span>,
    /// Indexes of `regions`, sorted by user address.
    by_user: Vec<u16>,
}

// SAFETY: the raw pointers in `spans` point into the mappings that `regions` keeps alive; the table never changes and
// only hands the pointers out.
unsafe impl Send for RegionTable {}
// SAFETY: as above.
unsafe impl Sync for RegionTable {}

impl RegionTable {
    /// A table without regions.
    #[must_use]
    pub fn empty(generation: u64) -> RegionTable {
        RegionTable::build(Vec::new(), generation)
    }

    /// This table and one region more.
    ///
    /// # Errors
    /// The region is malformed, overlaps another, or its file cannot be mapped as the policy demands.
    pub fn with_added(
        &self,
        desc: RegionDesc,
        fd: BorrowedFd<'_>,
        policy: MemoryPolicy,
        generation: u64,
    ) -> Result<RegionTable, MemoryError> {
        let mut all: Vec<RegionDesc> = self.descs().collect();
        all.push(desc);
        check_all(&all)?;
        let range = FileRange::of(&desc, fd, policy)?;
        let mapping = Arc::new(Mapping::new(&desc, fd, range)?);
        let mut regions = self.regions.clone();
        regions.push(Region { desc, mapping });
        Ok(RegionTable::build(regions, generation))
    }

    /// This table without the region that has exactly this guest address, size and user address.
    ///
    /// # Errors
    /// There is no such region.
    pub fn with_removed(
        &self,
        gpa: u64,
        size: u64,
        user_addr: u64,
        generation: u64,
    ) -> Result<RegionTable, MemoryError> {
        let named = |region: &Region| {
            let desc = &region.desc;
            desc.gpa == gpa && desc.size == size && desc.user_addr == user_addr
        };
        let regions: Vec<Region> = self
            .regions
            .iter()
            .filter(|region| !named(region))
            .cloned()
            .collect();
        if regions.len() == self.regions.len() {
            return Err(MemoryError::NotFound {
                gpa,
                size,
                user_addr,
            });
        }
        Ok(RegionTable::build(regions, generation))
    }

    /// A table of exactly these regions. One that is already here, with the same part of the same file, keeps its
    /// mapping: front-ends send the whole table again for every change.
    ///
    /// # Errors
    /// As for [`RegionTable::with_added`].
    pub fn replaced<F: AsFd>(
        &self,
        wanted: &[(RegionDesc, F)],
        policy: MemoryPolicy,
        generation: u64,
    ) -> Result<RegionTable, MemoryError> {
        let all: Vec<RegionDesc> = wanted.iter().map(|(desc, _)| *desc).collect();
        check_all(&all)?;
        let old: HashMap<u64, &Region> = self
            .regions
            .iter()
            .map(|region| (region.desc.gpa, region))
            .collect();
        let regions = wanted
            .iter()
            .map(|(desc, fd)| {
                let range = FileRange::of(desc, fd.as_fd(), policy)?;
                let mapping = match old.get(&desc.gpa) {
                    Some(kept) if kept.desc == *desc && kept.mapping.is(&range) => {
                        Arc::clone(&kept.mapping)
                    }
                    _ => Arc::new(Mapping::new(desc, fd.as_fd(), range)?),
                };
                Ok(Region {
                    desc: *desc,
                    mapping,
                })
            })
            .collect::<Result<Vec<Region>, MemoryError>>()?;
        Ok(RegionTable::build(regions, generation))
    }

    /// The number that tells this snapshot from the ones before it.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How many regions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there is no region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The regions, sorted by guest address.
    pub fn descs(&self) -> impl Iterator<Item = RegionDesc> + '_ {
        self.regions.iter().map(|region| region.desc)
    }

    /// The host pointer of `len` bytes at guest address `gpa`, if one region holds them all.
    #[cfg(test)]
    pub(crate) fn translate(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        let (host, run) = self.spans[self.search(gpa)?].run(gpa)?;
        (len <= run).then_some(host)
    }

    /// The host pointer of `len` bytes at the front-end's own address, if one region holds them all.
    #[must_use]
    pub fn translate_user(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        let below = self
            .by_user
            .partition_point(|&i| self.regions[usize::from(i)].desc.user_addr <= user_addr);
        let region = &self.regions[usize::from(self.by_user[below.checked_sub(1)?])];
        let offset = user_addr - region.desc.user_addr;
        if offset >= region.desc.size || len > region.desc.size - offset {
            return None;
        }
        Some(region.mapping.host().wrapping_add(offset as usize))
    }

    /// The guest address behind a host pointer into one of the regions.
    #[cfg(test)]
    pub(crate) fn host_to_gpa(&self, host: *const u8) -> Option<u64> {
        self.spans.iter().find_map(|span| {
            let offset = (host.addr() as u64).wrapping_sub(span.host.addr() as u64);
            (offset < span.size).then(|| span.gpa + offset)
        })
    }

    #[inline(always)]
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The last region that begins at or below `gpa`.
    #[inline(never)]
    pub(super) fn search(&self, gpa: u64) -> Option<usize> {
        let mut base = 0;
        let mut left = self.starts.len();
        if left == 0 {
            return None;
        }
        while left > 1 {
            let half = left / 2;
            // SAFETY: base + left <= starts.len() holds at every turn, and half < left.
            let start = unsafe { *self.starts.get_unchecked(base + half) };
            // All ones if the region begins at or below the address. Not a comparison: the compiler would branch on it, the
            // outcome is random, and one misprediction costs more than the whole search.
            let below = !((u128::from(gpa).wrapping_sub(u128::from(start)) >> 64) as usize);
            base += half & below;
            left -= half;
        }
        Some(base)
    }

    fn build(mut regions: Vec<Region>, generation: u64) -> RegionTable {
        regions.sort_by_key(|region| region.desc.gpa);
        let spans: Vec<Span> = regions
            .iter()
            .map(|Region { desc, mapping }| Span {
                gpa: desc.gpa,
                size: desc.size,
                host: mapping.host(),
            })
            .collect();
        let starts = spans.iter().map(|span| span.gpa).collect();
        let mut by_user: Vec<u16> = (0..).take(regions.len()).collect();
        by_user.sort_by_key(|&i| regions[usize::from(i)].desc.user_addr);
        RegionTable {
            generation,
            regions,
            starts,
            spans,
            by_user,
        }
    }
}

/// Checks a set of regions for everything that does not need their files.
fn check_all(all: &[RegionDesc]) -> Result<(), MemoryError> {
    if all.len() > MAX_SLOTS {
        return Err(MemoryError::TooMany { count: all.len() });
    }
    for desc in all {
        desc.check()?;
    }
    let mut sorted: Vec<&RegionDesc> = all.iter().collect();
    sorted.sort_by_key(|desc| desc.gpa);
    for pair in sorted.windows(2) {
        if pair[0].gpa + pair[0].size > pair[1].gpa {
            return Err(MemoryError::GuestOverlap {
                new: *pair[1],
                old: *pair[0],
            });
        }
    }
    sorted.sort_by_key(|desc| desc.user_addr);
    for pair in sorted.windows(2) {
        if pair[0].user_addr + pair[0].size > pair[1].user_addr {
            return Err(MemoryError::UserOverlap {
                new: *pair[1],
                old: *pair[0],
            });
        }
    }
    Ok(())
}

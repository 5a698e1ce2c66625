//! The immutable snapshot of everything that accesses to guest memory depend on.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use super::dirty_log::DirtyLog;
use super::iotlb::Iotlb;
use super::mapping::{FileRange, Mapping};
use super::regions::{Region, Regions};
use super::{MAX_SLOTS, MemoryError, MemoryPolicy, RegionDesc};
use crate::sync::Arc;

/// All regions at one moment, the log that writes to them go to, and how the guest's addresses are translated. Never changes; see the module for what that buys.
#[derive(Debug)]
pub struct RegionTable {
    generation: u64,
    regions: Arc<Regions>,
    log: Option<Arc<DirtyLog>>,
    iotlb: Option<Arc<Iotlb>>,
}

impl RegionTable {
    /// A table without regions.
    #[must_use]
    pub fn empty(generation: u64) -> RegionTable {
        RegionTable {
            generation,
            regions: Arc::new(Regions::new(Vec::new())),
            log: None,
            iotlb: None,
        }
    }

    fn with_regions(&self, regions: Vec<Region>, generation: u64) -> RegionTable {
        RegionTable {
            generation,
            regions: Arc::new(Regions::new(regions)),
            log: self.log.clone(),
            iotlb: self.iotlb.clone(),
        }
    }

    /// The same memory under another number.
    pub(crate) fn again(&self, generation: u64) -> RegionTable {
        RegionTable {
            generation,
            regions: self.regions.clone(),
            log: self.log.clone(),
            iotlb: self.iotlb.clone(),
        }
    }

    /// This table, before it is published, with writes marked in `log`.
    pub(crate) fn logged(mut self, log: Option<Arc<DirtyLog>>) -> RegionTable {
        self.log = log;
        self
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
        let mapping = Arc::new(Mapping::new(&desc, fd, range, policy)?);
        let mut regions = self.regions.all().to_vec();
        regions.push(Region { desc, mapping });
        Ok(self.with_regions(regions, generation))
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
            .all()
            .iter()
            .filter(|region| !named(region))
            .cloned()
            .collect();
        if regions.len() == self.len() {
            return Err(MemoryError::NotFound {
                gpa,
                size,
                user_addr,
            });
        }
        Ok(self.with_regions(regions, generation))
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
            .all()
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
                    _ => Arc::new(Mapping::new(desc, fd.as_fd(), range, policy)?),
                };
                Ok(Region {
                    desc: *desc,
                    mapping,
                })
            })
            .collect::<Result<Vec<Region>, MemoryError>>()?;
        Ok(self.with_regions(regions, generation))
    }

    /// The number that tells this snapshot from the ones before it.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The mapped regions, which a clone keeps mapped.
    #[inline(always)]
    pub(crate) fn regions(&self) -> &Arc<Regions> {
        &self.regions
    }

    /// Where writes are logged, if they are.
    pub(crate) fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// This table, before it is published, with addresses translated by `iotlb`.
    pub(crate) fn translated(mut self, iotlb: Option<Arc<Iotlb>>) -> RegionTable {
        self.iotlb = iotlb;
        self
    }

    /// How I/O virtual addresses are translated; `None` if the guest's are physical.
    pub(crate) fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        self.iotlb.as_ref()
    }

    /// How many regions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.all().len()
    }

    /// Whether there is no region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The regions with their mappings, sorted by guest address.
    pub(super) fn mappings(&self) -> impl Iterator<Item = (RegionDesc, &Arc<Mapping>)> {
        let all = self.regions.all().iter();
        all.map(|region| (region.desc, &region.mapping))
    }

    /// Whether everything that `older` maps is mapped here, too, at the same host address.
    pub(crate) fn keeps_all_of(&self, older: &RegionTable) -> bool {
        let all = self.regions.all();
        older.mappings().all(|(desc, mapping)| {
            all.binary_search_by_key(&desc.gpa, |region| region.desc.gpa)
                .is_ok_and(|at| Arc::ptr_eq(&all[at].mapping, mapping))
        })
    }

    /// The regions, sorted by guest address.
    pub fn descs(&self) -> impl Iterator<Item = RegionDesc> + '_ {
        self.regions.all().iter().map(|region| region.desc)
    }

    /// The host pointer of `len` bytes at guest address `gpa`, if one region holds them all.
    #[cfg(test)]
    pub(crate) fn translate(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        let (host, run) = self.regions.spans()[self.regions.search(gpa)?].run(gpa)?;
        (len <= run).then_some(host)
    }

    /// The host pointer of `len` bytes at the front-end's own address, if one region holds them all.
    #[must_use]
    pub fn translate_user(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        self.regions.translate_user(user_addr, len)
    }

    /// The guest address behind a host pointer into one of the regions.
    #[cfg(test)]
    pub(crate) fn host_to_gpa(&self, host: *const u8) -> Option<u64> {
        self.regions.host_to_gpa(host)
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

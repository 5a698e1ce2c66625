//! Guest memory whose pages are still on their way from another host (postcopy migration).
//!
//! Every mapping of the table is registered with a userfaultfd that the front-end reads: whoever touches a page that has
//! not arrived waits until the front-end has put it into the file and says so. How it ends depends on why:
//!
//! * The migration is complete: all pages are there, the ranges are unregistered.
//! * A region is taken out of the table: its range is unregistered. The front-end supplies nothing there any more, and who
//!   waits must not wait for ever; a page that never came reads as zero.
//! * The connection ends in the middle: the pages never come. The mappings turn into private memory, so that what is
//!   still running reads and writes something, and no page of zeroes takes the place of one of the guest's.

use nix::errno::Errno;

use super::mapping::Mapping;
use super::userfaultfd::{Range, Userfaultfd};
use super::{MemoryError, RegionTable};
use crate::sync::Arc;

/// The mappings that are registered.
#[derive(Debug)]
pub(crate) struct FaultRanges {
    uffd: Userfaultfd,
    mappings: Vec<Arc<Mapping>>,
}

impl FaultRanges {
    pub(crate) fn new(uffd: Userfaultfd) -> Self {
        FaultRanges {
            uffd,
            mappings: Vec::new(),
        }
    }

    /// Registers what `table` maps, except what is registered already.
    ///
    /// # Errors
    /// The memory cannot be registered (a file on a disk, for one); nothing of `table` that was not registered before is.
    pub(crate) fn cover(&mut self, table: &RegionTable) -> Result<(), MemoryError> {
        let before = self.mappings.len();
        for (desc, mapping) in table.mappings() {
            if self.has(mapping) {
                continue;
            }
            mapping.without_huge_pages();
            if let Err(errno) = self.uffd.register(range(mapping)) {
                for mapping in self.mappings.drain(before..) {
                    let_go(&self.uffd, &mapping);
                }
                return Err(MemoryError::Register {
                    gpa: desc.gpa,
                    size: desc.size,
                    errno,
                });
            }
            self.mappings.push(mapping.clone());
        }
        Ok(())
    }

    fn has(&self, mapping: &Arc<Mapping>) -> bool {
        self.mappings.iter().any(|m| Arc::ptr_eq(m, mapping))
    }

    /// Unregisters what none of `tables` maps.
    pub(crate) fn keep_only(&mut self, tables: &[&RegionTable]) {
        let is_used = |mapping: &Arc<Mapping>| {
            let mut used = tables.iter().flat_map(|table| table.mappings());
            used.any(|(_, m)| Arc::ptr_eq(m, mapping))
        };
        let (kept, gone) = self.mappings.drain(..).partition(is_used);
        self.mappings = kept;
        for mapping in gone {
            let_go(&self.uffd, &mapping);
        }
    }

    /// The migration is complete.
    pub(crate) fn complete(self) {
        for mapping in &self.mappings {
            let_go(&self.uffd, mapping);
        }
    }

    /// The connection is over, and with it whoever supplied the pages.
    pub(crate) fn abandon(self) {
        for mapping in &self.mappings {
            match mapping.make_private() {
                // The range is no longer registered; those who wait in it do not know that yet.
                Ok(()) => assume_done(self.uffd.wake(range(mapping))),
                Err(_) => let_go(&self.uffd, mapping),
            }
        }
    }
}

fn range(mapping: &Mapping) -> Range {
    let (start, len) = mapping.extent();
    Range {
        start: start as u64,
        len: len as u64,
    }
}

fn let_go(uffd: &Userfaultfd, mapping: &Mapping) {
    assume_done(uffd.unregister(range(mapping)));
}

/// Both requests take any mapped range of this process; there is no way in which one of a mapping can fail.
fn assume_done(result: Result<(), Errno>) {
    debug_assert_eq!(result, Ok(()));
}

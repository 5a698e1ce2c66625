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
mod split;

use crate::memory::SharedArea;
use crate::sync::Arc;

pub(crate) use split::InflightRegion;
pub(super) use split::Tracker;

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

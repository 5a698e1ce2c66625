//! The regions that are mapped, and how an address of one kind is turned into one of another.

use super::RegionDesc;
use super::mapping::Mapping;
use super::translate::Span;
use crate::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) desc: RegionDesc,
    pub(super) mapping: Arc<Mapping>,
}

/// All regions, sorted by guest address. Never changes, and keeps their mappings.
#[derive(Debug)]
pub(crate) struct Regions {
    all: Vec<Region>,
    /// `all[i].desc.gpa`, alone and dense: what the search reads.
    starts: Vec<u64>,
    /// The same regions, as translation wants them.
    spans: Vec<Span>,
    /// Indexes of `all`, sorted by user address.
    by_user: Vec<u16>,
    /// Indexes of `all`, sorted by host address.
    by_host: Vec<u16>,
}

// SAFETY: the raw pointers in `spans` point into the mappings that `all` keeps alive; nothing ever changes, and the
// pointers are only handed out.
unsafe impl Send for Regions {}
// SAFETY: as above.
unsafe impl Sync for Regions {}

impl Regions {
    pub(super) fn new(mut all: Vec<Region>) -> Regions {
        all.sort_by_key(|region| region.desc.gpa);
        let spans: Vec<Span> = all
            .iter()
            .map(|Region { desc, mapping }| Span {
                gpa: desc.gpa,
                size: desc.size,
                host: mapping.host(),
            })
            .collect();
        let starts = spans.iter().map(|span| span.gpa).collect();
        let mut by_user: Vec<u16> = (0..).take(all.len()).collect();
        let mut by_host = by_user.clone();
        by_user.sort_by_key(|&i| all[usize::from(i)].desc.user_addr);
        by_host.sort_by_key(|&i| spans[usize::from(i)].host);
        Regions {
            all,
            starts,
            spans,
            by_user,
            by_host,
        }
    }

    pub(super) fn all(&self) -> &[Region] {
        &self.all
    }

    #[inline(always)]
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The host pointer of `len` bytes at the front-end's own address, if one region holds them all.
    pub(crate) fn translate_user(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        let (host, run) = self.user_run(user_addr)?;
        (len <= run).then_some(host)
    }

    /// Where the front-end's own address lies, and how many bytes its region has from there on.
    pub(super) fn user_run(&self, user_addr: u64) -> Option<(*mut u8, u64)> {
        let below = self
            .by_user
            .partition_point(|&i| self.all[usize::from(i)].desc.user_addr <= user_addr);
        let region = &self.all[usize::from(self.by_user[below.checked_sub(1)?])];
        let offset = user_addr - region.desc.user_addr;
        if offset >= region.desc.size {
            return None;
        }
        let host = region.mapping.host().wrapping_add(offset as usize);
        Some((host, region.desc.size - offset))
    }

    /// The guest address behind a host pointer into one of the regions.
    pub(crate) fn host_to_gpa(&self, host: *const u8) -> Option<u64> {
        let below = self
            .by_host
            .partition_point(|&i| self.spans[usize::from(i)].host.cast_const() <= host);
        let span = &self.spans[usize::from(self.by_host[below.checked_sub(1)?])];
        let offset = host.addr() as u64 - span.host.addr() as u64;
        (offset < span.size).then(|| span.gpa + offset)
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
}

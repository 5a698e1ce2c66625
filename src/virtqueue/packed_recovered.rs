//! Chains of a packed ring that a predecessor had in flight: their descriptors come from the in-flight area, since those in
//! the ring may be overwritten. Whoever wrote them there, they are checked as a guest's are.

use super::inflight_area::packed::{RecoveredChain, StoredDesc};
use super::packed_areas::{AVAIL, PackedAreas, USED};
use super::place::Place;
use crate::sync::AtomicU64;

/// To be popped before those in the ring. They take the places of the last ones that the predecessor had popped there: as
/// many descriptors as all of them have.
#[derive(Debug)]
pub(crate) struct RecoveredChains {
    chains: Vec<Chain>,
    /// How many descriptors have been popped when all of them are.
    end: u64,
}

#[derive(Debug)]
struct Chain {
    /// How many descriptors have been popped before it.
    at: u64,
    /// As in a ring of their own, all available to a device with the wrap counter 1.
    descs: Vec<[AtomicU64; 2]>,
}

impl RecoveredChains {
    /// For a ring of which `used` descriptors have been returned.
    pub(crate) fn new(used: u64, chains: &[RecoveredChain]) -> RecoveredChains {
        let mut end = used;
        let chains = chains
            .iter()
            .map(|chain| {
                let at = end;
                end += chain.descs.len() as u64;
                let descs = chain.descs.iter().map(in_a_ring).collect();
                Chain { at, descs }
            })
            .collect();
        RecoveredChains { chains, end }
    }

    /// How many descriptors have been popped when all of them are.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The chain whose turn it is when so many descriptors have been popped, as a ring of its own, and how many descriptors
    /// it has.
    ///
    /// # Safety
    /// The areas that this returns are not used any more when `self` is gone.
    pub(super) unsafe fn ring(
        &self,
        popped: u64,
        areas: PackedAreas,
    ) -> Option<(PackedAreas, u16)> {
        let found = self.chains.binary_search_by_key(&popped, |chain| chain.at);
        let descs = &self.chains.get(found.ok()?)?.descs;
        // No more than the ring has.
        let count = descs.len() as u16;
        // SAFETY: as many descriptors, which live as long as `self`.
        Some((unsafe { areas.over(descs.as_ptr().cast(), count) }, count))
    }

    /// Where a chain begins in a ring of its own.
    pub(super) const START: Place = Place {
        count: 0,
        index: 0,
        wrap: true,
    };
}

fn in_a_ring(desc: &StoredDesc) -> [AtomicU64; 2] {
    let flags = desc.flags & !(AVAIL | USED) | AVAIL;
    let rest = u64::from(desc.len) | u64::from(desc.id) << 32 | u64::from(flags) << 48;
    [desc.addr, rest].map(|word| AtomicU64::new(word.to_le()))
}

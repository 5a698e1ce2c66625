//! The region of a split ring.

use super::{ALIGN, Region, VERSION};
use crate::memory::SharedArea;
use crate::sync::{Arc, AtomicU8, AtomicU16, AtomicU64, Ordering};
use crate::virtqueue::ring_error::RingError;
use crate::virtqueue::used::UsedElem;

const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
const HEAD_SIZE: usize = 16;

const ENTRY_SIZE: usize = 16;
const IN_FLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// A queue's region.
#[derive(Clone, Debug)]
pub(crate) struct SplitRegion(Region);

/// What a predecessor has left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Heads that are in flight, in the order in which they were popped.
    pub(crate) heads: Vec<u16>,
    /// The next chain's number.
    counter: u64,
}

impl SplitRegion {
    /// Bytes of a region for a split ring of this size.
    pub(crate) fn size(entries: u16) -> usize {
        (HEAD_SIZE + ENTRY_SIZE * usize::from(entries)).next_multiple_of(ALIGN)
    }

    /// The region at `index`; `None` if the area does not reach as far.
    pub(crate) fn new(area: &Arc<SharedArea>, index: usize, entries: u16) -> Option<SplitRegion> {
        Region::new(area, index, Self::size(entries), entries).map(SplitRegion)
    }

    fn head(&self, at: usize) -> &AtomicU16 {
        // SAFETY: one of the four above.
        unsafe { self.0.field(at) }
    }

    fn entry_at(&self, head: u16) -> usize {
        // The callers' heads are below the ring's size, which is not above `entries`.
        debug_assert!(head < self.0.entries);
        HEAD_SIZE + ENTRY_SIZE * usize::from(head.min(self.0.entries - 1))
    }

    fn in_flight(&self, head: u16) -> &AtomicU8 {
        // SAFETY: within an entry.
        unsafe { self.0.field(self.entry_at(head) + IN_FLIGHT_AT) }
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        // SAFETY: within an entry, even.
        unsafe { self.0.field(self.entry_at(head) + NEXT_AT) }
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        // SAFETY: within an entry, a multiple of 8.
        unsafe { self.0.field(self.entry_at(head) + COUNTER_AT) }
    }

    /// Reads what a predecessor has left, for a ring whose used index is `used`, and makes the region this back-end's. An
    /// entry is read once; nothing in it is trusted but as what it says of requests of the guest's own.
    ///
    /// `returned(n)` is the head in the used ring that was returned `n` chains before the newest one.
    ///
    /// # Errors
    /// A field that no back-end writes.
    pub(crate) fn recover(
        &self,
        ring_size: u16,
        used: u16,
        returned: impl Fn(u16) -> u32,
    ) -> Result<Recovered, RingError> {
        let bad = |field, value: u16| RingError::InflightArea { field, value };
        if ring_size > self.0.entries {
            return Err(bad("entries", self.0.entries));
        }
        let [version, entries, last_batch, before] =
            [VERSION_AT, ENTRIES_AT, LAST_BATCH_AT, USED_INDEX_AT]
                .map(|at| self.head(at).load(Ordering::Acquire));
        let mut recovered = Recovered::default();
        match version {
            0 => {}
            VERSION if entries != self.0.entries => return Err(bad("desc_num", entries)),
            VERSION if last_batch >= self.0.entries => {
                return Err(bad("last_batch_head", last_batch));
            }
            VERSION => {
                let batch = used.wrapping_sub(before);
                self.clear_interrupted(ring_size, last_batch, batch, returned);
                recovered = self.in_flight_heads(ring_size);
            }
            other => return Err(bad("version", other)),
        }
        self.head(ENTRIES_AT)
            .store(self.0.entries, Ordering::Release);
        self.head(USED_INDEX_AT).store(used, Ordering::Release);
        self.head(VERSION_AT).store(VERSION, Ordering::Release);
        Ok(recovered)
    }

    /// Clears the marks of a batch that was returned by somebody who died before clearing them.
    ///
    /// The list of the batch is believed if it names as many chains as the used index went on, each once, and the used ring
    /// agrees. A region that was made for a ring with a used index of its own says, wrongly, that entry 0 was returned;
    /// only that tells it from the truth.
    fn clear_interrupted(
        &self,
        ring_size: u16,
        mut head: u16,
        batch: u16,
        returned: impl Fn(u16) -> u32,
    ) {
        if batch > ring_size {
            return;
        }
        let mut in_batch = vec![false; ring_size.into()];
        for position in 0..batch {
            let agreed = returned(position) == u32::from(head);
            match in_batch.get_mut(usize::from(head)) {
                Some(seen) if agreed && !*seen => *seen = true,
                _ => return,
            }
            head = self.next(head).load(Ordering::Acquire);
        }
        for (head, _) in (0..ring_size).zip(in_batch).filter(|(_, seen)| *seen) {
            self.in_flight(head).store(0, Ordering::Release);
        }
    }

    fn in_flight_heads(&self, ring_size: u16) -> Recovered {
        let mut marked: Vec<(u64, u16)> = (0..ring_size)
            .filter(|&head| self.in_flight(head).load(Ordering::Acquire) != 0)
            .map(|head| (self.counter(head).load(Ordering::Acquire), head))
            .collect();
        marked.sort_unstable();
        Recovered {
            counter: marked.last().map_or(0, |last| last.0.wrapping_add(1)),
            heads: marked.into_iter().map(|(_, head)| head).collect(),
        }
    }
}

/// Keeps a region true while the ring runs. Guarded by the queue's publication lock.
pub(in crate::virtqueue) struct SplitTracker {
    region: SplitRegion,
    counter: u64,
    last_batch: u16,
}

impl SplitTracker {
    pub(in crate::virtqueue) fn new(region: SplitRegion, recovered: &Recovered) -> SplitTracker {
        SplitTracker {
            last_batch: region.head(LAST_BATCH_AT).load(Ordering::Relaxed),
            counter: recovered.counter,
            region,
        }
    }

    /// A chain was popped. One that a predecessor had popped keeps its number.
    pub(in crate::virtqueue) fn popped(&mut self, head: u16) {
        let in_flight = self.region.in_flight(head);
        if in_flight.load(Ordering::Relaxed) == 0 {
            let counter = self.region.counter(head);
            counter.store(self.counter, Ordering::Relaxed);
            self.counter = self.counter.wrapping_add(1);
            in_flight.store(1, Ordering::Release);
        }
    }

    /// A chain was put back.
    pub(in crate::virtqueue) fn unpopped(&mut self, head: u16) {
        self.region.in_flight(head).store(0, Ordering::Release);
    }

    /// Before the used index says that these chains are returned.
    pub(in crate::virtqueue) fn before_publication(&mut self, batch: &[UsedElem]) {
        for elem in batch {
            let head = elem.head();
            self.region
                .next(head)
                .store(self.last_batch, Ordering::Release);
            self.region
                .head(LAST_BATCH_AT)
                .store(head, Ordering::Release);
            self.last_batch = head;
        }
    }

    /// After it has said so.
    pub(in crate::virtqueue) fn after_publication(&mut self, batch: &[UsedElem], used: u16) {
        for elem in batch {
            self.region
                .in_flight(elem.head())
                .store(0, Ordering::Release);
        }
        self.region
            .head(USED_INDEX_AT)
            .store(used, Ordering::Release);
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;

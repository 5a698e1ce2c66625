//! Statistics of a queue. Each counter has one writer at a time (the queue's owner, or whoever holds the
//! publication lock), so counting is a plain load and store.

use crate::sync::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// The single writer.
    #[inline(always)]
    pub(crate) fn add(&self, n: u64) {
        // Relaxed: nothing is ordered by a statistic.
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Several writers.
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Written by the owner of the queue.
#[derive(Debug, Default)]
pub(crate) struct OwnerCounters {
    pub(crate) pops: Counter,
    pub(crate) unpops: Counter,
    pub(crate) kicks: Counter,
}

/// Written under the publication lock.
#[derive(Debug, Default)]
pub(crate) struct PublicationCounters {
    pub(crate) completions: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) notifications: Counter,
    pub(crate) suppressed: Counter,
    pub(crate) suspended: Counter,
}

/// What a queue has done since its server was made; counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VqStats {
    /// Elements popped and not put back.
    pub pops: u64,
    /// Elements completed.
    pub completions: u64,
    /// Device-readable bytes of the completed elements.
    pub bytes_out: u64,
    /// Bytes written, as told at completion.
    pub bytes_in: u64,
    /// Calls of [`Device::kick`](crate::Device::kick).
    pub kicks: u64,
    /// Notifications sent to the driver.
    pub notifications: u64,
    /// Publications after which the driver did not want one.
    pub notifications_suppressed: u64,
    /// Elements popped and not completed now.
    pub inflight: u64,
    /// Elements that were dropped instead of completed.
    pub dropped: u64,
    /// How often the ring broke.
    pub breaks: u64,
    /// Elements that were left in flight for whoever starts the ring next.
    pub suspended: u64,
}

//! Statistics of a server.

use crate::sync::{Arc, AtomicU64, Ordering};

/// Message types that are counted one by one; ids from 64 on are counted as refusals only.
pub const MESSAGE_TYPES: usize = 64;

pub(crate) struct ServerCounters {
    pub(crate) connections: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) refusals: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) broken_rings: AtomicU64,
    pub(crate) orphaned_queues: AtomicU64,
    pub(crate) config_changes: AtomicU64,
    pub(crate) memory_regions: AtomicU64,
    /// The dirty log counts in here itself.
    pub(crate) unlogged_pages: Arc<AtomicU64>,
    pub(crate) backend_requests: AtomicU64,
    pub(crate) backend_failures: AtomicU64,
    by_type: [AtomicU64; MESSAGE_TYPES],
}

impl Default for ServerCounters {
    fn default() -> Self {
        ServerCounters {
            connections: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            broken_rings: AtomicU64::new(0),
            orphaned_queues: AtomicU64::new(0),
            config_changes: AtomicU64::new(0),
            memory_regions: AtomicU64::new(0),
            unlogged_pages: Arc::default(),
            backend_requests: AtomicU64::new(0),
            backend_failures: AtomicU64::new(0),
            by_type: [const { AtomicU64::new(0) }; MESSAGE_TYPES],
        }
    }
}

/// One more; nothing is ordered by a statistic.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ServerCounters {
    pub(crate) fn message(&self, id: u32) {
        count(&self.messages);
        if let Some(counter) = self.by_type.get(id as usize) {
            count(counter);
        }
    }

    pub(crate) fn read(&self) -> ServerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerStats {
            connections: get(&self.connections),
            messages: get(&self.messages),
            refusals: get(&self.refusals),
            protocol_errors: get(&self.protocol_errors),
            broken_rings: get(&self.broken_rings),
            orphaned_queues: get(&self.orphaned_queues),
            config_changes: get(&self.config_changes),
            memory_regions: get(&self.memory_regions),
            backend_requests: get(&self.backend_requests),
            backend_failures: get(&self.backend_failures),
            messages_by_type: std::array::from_fn(|id| get(&self.by_type[id])),
            unlogged_pages: get(&self.unlogged_pages),
        }
    }
}

/// What a server has done since it was made; counters only grow, except for
/// [`memory_regions`](Self::memory_regions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStats {
    /// Front-ends served.
    pub connections: u64,
    /// Messages received.
    pub messages: u64,
    /// Messages refused; the connection lived on.
    pub refusals: u64,
    /// Connections ended because of what the peer sent.
    pub protocol_errors: u64,
    /// Rings that broke.
    pub broken_rings: u64,
    /// Queues cut off by a drain time-out.
    pub orphaned_queues: u64,
    /// Configuration changes that the front-end was told of.
    pub config_changes: u64,
    /// Guest memory regions mapped now.
    pub memory_regions: u64,
    /// Messages received, by request id.
    pub messages_by_type: [u64; MESSAGE_TYPES],
    /// Guest pages written to while the front-end wanted to know, for which its dirty log has no bit.
    pub unlogged_pages: u64,
    /// Requests sent to the front-end on the back-end channel.
    pub backend_requests: u64,
    /// Of the requests to the front-end that somebody waited for, those that were refused, not answered in
    /// time, or cancelled.
    pub backend_failures: u64,
}

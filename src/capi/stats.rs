//! Statistics: structures that the caller has, filled as far as it knows them.

use std::ffi::c_int;

use crate::stats::{MESSAGE_TYPES, ServerStats};
use crate::virtqueue::VqStats;

use super::guard::status;
use super::server::{vu_server, with_server};
use super::structs::{self, Extensible, layout};
use super::vq::{vu_vq, with_queue};

/// What a server has done since it was made. Counters only grow, but for
/// memory_regions.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vu_server_stats {
    /// sizeof(vu_server_stats), see VU_SERVER_STATS_INIT.
    pub struct_size: usize,
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
    /// Messages received, by request id; ids from 64 on are only counted in
    /// `messages`.
    pub messages_by_type: [u64; 64],
    /// Guest pages written to while the front-end wanted to know, for which its
    /// dirty log has no bit.
    pub unlogged_pages: u64,
    /// Requests sent to the front-end on the back-end channel.
    pub backend_requests: u64,
    /// Of the requests to the front-end that somebody waited for, those that
    /// were refused, not answered in time, or cancelled.
    pub backend_failures: u64,
}

layout!(vu_server_stats, 608, {
    struct_size: 0,
    connections: 8,
    messages: 16,
    refusals: 24,
    protocol_errors: 32,
    broken_rings: 40,
    orphaned_queues: 48,
    config_changes: 56,
    memory_regions: 64,
    messages_by_type: 72,
    unlogged_pages: 584,
    backend_requests: 592,
    backend_failures: 600,
});
const _: () = assert!(MESSAGE_TYPES == 64);

// SAFETY: repr(C), begins with its size, numbers only.
unsafe impl Extensible for vu_server_stats {
    const NAME: &'static str = "stats";
}

impl From<ServerStats> for vu_server_stats {
    fn from(stats: ServerStats) -> Self {
        vu_server_stats {
            struct_size: size_of::<Self>(),
            connections: stats.connections,
            messages: stats.messages,
            refusals: stats.refusals,
            protocol_errors: stats.protocol_errors,
            broken_rings: stats.broken_rings,
            orphaned_queues: stats.orphaned_queues,
            config_changes: stats.config_changes,
            memory_regions: stats.memory_regions,
            messages_by_type: stats.messages_by_type,
            unlogged_pages: stats.unlogged_pages,
            backend_requests: stats.backend_requests,
            backend_failures: stats.backend_failures,
        }
    }
}

/// What a queue has done since its server was made. Counters only grow, but for
/// inflight.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vu_vq_stats {
    /// sizeof(vu_vq_stats), see VU_VQ_STATS_INIT.
    pub struct_size: usize,
    /// Elements popped and not put back.
    pub pops: u64,
    /// Elements completed and published.
    pub completions: u64,
    /// Device-readable bytes of the completed elements.
    pub bytes_out: u64,
    /// Bytes written, as told at completion.
    pub bytes_in: u64,
    /// Calls of vu_device_ops.kick.
    pub kicks: u64,
    /// Notifications sent to the driver.
    pub notifications: u64,
    /// Publications after which the driver did not want one.
    pub notifications_suppressed: u64,
    /// Elements popped and not completed now.
    pub inflight: u64,
    /// Elements that a Rust device dropped; always 0 for a device in C.
    pub dropped: u64,
    /// How often the ring broke.
    pub breaks: u64,
    /// Elements that vu_elem_suspend() left in flight.
    pub suspended: u64,
}

layout!(vu_vq_stats, 96, {
    struct_size: 0,
    pops: 8,
    completions: 16,
    bytes_out: 24,
    bytes_in: 32,
    kicks: 40,
    notifications: 48,
    notifications_suppressed: 56,
    inflight: 64,
    dropped: 72,
    breaks: 80,
    suspended: 88,
});

// SAFETY: repr(C), begins with its size, numbers only.
unsafe impl Extensible for vu_vq_stats {
    const NAME: &'static str = "stats";
}

impl From<VqStats> for vu_vq_stats {
    fn from(stats: VqStats) -> Self {
        vu_vq_stats {
            struct_size: size_of::<Self>(),
            pops: stats.pops,
            completions: stats.completions,
            bytes_out: stats.bytes_out,
            bytes_in: stats.bytes_in,
            kicks: stats.kicks,
            notifications: stats.notifications,
            notifications_suppressed: stats.notifications_suppressed,
            inflight: stats.inflight,
            dropped: stats.dropped,
            breaks: stats.breaks,
            suspended: stats.suspended,
        }
    }
}

/// Statistics of a server. Any thread.
///
/// @param stats its struct_size says how much the caller knows; that much is
///        filled in
/// @return 0; -EINVAL for NULL or a struct_size that is none, -E2BIG for one
///         over 4096
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_get_stats(
    server: *const vu_server,
    stats: *mut vu_server_stats,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            structs::write(stats, &server.stats().into())
        })
    }
}

/// Statistics of a queue. Any thread; numbers that the owner is just changing
/// may be a moment old.
///
/// @param stats its struct_size says how much the caller knows; that much is
///        filled in
/// @return 0; -EINVAL for NULL or a struct_size that is none, -E2BIG for one
///         over 4096
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_get_stats(vq: *const vu_vq, stats: *mut vu_vq_stats) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_queue(vq, -libc::EINVAL, |queue| {
            status(structs::write(stats, &queue.stats().into()))
        })
    }
}

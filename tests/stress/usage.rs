//! What the process holds between two rounds.

use std::fmt;

use crate::sim::process;

/// Stacks and arenas that the C library keeps for the next thread.
const MAPPINGS: usize = 64;
const MEMORY_KIB: u64 = 32 << 10;

pub struct Usage {
    fds: usize,
    threads: usize,
    /// Of guest memory.
    regions: usize,
    mappings: usize,
    memory_kib: u64,
}

impl Usage {
    pub fn now() -> Self {
        Usage {
            fds: process::open_fds(),
            threads: process::threads_named("").len(),
            regions: process::mappings("memfd:sim-guest"),
            mappings: process::mappings(""),
            memory_kib: process::resident_kib(),
        }
    }

    pub fn highest(&self, other: &Usage) -> Usage {
        Usage {
            fds: self.fds.max(other.fds),
            threads: self.threads.max(other.threads),
            regions: self.regions.max(other.regions),
            mappings: self.mappings.max(other.mappings),
            memory_kib: self.memory_kib.max(other.memory_kib),
        }
    }

    #[track_caller]
    pub fn assert_not_above(&self, highest: &Usage) {
        assert!(
            self.fds <= highest.fds
                && self.threads <= highest.threads
                && self.regions <= highest.regions
                && self.mappings <= highest.mappings + MAPPINGS
                && self.memory_kib <= highest.memory_kib + MEMORY_KIB,
            "grown from {highest} to {self}: {:?}",
            process::fd_targets()
        );
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors, {} threads, {} regions mapped, {} mappings, {} KiB",
            self.fds, self.threads, self.regions, self.mappings, self.memory_kib
        )
    }
}

//! Where the current region table is published.
//!
//! A pop brackets itself with the generation of the table it uses; whoever publishes the next table waits
//! until no bracket shows an older one. The bracket is a plain store on the popping side: the publisher
//! makes it visible with `membarrier(2)`, so the hot path pays no fence for it. Where the system call is
//! missing, every pop pays one.

use crate::sync::{Arc, AtomicU64, Mutex, Ordering, fence};

use super::RegionTable;

#[derive(Debug)]
pub(crate) struct TableCell {
    generation: AtomicU64,
    table: Mutex<Arc<RegionTable>>,
    /// The kernel runs a barrier on every core for us.
    asymmetric: bool,
}

impl TableCell {
    /// Generation 1 and empty; 0 is no generation.
    pub(crate) fn new() -> Self {
        TableCell {
            generation: AtomicU64::new(1),
            table: Mutex::new(Arc::new(RegionTable::empty(1))),
            asymmetric: membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED),
        }
    }

    /// Acquire pairs with the Release of `publish`: who sees a generation finds its table.
    #[inline(always)]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn current(&self) -> Arc<RegionTable> {
        self.table.lock().clone()
    }

    /// The internal thread: makes `table` the current one. Afterwards every bracket that was entered before
    /// is visible to the caller, and every later one sees the new generation.
    pub(crate) fn publish(&self, table: RegionTable) {
        let generation = table.generation();
        // Dropped at the end, so that no popping thread waits for an unmapping.
        let _old = std::mem::replace(&mut *self.table.lock(), Arc::new(table));
        self.generation.store(generation, Ordering::Release);
        if !self.asymmetric || !membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
            // Pairs with the fence of `Bracket::enter`.
            fence(Ordering::SeqCst);
        }
    }
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Says which table a running pop uses; 0 outside of one.
#[derive(Debug, Default)]
pub(crate) struct Bracket(AtomicU64);

impl Bracket {
    /// The owner of the queue. The generation that it reads after this is the one the publisher stored, or
    /// the publisher sees this bracket.
    #[inline(always)]
    pub(crate) fn enter(&self, cell: &TableCell, generation: u64) {
        self.0.store(generation, Ordering::Relaxed);
        if cell.asymmetric {
            // The hardware's half of the barrier is the publisher's membarrier.
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// Release: what the pop did with the old mapping is over before the publisher sees 0 or a new value.
    #[inline(always)]
    pub(crate) fn renew(&self, generation: u64) {
        self.0.store(generation, Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// The publisher: no pop uses a table older than `generation`. Acquire pairs with `leave` and `renew`.
    pub(crate) fn is_clear_of_older(&self, generation: u64) -> bool {
        let seen = self.0.load(Ordering::Acquire);
        seen == 0 || seen >= generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bracket_blocks_only_newer_tables() {
        let cell = TableCell::new();
        let bracket = Bracket::default();
        assert!(bracket.is_clear_of_older(2));
        bracket.enter(&cell, cell.generation());
        assert!(bracket.is_clear_of_older(1));
        assert!(!bracket.is_clear_of_older(2));
        cell.publish(RegionTable::empty(2));
        assert_eq!((cell.generation(), cell.current().generation()), (2, 2));
        bracket.renew(2);
        assert!(bracket.is_clear_of_older(2));
        bracket.leave();
        assert!(bracket.is_clear_of_older(3));
    }
}

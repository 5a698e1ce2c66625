//! Counting what is in flight, and knowing when it is over.
//!
//! Two counters work together:
//!
//! * An [`EpochCount`] counts the elements of one *epoch*: those popped by one owner over one region table.
//!   While the epoch lasts its owner counts plainly, in its private memory, and other threads subtract from
//!   the shared word. When the epoch ends the owner *folds* its balance into the word; from then on
//!   everybody uses the word, and whoever brings it to zero releases what the epoch pins.
//! * A [`Gate`] counts the epochs that are alive and the program's explicit increments. Closing it starts a
//!   drain; whoever brings a closed gate to zero tells the internal thread.

use crate::sync::{AtomicU64, Ordering};

/// Far from both ends of the word, so that completions which other threads made before the fold (and that
/// make the count "negative") do not touch the flag.
const BIAS: u64 = 1 << 40;
const FOLDED: u64 = 1 << 63;

/// The shared word of an epoch.
#[derive(Debug)]
pub(crate) struct EpochCount(AtomicU64);

impl EpochCount {
    pub(crate) fn new() -> Self {
        EpochCount(AtomicU64::new(BIAS))
    }

    /// Any thread but the epoch's owner (or everybody after the fold): `n` elements are done. True for the
    /// one call after which nothing of the epoch is left; its caller must release the epoch.
    ///
    /// AcqRel: the last one sees what all others did with the memory that the epoch pins.
    pub(crate) fn complete(&self, n: u32) -> bool {
        let before = self.0.fetch_sub(u64::from(n), Ordering::AcqRel);
        before == (FOLDED | BIAS) + u64::from(n)
    }

    /// The owner, once: ends the epoch with `balance` elements that it popped and did not complete itself.
    /// True if nothing is left, as with [`complete`](Self::complete).
    pub(crate) fn fold(&self, balance: u64) -> bool {
        let before = self.0.fetch_add(balance + FOLDED, Ordering::AcqRel);
        before + balance == BIAS
    }
}

/// The gate is closed: a drain has ended, and nothing new may begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// A decrement without an increment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Underflow;

const DRAINING: u64 = 1 << 63;

/// What keeps a queue or a server busy: see the module's comment.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU64);

impl Gate {
    pub(crate) fn new() -> Self {
        Gate(AtomicU64::new(0))
    }

    /// Refused once a drain has reached zero; during a drain what is in flight may still split its work.
    pub(crate) fn inc(&self) -> Result<(), Closed> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word == DRAINING {
                return Err(Closed);
            }
            // Acquire pairs with `reopen`: what is begun sees the state after the last clean-up.
            match self
                .0
                .compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(seen) => word = seen,
            }
        }
    }

    /// True when the count has reached zero: somebody may be waiting for that.
    pub(crate) fn dec(&self) -> Result<bool, Underflow> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & !DRAINING == 0 {
                return Err(Underflow);
            }
            // AcqRel: whoever sees zero (through `is_idle`) sees everything that was in flight finished.
            match self
                .0
                .compare_exchange_weak(word, word - 1, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return Ok((word - 1) & !DRAINING == 0),
                Err(seen) => word = seen,
            }
        }
    }

    /// Starts a drain. True if there is nothing to wait for.
    pub(crate) fn close(&self) -> bool {
        self.0.fetch_or(DRAINING, Ordering::AcqRel) & !DRAINING == 0
    }

    /// Ends a drain: new work may begin. Release pairs with the Acquire of `inc`.
    pub(crate) fn reopen(&self) {
        self.0.fetch_and(!DRAINING, Ordering::Release);
    }

    /// Acquire pairs with `dec`.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire) & !DRAINING
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.count() == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_an_epoch_is_told_once() {
        let epoch = EpochCount::new();
        assert!(!epoch.complete(2), "before the fold nobody is last");
        assert!(!epoch.fold(5), "three are left");
        assert!(!epoch.complete(1));
        assert!(epoch.complete(2));
    }

    #[test]
    fn folding_an_epoch_that_others_completed_is_last() {
        let epoch = EpochCount::new();
        epoch.complete(3);
        assert!(epoch.fold(3));
        assert!(EpochCount::new().fold(0));
    }

    #[test]
    fn a_closed_gate_admits_only_while_something_is_in_flight() {
        let gate = Gate::new();
        gate.inc().unwrap();
        assert!(!gate.close());
        gate.inc().unwrap();
        assert_eq!(gate.dec(), Ok(false));
        assert_eq!(gate.dec(), Ok(true));
        assert_eq!(gate.inc(), Err(Closed));
        assert_eq!(gate.dec(), Err(Underflow));
        gate.reopen();
        gate.inc().unwrap();
        assert_eq!(gate.count(), 1);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::{Arc, AtomicBool, AtomicU32};
    use loom::cell::UnsafeCell;
    use loom::thread;

    /// Two elements are popped; one is completed by another thread, one by the owner (or by a third thread
    /// after the fold). Exactly one of them releases the epoch, after all of them are through.
    #[test]
    fn one_releases_the_epoch_and_the_drain_is_seen() {
        loom::model(|| {
            struct Shared {
                epoch: EpochCount,
                gate: Gate,
                memory: UnsafeCell<u32>,
                released: AtomicU32,
                rung: AtomicBool,
            }
            fn release(shared: &Shared) {
                // Exclusive by then: loom checks it.
                shared.memory.with_mut(|p| unsafe { *p = 0 });
                shared.released.fetch_add(1, Ordering::Relaxed);
                if shared.gate.dec() == Ok(true) {
                    shared.rung.store(true, Ordering::Release);
                }
            }
            let shared = Arc::new(Shared {
                epoch: EpochCount::new(),
                gate: Gate::new(),
                memory: UnsafeCell::new(7),
                released: AtomicU32::new(0),
                rung: AtomicBool::new(false),
            });
            shared.gate.inc().unwrap();
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        shared.memory.with(|p| unsafe { assert_eq!(*p, 7) });
                        if shared.epoch.complete(1) {
                            release(&shared);
                        }
                    })
                })
                .collect();
            // The owner popped three and completed one.
            shared.memory.with(|p| unsafe { assert_eq!(*p, 7) });
            if shared.epoch.fold(2) {
                release(&shared);
            }
            let idle = shared.gate.close();
            if idle {
                // The internal thread unmaps.
                shared.memory.with_mut(|p| unsafe { *p = 1 });
            }
            for other in others {
                other.join().unwrap();
            }
            assert_eq!(shared.released.load(Ordering::Relaxed), 1);
            assert!(idle || shared.rung.load(Ordering::Acquire));
            assert_eq!(shared.gate.inc(), Err(Closed));
        });
    }

    /// The internal thread cleans up behind a closed gate; work that begins before or after has the memory to
    /// itself.
    #[test]
    fn nothing_is_in_flight_between_close_and_reopen() {
        loom::model(|| {
            let shared = Arc::new((Gate::new(), UnsafeCell::new(0u32)));
            let other = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if shared.0.inc().is_ok() {
                        shared.1.with(|p| unsafe { std::ptr::read_volatile(p) });
                        shared.0.dec().unwrap();
                    }
                })
            };
            if shared.0.close() || shared.0.is_idle() {
                shared.1.with_mut(|p| unsafe { *p += 1 });
                shared.0.reopen();
            }
            other.join().unwrap();
        });
    }
}

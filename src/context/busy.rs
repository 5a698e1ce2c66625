//! When busy polling pays.
//!
//! Looking at the rings for a while before sleeping spares a wake-up when the driver's next request comes soon
//! and from another CPU. Where it does not (the driver waits for this very CPU, or takes its time), the look is
//! paid for in vain. So an account is kept: a look that finds something earns what a wake-up costs, one that
//! finds nothing costs the time it took. While the account is overdrawn, each vain look is followed by a growing
//! number of rounds that sleep at once.

use std::time::Duration;

use crate::sync::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// Rounds without polling after many looks for nothing: the look then costs next to nothing on average.
const LONGEST_PAUSE: u32 = 1024;

/// What a wake-up costs: between 3 µs on one CPU and 13 µs across two.
const EARNED_NS: i64 = 8_000;
/// As far as the account goes in either direction, so that a change of the load is soon noticed.
const ACCOUNT_NS: i64 = 64_000;

/// Written by the dispatcher, but for the limit.
#[derive(Debug)]
pub(super) struct BusyPoll {
    max_ns: AtomicU64,
    /// Rounds to sit out.
    pause: AtomicU32,
    /// The last pause.
    penalty: AtomicU32,
    account_ns: AtomicI64,
}

impl BusyPoll {
    pub(super) fn new() -> Self {
        BusyPoll {
            max_ns: AtomicU64::new(0),
            pause: AtomicU32::new(0),
            penalty: AtomicU32::new(0),
            account_ns: AtomicI64::new(0),
        }
    }

    pub(super) fn set_max(&self, max: Duration) {
        let ns = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        self.max_ns.store(ns, Ordering::Relaxed);
        self.pause.store(0, Ordering::Relaxed);
        self.penalty.store(0, Ordering::Relaxed);
        self.account_ns.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_on(&self) -> bool {
        self.max_ns.load(Ordering::Relaxed) > 0
    }

    /// How long to look in this round; `None`: not at all.
    pub(super) fn window(&self) -> Option<Duration> {
        let max = self.max_ns.load(Ordering::Relaxed);
        let pause = self.pause.load(Ordering::Relaxed);
        if pause > 0 {
            self.pause.store(pause - 1, Ordering::Relaxed);
            return None;
        }
        (max > 0).then(|| Duration::from_nanos(max))
    }

    /// What the look was good for.
    pub(super) fn looked(&self, found: bool) {
        let cost = self.max_ns.load(Ordering::Relaxed).min(ACCOUNT_NS as u64) as i64;
        let change = if found { EARNED_NS } else { -cost };
        let account =
            (self.account_ns.load(Ordering::Relaxed) + change).clamp(-ACCOUNT_NS, ACCOUNT_NS);
        self.account_ns.store(account, Ordering::Relaxed);
        if account >= 0 {
            self.penalty.store(0, Ordering::Relaxed);
        } else if !found {
            let penalty = (self.penalty.load(Ordering::Relaxed) * 2).clamp(1, LONGEST_PAUSE);
            self.penalty.store(penalty, Ordering::Relaxed);
            self.pause.store(penalty, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `rounds` look, when every `good`th look of `of` finds something.
    fn looks(busy: &BusyPoll, rounds: u32, good: u32, of: u32) -> u32 {
        let mut looks = 0;
        for _ in 0..rounds {
            if busy.window().is_some() {
                busy.looked(looks % of < good);
                looks += 1;
            }
        }
        looks
    }

    #[test]
    fn off_until_there_is_a_window() {
        let busy = BusyPoll::new();
        assert!(busy.window().is_none() && !busy.is_on());
        busy.set_max(Duration::from_micros(32));
        assert_eq!(busy.window(), Some(Duration::from_micros(32)));
    }

    #[test]
    fn vain_looks_become_rare_and_good_ones_end_that() {
        let busy = BusyPoll::new();
        busy.set_max(Duration::from_micros(32));
        let vain = looks(&busy, 10_000, 0, 1);
        assert!((10..30).contains(&vain), "{vain}");
        let good = looks(&busy, 10_000, 1, 1);
        assert!(good > 8_000, "{good}");
    }

    #[test]
    fn looks_that_pay_every_other_time_do_not_pay() {
        let busy = BusyPoll::new();
        busy.set_max(Duration::from_micros(32));
        let half = looks(&busy, 10_000, 1, 2);
        assert!(half < 100, "{half}");
        busy.set_max(Duration::from_micros(32));
        let most = looks(&busy, 10_000, 9, 10);
        assert!(most > 9_000, "{most}");
    }
}

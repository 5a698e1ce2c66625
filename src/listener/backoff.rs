//! When to try again after a failure.

use std::time::{Duration, Instant};

pub(super) const FIRST_DELAY: Duration = Duration::from_millis(10);
pub(super) const LAST_DELAY: Duration = Duration::from_secs(1);

/// A pause that doubles with each failure, from 10 ms up to 1 s.
#[derive(Debug)]
pub(super) struct Backoff {
    due: Option<Instant>,
    delay: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            due: None,
            delay: FIRST_DELAY,
        }
    }
}

impl Backoff {
    /// Whether no pause is on.
    pub(super) fn is_idle(&self) -> bool {
        self.due.is_none()
    }

    /// Whether the pause, if there is one, is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// What is left of the pause.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// Starts a pause, twice as long as the last one unless that ended long
    /// ago: then things went well in between.
    pub(super) fn postpone(&mut self, now: Instant) {
        if self.due.is_some_and(|due| now >= due + LAST_DELAY) {
            self.delay = FIRST_DELAY;
        }
        self.due = Some(now + self.delay);
        self.delay = (self.delay * 2).min(LAST_DELAY);
    }

    /// Ends the pause.
    pub(super) fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        assert!(backoff.is_due(now) && backoff.is_idle());
        for expected in [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000] {
            backoff.postpone(now);
            let left = backoff.remaining(now).expect("a pause");
            assert_eq!(left.as_millis(), expected);
            assert!(!backoff.is_due(now + left - Duration::from_nanos(1)));
            now += left;
            assert!(backoff.is_due(now) && !backoff.is_idle());
            assert_eq!(backoff.remaining(now), Some(Duration::ZERO));
        }
    }

    #[test]
    fn a_good_time_in_between_starts_over() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.postpone(now);
        backoff.postpone(now);
        backoff.postpone(now + Duration::from_secs(60));
        let left = backoff.remaining(now + Duration::from_secs(60));
        assert_eq!(left, Some(FIRST_DELAY));
        backoff.reset();
        assert!(backoff.is_idle());
    }
}

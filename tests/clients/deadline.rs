//! Waits that end: with what was waited for, or with a panic that says what did not come.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A point in time after which a wait has failed.
#[derive(Clone, Copy)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub fn after(limit: Duration) -> Self {
        Deadline {
            at: Instant::now() + limit,
            limit,
        }
    }

    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Panics when the time is over.
    #[track_caller]
    pub fn check(&self, what: &str) {
        assert!(!self.left().is_zero(), "no {what} within {:?}", self.limit);
    }
}

/// Looks at `done` every millisecond until it is true.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Deadline::after(limit);
    while !done() {
        deadline.check(what);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether `fd` becomes readable before the deadline.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: &Deadline) -> bool {
    loop {
        let left = deadline.left();
        // One more millisecond: a time-out rounded down to 0 would spin until the deadline.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(0) if deadline.left().is_zero() => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return true,
            Err(e) => panic!("poll: {e}"),
        }
    }
}

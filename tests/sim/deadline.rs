//! Bounded waiting: every wait in a test ends, and says what it waited for.

use std::fmt::Debug;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A point in time after which a wait fails.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    pub fn after(limit: Duration) -> Self {
        Deadline {
            start: Instant::now(),
            limit,
        }
    }

    pub fn secs(secs: u64) -> Self {
        Self::after(Duration::from_secs(secs))
    }

    pub fn limit(&self) -> Duration {
        self.limit
    }

    pub fn remaining(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    pub fn expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Waits for `events` on `fd`. Returns the events that came, or 0 when
    /// the deadline passed first.
    pub fn poll_fd(&self, fd: RawFd, events: i16) -> io::Result<i16> {
        loop {
            let mut entry = libc::pollfd {
                fd,
                events,
                revents: 0,
            };
            // Rounded up, so that a wait never turns into a spin at its end.
            let millis = self.remaining().as_micros().div_ceil(1000);
            let timeout = i32::try_from(millis).unwrap_or(i32::MAX);
            // SAFETY: `entry` is one valid pollfd, and the count says one.
            let ready = unsafe { libc::poll(&mut entry, 1, timeout) };
            match ready {
                1.. => return Ok(entry.revents),
                0 if self.expired() => return Ok(0),
                0 => {}
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// Polls `probe` until it returns `want`, for state that offers nothing to
/// wait on (`/proc`, counters). Panics with the last value at the deadline.
#[track_caller]
pub fn eventually<T: PartialEq + Debug>(
    what: &str,
    deadline: Deadline,
    want: T,
    mut probe: impl FnMut() -> T,
) {
    loop {
        let seen = probe();
        if seen == want {
            return;
        }
        assert!(
            !deadline.expired(),
            "{what}: still {seen:?} after {:?}, want {want:?}",
            deadline.limit()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Aborts the process when it is still alive at the deadline. For calls
/// into the library that would hang if a promise were broken: no deadline of
/// the caller's could end those.
pub struct HangGuard {
    cancel: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl HangGuard {
    pub fn new(what: &str, limit: Duration) -> Self {
        let (cancel, cancelled) = mpsc::channel();
        let what = what.to_owned();
        let thread = thread::Builder::new()
            .name("sim-hang-guard".into())
            .spawn(move || {
                if cancelled.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // Not eprintln: the test harness would swallow that.
                    let text = format!("hang guard: {what} did not finish within {limit:?}\n");
                    let _ = io::stderr().write_all(text.as_bytes());
                    std::process::abort();
                }
            })
            .expect("starting the hang guard's thread");
        HangGuard {
            cancel: Some(cancel),
            thread: Some(thread),
        }
    }

    pub fn secs(what: &str, secs: u64) -> Self {
        Self::new(what, Duration::from_secs(secs))
    }
}

impl Drop for HangGuard {
    fn drop(&mut self) {
        drop(self.cancel.take());
        if let Some(thread) = self.thread.take() {
            // A panic there can only mean that stderr is gone.
            let _ = thread.join();
        }
    }
}

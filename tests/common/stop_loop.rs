//! A foreign event loop, as an application would have one: poll(2) over a list.

#![allow(dead_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vu_server::{Error, EventLoop, Result, Watch};

use super::stop::lock;

#[derive(Default)]
pub struct PollLoop {
    watches: Mutex<Vec<(RawFd, u32, Watch)>>,
    pub destroyed: AtomicUsize,
}

impl PollLoop {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The loop as a context sees it; `can_poll` says whether it offers `poll`.
    pub fn adapter(self: &Arc<Self>, can_poll: bool) -> Box<dyn EventLoop> {
        Box::new(Adapter {
            inner: self.clone(),
            can_poll,
        })
    }

    pub fn watches(&self) -> usize {
        lock(&self.watches).len()
    }

    /// One iteration.
    pub fn turn(&self, timeout: Duration) {
        let watches: Vec<_> = lock(&self.watches).clone();
        let mut fds: Vec<_> = watches
            .iter()
            .map(|&(fd, events, _)| libc::pollfd {
                fd,
                events: events as i16,
                revents: 0,
            })
            .collect();
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `fds` is an array of as many entries as the count says.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
        assert!(ready >= 0, "poll: {}", std::io::Error::last_os_error());
        for (fd, (_, _, watch)) in fds.iter().zip(watches) {
            if fd.revents != 0 {
                watch.ready(fd.revents as u32);
            }
        }
    }

    /// Turns until `done`, which something must ring the loop for or that comes true within its short naps.
    #[track_caller]
    pub fn turn_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + super::stop::SOON;
        while !done() {
            assert!(
                std::time::Instant::now() < deadline,
                "{what}: not within {:?}",
                super::stop::SOON
            );
            self.turn(Duration::from_millis(5));
        }
    }
}

struct Adapter {
    inner: Arc<PollLoop>,
    can_poll: bool,
}

impl EventLoop for Adapter {
    fn set_watch(&self, fd: RawFd, events: u32, watch: Watch) -> Result<()> {
        if fd < 0 {
            return Err(Error::new(libc::EBADF, format!("fd {fd}: negative")));
        }
        let mut watches = lock(&self.inner.watches);
        watches.retain(|&(other, ..)| other != fd);
        watches.push((fd, events, watch));
        Ok(())
    }

    fn remove_watch(&self, fd: RawFd) {
        let mut watches = lock(&self.inner.watches);
        let before = watches.len();
        watches.retain(|&(other, ..)| other != fd);
        assert_eq!(watches.len() + 1, before, "fd {fd} was not watched");
        // SAFETY: fcntl only asks about the number.
        assert!(
            unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0,
            "fd {fd} was closed before its watch went"
        );
    }

    fn can_poll(&self) -> bool {
        self.can_poll
    }

    fn poll(&self, timeout: Duration) -> Result<()> {
        assert!(self.can_poll, "poll was called on a loop that has none");
        self.inner.turn(timeout);
        Ok(())
    }

    fn destroy(&self) {
        self.inner.destroyed.fetch_add(1, Ordering::Relaxed);
    }
}

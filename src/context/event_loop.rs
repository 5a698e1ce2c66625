//! The loop behind a context: the application's, the embedded one, or none.

use std::os::fd::RawFd;
use std::time::Duration;

use crate::error::Result;

use super::epoll::EpollLoop;
use super::watch::Watch;

/// An event loop of the application, as a context drives it.
///
/// Every method is called on the thread that owns the context, inside a dispatch of it (or inside stop,
/// detach or free called on that thread). None but [`poll`](Self::poll) may call the library.
pub trait EventLoop: Send + Sync {
    /// Watches `fd`, or replaces the whole event mask of one that is watched. Level-triggered: when the
    /// descriptor is ready, the loop calls [`Watch::ready`]. An error breaks the ring concerned, and
    /// [`ring_broken`](crate::Device::ring_broken) hears its errno.
    ///
    /// # Errors
    /// Whatever keeps the loop from watching.
    fn set_watch(&self, fd: RawFd, events: u32, watch: Watch) -> Result<()>;

    /// Stops watching; always before the descriptor is closed.
    fn remove_watch(&self, fd: RawFd);

    /// The loop can run an iteration of itself: [`poll`](Self::poll) works.
    fn can_poll(&self) -> bool {
        false
    }

    /// Runs one iteration, waiting up to `timeout` for the first event.
    ///
    /// # Errors
    /// Whatever keeps the loop from running.
    fn poll(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }

    /// The context has been freed; called exactly once, no other call follows.
    fn destroy(&self) {}
}

pub(super) enum Kind {
    Foreign(Box<dyn EventLoop>),
    Epoll(EpollLoop),
    Polled,
}

impl Kind {
    pub(super) fn set_watch(&self, fd: RawFd, events: u32, watch: Watch) -> Result<()> {
        match self {
            Kind::Foreign(event_loop) => event_loop.set_watch(fd, events, watch),
            Kind::Epoll(epoll) => epoll.set_watch(fd, events, watch.0),
            Kind::Polled => Ok(()),
        }
    }

    pub(super) fn remove_watch(&self, fd: RawFd) {
        match self {
            Kind::Foreign(event_loop) => event_loop.remove_watch(fd),
            Kind::Epoll(epoll) => epoll.remove_watch(fd),
            Kind::Polled => {}
        }
    }
}

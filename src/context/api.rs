//! The public handle of a context.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sync::Arc;

use super::core::ContextCore;
use super::epoll::EpollLoop;
use super::event_loop::{EventLoop, Kind};
use super::watch::{Target, UserWatch};

/// Stands for one event loop of the application.
///
/// Its *owner* is the thread that created it, [adopted](Self::adopt) it or last dispatched it; what a thread owned
/// when it ended must be adopted before it is used. Every device callback runs on the owner, inside a dispatch (or
/// inside stop or detach called there). A context may serve queues of many servers.
#[derive(Debug)]
pub struct Context {
    core: Arc<ContextCore>,
}

impl Context {
    /// Wraps a loop of the application. On the loop's thread, or while the loop is not running.
    ///
    /// # Errors
    /// What the loop answers to the watch for the doorbell; `EMFILE`.
    pub fn foreign(event_loop: Box<dyn EventLoop>) -> Result<Self> {
        Ok(Context {
            core: ContextCore::new(Kind::Foreign(event_loop))?,
        })
    }

    /// The embedded loop over epoll.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`.
    pub fn epoll() -> Result<Self> {
        Ok(Context {
            core: ContextCore::new(Kind::Epoll(EpollLoop::new()?))?,
        })
    }

    /// A loop without descriptors: [`poll`](Self::poll) looks at everything, guest notifications stay off.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn polled() -> Result<Self> {
        Ok(Context {
            core: ContextCore::new(Kind::Polled)?,
        })
    }

    pub(crate) fn core(&self) -> &Arc<ContextCore> {
        &self.core
    }

    /// The calling thread becomes the owner, for a loop whose thread is gone or not running.
    ///
    /// # Errors
    /// `EBUSY` during a dispatch on another thread.
    pub fn adopt(&self) -> Result<()> {
        self.core.adopt()
    }

    /// Runs one round of an embedded epoll loop, waiting up to `timeout` (`None`: for ever) for something to
    /// do; how many descriptors were ready. May be nested inside a callback.
    ///
    /// # Errors
    /// `EBUSY` while another thread dispatches; `ENOTSUP` for other kinds.
    pub fn dispatch(&self, timeout: Option<Duration>) -> Result<usize> {
        let timeout_ms = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        self.core.dispatch(timeout_ms)
    }

    /// Dispatches until [`quit`](Self::quit).
    ///
    /// # Errors
    /// As [`dispatch`](Self::dispatch).
    pub fn run(&self) -> Result<()> {
        self.core.run()
    }

    /// Ends the running (or the next) [`run`](Self::run). Any thread; async-signal-safe.
    pub fn quit(&self) {
        self.core.request_quit();
    }

    /// Looks at the rings for up to `max` before it sleeps, as long as that pays; zero turns it off. Owner.
    ///
    /// # Errors
    /// `ENOTSUP` for other kinds than the embedded epoll loop.
    pub fn set_busy_poll(&self, max: Duration) -> Result<()> {
        if !self.core.is_epoll() {
            return Err(Error::new(
                libc::ENOTSUP,
                "busy polling: not in this kind of context",
            ));
        }
        self.core.busy.set_max(max);
        Ok(())
    }

    /// One round of a polled context; how many queues had work.
    ///
    /// # Errors
    /// `EBUSY` while another thread polls; `ENOTSUP` for other kinds.
    pub fn poll(&self) -> Result<usize> {
        self.core.poll_rings()
    }

    /// Watches a descriptor of the program's own in an embedded epoll loop, or replaces its watch. The
    /// descriptor must be [unwatched](Self::unwatch) before it is closed. Owner, or while not running.
    ///
    /// # Errors
    /// `ENOTSUP` for other kinds; what epoll answers.
    pub fn watch(
        &self,
        fd: RawFd,
        events: u32,
        callback: impl Fn(u32) + Send + Sync + 'static,
    ) -> Result<()> {
        self.watch_shared(fd, events, Arc::new(callback))
    }

    pub(crate) fn watch_shared(&self, fd: RawFd, events: u32, callback: UserWatch) -> Result<()> {
        if !self.core.is_epoll() {
            return Err(Error::new(
                libc::ENOTSUP,
                "watch: not in this kind of context",
            ));
        }
        if fd < 0 {
            return Err(Error::new(libc::EBADF, format!("fd {fd}: negative")));
        }
        if self.core.user_slot(fd).is_some() {
            self.unwatch(fd)?;
        }
        self.core
            .watch(fd, events, Target::User(fd, callback))
            .map(drop)
    }

    /// Ends a watch of the program's own.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    pub fn unwatch(&self, fd: RawFd) -> Result<()> {
        let slot = self
            .core
            .user_slot(fd)
            .ok_or_else(|| Error::new(libc::ENOENT, format!("fd {fd}: not watched")))?;
        self.core.unwatch(fd, &slot);
        Ok(())
    }

    /// Publishes what is staged in this context's queues. Owner.
    ///
    /// # Errors
    /// `EXDEV` on another thread.
    pub fn flush(&self) -> Result<()> {
        match self.core.hold() {
            Some(_held) if self.core.is_owned_here() => {
                self.core.flush();
                Ok(())
            }
            _ => Err(Error::new(libc::EXDEV, "not the owner of the context")),
        }
    }

    /// Stages a completion outside of a callback; see [`Virtqueue::stage`](crate::Virtqueue::stage). On another
    /// thread than the owner, and for an element of a queue that does not live here, it is
    /// [`Element::complete`](crate::Element::complete).
    ///
    /// # Errors
    /// As there.
    pub fn stage(&self, element: crate::Element, written: u32) -> Result<()> {
        let held = self.core.hold();
        let stage = held.is_some() && element.queue().owner.load().held_by(self.core.id);
        element.finish(written, stage)
    }

    /// Frees the context. On the loop's thread, or while the loop is not running.
    ///
    /// # Errors
    /// `EBUSY`, with the context, while a server is attached or during a dispatch.
    pub fn free(self) -> std::result::Result<(), (Error, Self)> {
        match self.core.free() {
            Ok(()) => Ok(()),
            Err(error) => Err((error, self)),
        }
    }
}

/// For the embedded epoll loop: readable when there is something to dispatch.
impl Context {
    /// The pollable descriptor of an embedded epoll loop.
    ///
    /// # Errors
    /// `ENOTSUP` for other kinds.
    pub fn fd(&self) -> Result<BorrowedFd<'_>> {
        match &self.core.kind {
            Kind::Epoll(epoll) => Ok(epoll.as_fd()),
            _ => Err(Error::new(libc::ENOTSUP, "fd: not in this kind of context")),
        }
    }
}

impl AsRawFd for Context {
    /// -1 for a context without a descriptor.
    fn as_raw_fd(&self) -> RawFd {
        self.fd().map_or(-1, |fd| fd.as_raw_fd())
    }
}

impl Drop for Context {
    /// Frees the context if it can be freed. One that is in use stays, with what it watches, as long as it has a
    /// queue; a server that is merely attached to it waits, as for a loop that never runs, to be attached elsewhere
    /// or stopped.
    fn drop(&mut self) {
        if !self.core.is_freed() {
            // There is nobody to tell.
            let _ = self.core.free();
        }
    }
}

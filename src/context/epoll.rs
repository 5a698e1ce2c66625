//! The embedded loop: epoll behind the interface of a foreign one.

use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::error::{Error, Result};
use crate::sync::{Arc, Mutex};

use super::watch::WatchSlot;

const EVENTS_PER_WAIT: usize = 64;

pub(super) struct EpollLoop {
    epoll: Epoll,
    /// By descriptor. An event of a batch whose watch was removed meanwhile finds no slot here; one whose
    /// number was taken by another watch is a spurious wake-up of that.
    slots: Mutex<Vec<Option<Arc<WatchSlot>>>>,
}

impl EpollLoop {
    pub(super) fn new() -> Result<Self> {
        Ok(EpollLoop {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            slots: Mutex::new(Vec::new()),
        })
    }

    /// `events` are poll(2) bits; epoll's have the same values.
    pub(super) fn set_watch(&self, fd: RawFd, events: u32, slot: Arc<WatchSlot>) -> Result<()> {
        let index = usize::try_from(fd)
            .map_err(|_| Error::new(libc::EBADF, format!("fd {fd}: negative")))?;
        let mut event =
            EpollEvent::new(EpollFlags::from_bits_truncate(events as i32), index as u64);
        match self.epoll.add(borrow(fd), event) {
            Err(Errno::EEXIST) => self.epoll.modify(borrow(fd), &mut event)?,
            other => other?,
        }
        let mut slots = self.slots.lock();
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index] = Some(slot);
        Ok(())
    }

    pub(super) fn remove_watch(&self, fd: RawFd) {
        // Whoever watches has not closed the descriptor, so this fails for none that is in the set.
        let _ = self.epoll.delete(borrow(fd));
        if let Some(slot) = usize::try_from(fd)
            .ok()
            .and_then(|index| self.slots.lock().get_mut(index).map(std::mem::take))
        {
            drop(slot);
        }
    }

    /// Waits and calls `ready` for each event; how many there were. An interruption is no event.
    pub(super) fn wait(
        &self,
        timeout_ms: i32,
        before_events: impl FnOnce(),
        ready: impl Fn(Arc<WatchSlot>, u32),
    ) -> Result<usize> {
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
        let timeout = EpollTimeout::try_from(timeout_ms.max(-1)).unwrap_or(EpollTimeout::NONE);
        let waited = self.epoll.wait(&mut events, timeout);
        before_events();
        let n = match waited {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in &events[..n] {
            let slot = self
                .slots
                .lock()
                .get(event.data() as usize)
                .and_then(Clone::clone);
            if let Some(slot) = slot {
                ready(slot, event.events().bits() as u32);
            }
        }
        Ok(n)
    }
}

impl AsFd for EpollLoop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: only lent to an epoll_ctl call, which answers EBADF for a number that is not open.
    unsafe { BorrowedFd::borrow_raw(fd.max(0)) }
}

//! The states of a server and the legal transitions.
//!
//! | state    | start       | request_stop  | stop            | attach, detach | free        |
//! |----------|-------------|---------------|-----------------|----------------|-------------|
//! | New      | → Running   | 0, stays      | 0, stays        | `ESHUTDOWN`    | → gone      |
//! | Running  | `EBUSY`     | → Stopping    | → … → Stopped   | 0              | `EBUSY`     |
//! | Stopping | `EBUSY`     | 0, stays      | joins, Stopped  | `ESHUTDOWN`    | `EBUSY`     |
//! | Stopped  | → Running   | 0, stays      | 0, stays        | `ESHUTDOWN`    | → gone      |
//!
//! Inside a callback of the same server, start, stop, detach and free answer `EDEADLK` whatever the state is;
//! free is legal inside `stopped`, which comes in state Stopped.
//!
//! The internal thread alone makes the step from Stopping to Stopped, as its last act.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, Ordering};

use crate::context::ContextCore;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    New,
    Running,
    Stopping,
    Stopped,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The stop was asked for without waiting, so `stopped` is owed.
    owes_stopped: bool,
    /// Loops that run on behalf of a blocking stop: they are rung when it is over.
    waiting: Vec<Arc<ContextCore>>,
}

#[derive(Debug)]
pub(crate) struct Lifecycle {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// The same as `state == Stopping`, for places that look at it often.
    stopping: AtomicBool,
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Lifecycle {
            inner: Mutex::new(Inner {
                state: State::New,
                owes_stopped: false,
                waiting: Vec::new(),
            }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.inner.lock().state
    }

    /// Acquire pairs with the Release of `begin_stop`.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn check_running(&self) -> Result<()> {
        self.while_running(|| Ok(()))
    }

    /// Runs `f` if the server is running, and keeps it so meanwhile: what `f` does comes before the clean-up at
    /// the end of a stop. `f` must not come back here. Whoever changes a target does it in here.
    pub(crate) fn while_running<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let inner = self.inner.lock();
        match inner.state {
            State::Running => f(),
            state => Err(Error::new(
                libc::ESHUTDOWN,
                format!("the server is not running, it is {state:?}"),
            )),
        }
    }

    pub(crate) fn check_idle(&self) -> Result<()> {
        match self.state() {
            State::New | State::Stopped => Ok(()),
            state => Err(Error::new(libc::EBUSY, format!("the server is {state:?}"))),
        }
    }

    /// New or Stopped → Running.
    pub(crate) fn begin(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        match inner.state {
            State::New | State::Stopped => {
                inner.state = State::Running;
                inner.owes_stopped = false;
                self.stopping.store(false, Ordering::Release);
                Ok(())
            }
            state => Err(Error::new(libc::EBUSY, format!("the server is {state:?}"))),
        }
    }

    /// Running → Stopping. False if there is nothing to stop.
    pub(crate) fn begin_stop(&self, owes_stopped: bool) -> bool {
        let mut inner = self.inner.lock();
        if inner.state == State::Running {
            inner.state = State::Stopping;
            inner.owes_stopped = owes_stopped;
            self.stopping.store(true, Ordering::Release);
        }
        inner.state == State::Stopping
    }

    pub(crate) fn owes_stopped(&self) -> bool {
        self.inner.lock().owes_stopped
    }

    /// Stopping (or Running, if the thread could not be started) → Stopped.
    pub(crate) fn end(&self) {
        self.end_with(|| {});
    }

    /// As [`end`](Self::end), with `last_act` in the same step. It must not come back here.
    pub(crate) fn end_with(&self, last_act: impl FnOnce()) {
        let waiting = {
            let mut inner = self.inner.lock();
            last_act();
            inner.state = State::Stopped;
            self.stopping.store(false, Ordering::Release);
            std::mem::take(&mut inner.waiting)
        };
        self.changed.notify_all();
        for context in waiting {
            context.ring();
        }
    }

    /// Runs `f` while nobody else changes a target. `f` must not come back here.
    pub(crate) fn undisturbed<R>(&self, f: impl FnOnce() -> R) -> R {
        let _inner = self.inner.lock();
        f()
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state(), State::New | State::Stopped)
    }

    /// Runs `f` if the server is idle, and keeps it so meanwhile. `f` must not come back here.
    pub(crate) fn while_idle(&self, f: impl FnOnce()) {
        let inner = self.inner.lock();
        if matches!(inner.state, State::New | State::Stopped) {
            f();
        }
    }

    /// `context` will be polled on behalf of a stop: ring it when that is over. False if it is over.
    pub(crate) fn ring_when_stopped(&self, context: &Arc<ContextCore>) -> bool {
        let mut inner = self.inner.lock();
        if inner.state != State::Stopping {
            return false;
        }
        if !inner
            .waiting
            .iter()
            .any(|other| Arc::ptr_eq(other, context))
        {
            inner.waiting.push(context.clone());
        }
        true
    }

    /// Waits for the end of a stop, up to `timeout`. True if it has ended.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let mut inner = self.inner.lock();
        if inner.state == State::Stopping {
            self.changed.wait_for(&mut inner, timeout);
        }
        inner.state != State::Stopping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_transitions() {
        let life = Lifecycle::new();
        assert!(!life.begin_stop(true), "nothing to stop");
        assert!(life.check_running().is_err() && life.check_idle().is_ok());
        life.begin().unwrap();
        assert_eq!(life.begin().unwrap_err().errno(), libc::EBUSY);
        assert_eq!(life.check_idle().unwrap_err().errno(), libc::EBUSY);
        assert!(life.begin_stop(true) && life.is_stopping());
        assert!(life.begin_stop(false), "joins");
        assert!(life.owes_stopped(), "who came first decides");
        assert_eq!(life.begin().unwrap_err().errno(), libc::EBUSY);
        assert!(!life.wait(Duration::ZERO));
        life.end();
        assert!(life.wait(Duration::ZERO) && life.is_idle() && !life.is_stopping());
        life.begin().unwrap();
    }
}

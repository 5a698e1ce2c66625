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
    /// How often the server was started: whoever waits for the end of one run is not held up by the next.
    run: u64,
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
                run: 0,
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

    /// Runs `f` if the server is running, and keeps it so meanwhile: what `f` changes is found by the stop that
    /// follows. `f` must not come back here.
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

    /// New or Stopped → Running; the number of the run.
    pub(crate) fn begin(&self) -> Result<u64> {
        let mut inner = self.inner.lock();
        match inner.state {
            State::New | State::Stopped => {
                inner.state = State::Running;
                inner.run += 1;
                inner.owes_stopped = false;
                self.stopping.store(false, Ordering::Release);
                Ok(inner.run)
            }
            state => Err(Error::new(libc::EBUSY, format!("the server is {state:?}"))),
        }
    }

    /// Running → Stopping. The number of the run that is over when the stop is.
    pub(crate) fn begin_stop(&self, owes_stopped: bool) -> u64 {
        let mut inner = self.inner.lock();
        if inner.state == State::Running {
            inner.state = State::Stopping;
            inner.owes_stopped = owes_stopped;
            self.stopping.store(true, Ordering::Release);
        }
        inner.run
    }

    /// The stop of this run is complete, or was not begun.
    pub(crate) fn is_over(&self, run: u64) -> bool {
        self.wait(run, Duration::ZERO)
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
    pub(crate) fn ring_when_stopped(&self, run: u64, context: &Arc<ContextCore>) -> bool {
        let mut inner = self.inner.lock();
        if !inner.stops(run) {
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

    /// Waits for the end of a stop, up to `timeout`, or for no reason at all. True if it has ended.
    pub(crate) fn wait(&self, run: u64, timeout: Duration) -> bool {
        let mut inner = self.inner.lock();
        if inner.stops(run) && !timeout.is_zero() {
            self.changed.wait_for(&mut inner, timeout);
        }
        !inner.stops(run)
    }
}

impl Inner {
    fn stops(&self, run: u64) -> bool {
        self.state == State::Stopping && self.run == run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_transitions() {
        let life = Lifecycle::new();
        assert!(life.is_over(life.begin_stop(true)), "nothing to stop");
        assert!(life.while_running(|| Ok(())).is_err() && life.check_idle().is_ok());
        let run = life.begin().unwrap();
        assert!(life.while_running(|| Ok(())).is_ok());
        assert_eq!(life.begin().unwrap_err().errno(), libc::EBUSY);
        assert_eq!(life.check_idle().unwrap_err().errno(), libc::EBUSY);
        assert_eq!(life.begin_stop(true), run);
        assert!(life.is_stopping() && !life.is_over(run));
        assert_eq!(life.begin_stop(false), run, "joins");
        assert!(life.while_running(|| Ok(())).is_err());
        assert!(life.owes_stopped(), "who came first decides");
        assert_eq!(life.begin().unwrap_err().errno(), libc::EBUSY);
        assert!(!life.wait(run, Duration::from_millis(1)));
        life.end();
        assert!(life.is_over(run) && life.is_idle() && !life.is_stopping());
        life.begin().unwrap();
    }

    #[test]
    fn who_waits_for_one_run_is_not_held_up_by_the_next() {
        let life = Lifecycle::new();
        let first = life.begin().unwrap();
        life.begin_stop(false);
        life.end();
        let second = life.begin().unwrap();
        assert_eq!(life.begin_stop(false), second);
        assert!(life.is_over(first) && !life.is_over(second));
    }
}

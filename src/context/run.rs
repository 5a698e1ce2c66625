//! The embedded loops: epoll with adaptive busy polling, and the polled context without any descriptor.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sync::{Arc, Ordering};

use super::core::ContextCore;
use super::event_loop::Kind;
use super::serve::Scope;

/// How often the window is begun anew at most, so that rings which are never empty do not keep a round for ever.
const WINDOWS_A_ROUND: u32 = 64;
/// Looks at the rings between two looks at the descriptors.
const LOOKS_PER_POLL: u32 = 128;

impl ContextCore {
    fn unsupported(&self, what: &str) -> Error {
        Error::new(
            libc::ENOTSUP,
            format!("{what}: not in this kind of context"),
        )
    }

    /// One round of the embedded epoll loop; how many descriptors were ready. The caller may wait for the
    /// loop's descriptor afterwards.
    pub(crate) fn dispatch(self: &Arc<Self>, timeout_ms: i32) -> Result<usize> {
        let _dispatch = self.enter()?;
        let n = self.round(timeout_ms, || false)?;
        self.arm_for_a_pause();
        Ok(n)
    }

    /// One round; notifications may stay off until the next one. It does not sleep once it `is_over`: a nested
    /// dispatch may have answered the doorbell that said so.
    fn round(self: &Arc<Self>, timeout_ms: i32, is_over: impl Fn() -> bool) -> Result<usize> {
        let Kind::Epoll(epoll) = &self.kind else {
            return Err(self.unsupported("dispatch"));
        };
        self.flush();
        let did = self.read_mail(Scope::All) | self.serve_again();
        // What was done may be what the caller waits for. It need not be heard of again: mail that came after this
        // dispatch began did not ring.
        let timeout_ms = if did { 0 } else { timeout_ms };
        let found = self.busy_poll(timeout_ms)?;
        let mut timeout_ms = if found > 0 { 0 } else { timeout_ms };
        timeout_ms = self.arm(timeout_ms);
        self.flush();
        if !self.inner.lock().again.is_empty() {
            timeout_ms = 0;
        }
        if self.mailbox.sleep() || is_over() {
            timeout_ms = 0;
        }
        let n = epoll.wait(
            timeout_ms,
            || self.mailbox.wake_up(),
            |slot, revents| self.handle_slot(&slot, revents),
        )?;
        self.flush();
        self.read_mail(Scope::All);
        Ok(n + found)
    }

    /// Looks at the rings for a while before it sleeps; guest notifications are off meanwhile. How much it
    /// served.
    fn busy_poll(self: &Arc<Self>, timeout_ms: i32) -> Result<usize> {
        let Kind::Epoll(epoll) = &self.kind else {
            return Ok(0);
        };
        if timeout_ms == 0 {
            return Ok(0);
        }
        let Some(window) = self.busy.window() else {
            return Ok(0);
        };
        let mut until = Instant::now() + window;
        let last = until + window * WINDOWS_A_ROUND;
        let mut served = 0;
        loop {
            self.serve_again();
            for _ in 0..LOOKS_PER_POLL {
                let now_served = self.serve_ready();
                if now_served > 0 {
                    served += now_served;
                    self.flush();
                    until = (Instant::now() + window).min(last);
                }
                std::hint::spin_loop();
            }
            if self.quit.load(Ordering::Relaxed) || !self.mailbox.is_empty() {
                break;
            }
            let ready = epoll.wait(0, || {}, |slot, revents| self.handle_slot(&slot, revents))?;
            served += ready;
            self.flush();
            if Instant::now() >= until {
                break;
            }
        }
        self.busy.looked(served > 0);
        Ok(served)
    }

    /// Serves every held queue whose ring has something new; how many.
    fn serve_ready(self: &Arc<Self>) -> usize {
        let mut served = 0;
        let mut from = 0;
        while let Some((at, queue)) = self.next_ready(from) {
            self.serve(&queue);
            served += 1;
            from = at + 1;
        }
        served
    }

    /// Turns the notifications on that busy polling left off. The time-out that is right afterwards.
    fn arm(self: &Arc<Self>, timeout_ms: i32) -> i32 {
        let unarmed = self.inner.lock().unarmed.len();
        let mut timeout_ms = timeout_ms;
        // One at a time: a loop that nests in one's kick must not sleep while the others are off.
        for _ in 0..unarmed {
            let Some(queue) = self.inner.lock().unarmed.pop_front() else {
                break;
            };
            if queue.owner.load().held_by(self.id) && queue.rearm() {
                self.serve(&queue);
                timeout_ms = 0;
            }
        }
        timeout_ms
    }

    /// Leaves no ring with its notifications off: nobody knows when the next round comes. A ring that had
    /// something and is off again makes the loop's descriptor ready.
    fn arm_for_a_pause(self: &Arc<Self>) {
        if self.arm(-1) == 0 {
            self.ring();
        }
    }

    /// Runs the embedded epoll loop until [`quit`](Self::request_quit).
    pub(crate) fn run(self: &Arc<Self>) -> Result<()> {
        if !matches!(self.kind, Kind::Epoll(_)) {
            return Err(self.unsupported("run"));
        }
        let _dispatch = self.enter()?;
        while !self.take_quit() {
            // Acquire pairs with the Release in `request_quit`, which rings after it: who comes later wakes us.
            self.round(-1, || self.quit.load(Ordering::Acquire))?;
        }
        self.arm_for_a_pause();
        Ok(())
    }

    /// Whether to end. The request is consumed by the run that it ends.
    pub(crate) fn take_quit(&self) -> bool {
        // AcqRel pairs with the Release of `request_quit`.
        self.quit.swap(false, Ordering::AcqRel)
    }

    /// Async-signal-safe.
    pub(crate) fn request_quit(&self) {
        self.quit.store(true, Ordering::Release);
        self.ring();
    }

    /// One round of a polled context; how many queues had work.
    pub(crate) fn poll_rings(self: &Arc<Self>) -> Result<usize> {
        if !matches!(self.kind, Kind::Polled) {
            return Err(self.unsupported("poll"));
        }
        let _dispatch = self.enter()?;
        if self.mailbox.answer() {
            self.read_mail(Scope::All);
        }
        self.serve_again();
        Ok(self.serve_ready())
    }

    /// A blocking stop can run this loop.
    pub(crate) fn can_poll(&self) -> bool {
        match &self.kind {
            Kind::Foreign(event_loop) => event_loop.can_poll(),
            Kind::Epoll(_) | Kind::Polled => true,
        }
    }

    /// One iteration on behalf of a blocking stop: whatever the loop does.
    pub(crate) fn iterate(self: &Arc<Self>, timeout: Duration) -> Result<()> {
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        match &self.kind {
            Kind::Foreign(event_loop) => event_loop.poll(timeout),
            Kind::Epoll(_) => self.dispatch(timeout_ms).map(drop),
            Kind::Polled => self.poll_rings().map(drop),
        }
    }

    /// An iteration can wait for something to do.
    pub(crate) fn can_wait(&self) -> bool {
        !matches!(self.kind, Kind::Polled)
    }

    pub(crate) fn is_epoll(&self) -> bool {
        matches!(self.kind, Kind::Epoll(_))
    }

    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.kind, Kind::Foreign(_))
    }

    /// In a blocking stop, for a loop that cannot run itself: what [`Scope::Stopping`] allows.
    pub(crate) fn serve_stop(self: &Arc<Self>) -> Result<()> {
        let _dispatch = self.enter_briefly()?;
        self.read_mail(Scope::Stopping);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::context::{Context, Mail};
    use crate::device::{Device, Kick};
    use crate::server::Server;
    use crate::virtqueue::Virtqueue;

    struct Idle;

    impl Device for Idle {
        fn kick(&self, _: &mut Virtqueue<'_>) -> Kick {
            Kick::Done
        }
    }

    #[test]
    fn a_round_that_read_mail_does_not_wait_for_more() {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let context = Context::epoll().unwrap();
            let server = Server::builder().build(Idle).unwrap();
            let core = context.core();
            let _dispatch = core.enter().unwrap();
            // The context is awake, so nobody rings.
            core.post(Mail::Stream(server.shared().clone()));
            assert_eq!(core.round(-1, || false).unwrap(), 0);
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

//! Waiting on the internal thread: always for several things at once, one of them the stop.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::context::Mail;
use crate::context::hand_over::{offer_stream, tell};
use crate::context::owner::State;
use crate::context::registry;
use crate::device::StopReason;
use crate::error::Error;
use crate::shared::poll_timeout;
use crate::sync::Arc;
use crate::virtqueue::Queue;

use super::device_state::DeviceState;
use super::{End, Session};

/// A removal of memory waits for pops that are running, which is shorter than any sleep.
const BRACKET_SPINS: u32 = 1000;
const BRACKET_NAP: Duration = Duration::from_micros(50);
/// How long to sleep when a lock was busy whose holder may be stuck in a page fault, and rings nobody when it is not.
const LOCK_NAP: Duration = Duration::from_millis(5);

impl Session {
    /// Sleeps until a message, a back-channel reply or the doorbell.
    pub(super) fn wait_for_message(&mut self) {
        self.sleep(PollFlags::POLLIN);
    }

    /// Sleeps until the peer reads or goes, or the doorbell rings. `connection` says what else of the
    /// connection ends the sleep. What happened is found out by the caller's next look.
    fn sleep(&mut self, connection: PollFlags) -> PollFlags {
        let mut fds = vec![
            PollFd::new(self.shared.internal.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.transport.as_fd(), connection),
        ];
        if let Some(backend) = &self.backend {
            fds.push(PollFd::new(backend.as_fd(), backend.interest()));
        }
        let channels = fds.len();
        if let DeviceState::Moving(transfer) = &self.device_state
            && let Some((channel, events)) = transfer.interest()
        {
            fds.push(PollFd::new(channel, events));
        }
        let deadline = self
            .channel_deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let nap = self.look_again_soon.then_some(LOCK_NAP);
        let timeout = deadline.into_iter().chain(nap).min();
        // Every signal is blocked on this thread, so there is no EINTR; other errors show up as no events.
        let _ = poll(&mut fds, poll_timeout(timeout));
        let seen = fds[1].revents().unwrap_or(PollFlags::empty());
        let backend_ready = fds[2..channels].iter().any(|fd| fd.any() == Some(true));
        self.shared.internal.silence();
        if backend_ready {
            self.read_backend();
        }
        seen
    }

    /// Sends what is queued; the peer may take its time, stop does not wait for it.
    pub(super) fn send_all(&mut self) -> Result<(), End> {
        while !self.transport.flush()? {
            self.keep_house()?;
            self.sleep(PollFlags::POLLOUT);
        }
        Ok(())
    }

    /// Waits until `done`; ends early with the connection or the server.
    pub(super) fn wait_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<(), End> {
        loop {
            self.keep_house()?;
            if done(self) {
                return Ok(());
            }
            let seen = self.sleep(PollFlags::empty());
            check_peer(seen)?;
        }
    }

    /// As [`wait_until`](Self::wait_until), when the connection is over: only the deadline ends it early.
    /// False if it did.
    pub(super) fn wait_after_end(
        &mut self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&Self) -> bool,
    ) -> bool {
        loop {
            offer_stream(&self.shared);
            if done(self) {
                return true;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.shared.internal.wait(None, left);
        }
    }

    /// Asks for a queue; it is INTERNAL when its owner has answered.
    pub(super) fn recall(&self, queue: &Arc<Queue>, reason: StopReason) {
        queue.set_stop_reason(reason);
        if let Some(transition) = registry::change(|| queue.owner.recall()) {
            tell(&transition, || Mail::Queue(queue.clone()));
        }
    }

    /// Takes a queue back from its owner. It is offered again by the next housekeeping, unless the caller
    /// changes what makes it run.
    pub(super) fn take_back(&mut self, index: usize, reason: StopReason) -> Result<(), End> {
        let Some(queue) = self.shared.queue(index as u32) else {
            return Ok(());
        };
        // Not offered again while this waits.
        let kick = self.vrings[index].kick.take();
        self.recall(&queue, reason);
        let taken = self.wait_until(|_| queue.owner.load().state == State::Internal);
        self.vrings[index].kick = kick;
        taken
    }

    /// Waits until no pop runs over a table older than the current one.
    pub(super) fn wait_for_pops(&mut self) -> Result<(), End> {
        let generation = self.shared.table.generation();
        for queue in self.shared.queues() {
            let mut spins = 0;
            while !queue.bracket.is_clear_of_older(generation) {
                spins += 1;
                if spins < BRACKET_SPINS {
                    std::hint::spin_loop();
                    continue;
                }
                // A pop that is stuck in a page fault: the front-end supplies the page, or it ends with the connection.
                if self.shared.lifecycle.is_stopping() {
                    return Err(End::Stop);
                }
                check_peer(self.seen_of_peer())?;
                std::thread::sleep(BRACKET_NAP);
            }
        }
        Ok(())
    }

    /// Whether the peer has hung up, without waiting.
    fn seen_of_peer(&self) -> PollFlags {
        let mut fds = [PollFd::new(self.transport.as_fd(), PollFlags::empty())];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0].revents().unwrap_or(PollFlags::empty())
    }
}

/// A peer that hangs up waits for nothing any more.
fn check_peer(seen: PollFlags) -> Result<(), End> {
    if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
        return Err(End::Failed(Error::new(
            libc::ECONNRESET,
            "the front-end went away while it was waiting for a reply",
        )));
    }
    Ok(())
}

//! The end of a connection: everything of it is gone before the next one is accepted.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::context::hand_over::set_queue_target;
use crate::context::owner::{CtxId, State};
use crate::device::StopReason;
use crate::memory::RegionTable;
use crate::stats::count;
use crate::stream::Event;
use crate::sync::{Arc, Ordering};
use crate::virtqueue::Queue;

use super::{End, Session};

/// How long a stop that has waited as long as it may still waits for the device to hear how it ended.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(500);

impl Session {
    /// Recall, drain, unmap, tell the device.
    pub(super) fn tear_down(mut self, end: End) {
        let (errno, reason, stop_reason) = self.describe(&end);
        let graceful = matches!(end, End::Stop);
        self.close_channel();
        self.shared
            .log_signal
            .clear(self.shared.internal.as_fd(), false);
        self.cancel_transfer("the connection ends");
        if !graceful {
            // The peer must see at once that it is not served any more.
            self.transport.shutdown();
        }
        let deadline = self
            .shared
            .config
            .drain_timeout
            .map(|timeout| Instant::now() + timeout);
        let queues = self.shared.queues();
        self.give_up_postcopy(&queues);
        for queue in &queues {
            if !graceful {
                // A completion that comes now has nobody to read it. A stop lets it through.
                queue.retire();
            }
            self.recall(queue, stop_reason);
        }
        self.shared.gate.close();
        let drained = self.wait_after_end(deadline, |session| {
            session.shared.gate.is_idle() && queues.iter().all(|queue| queue.is_drained())
        });
        for queue in &queues {
            if drained || queue.is_drained() {
                self.clean(queue);
            } else {
                self.orphan(queue);
            }
        }
        self.unmap();
        self.shared.config_space.lock().reset();
        self.shared.set_acked_features(0);
        self.shared.set_suspends_inflight(false);
        self.shared.misses.clear();
        self.announce(errno, reason, deadline);
    }

    fn describe(&self, end: &End) -> (i32, String, StopReason) {
        let logger = &self.shared.logger;
        match end {
            End::Stop => {
                logger.info(format_args!("stopping"));
                (
                    0,
                    "the server is being stopped".into(),
                    StopReason::ServerStopping,
                )
            }
            End::Closed => {
                logger.info(format_args!("the front-end closed the connection"));
                let reason = "the front-end closed the connection".into();
                (0, reason, StopReason::Disconnected)
            }
            End::Failed(error) => {
                self.count_protocol_error();
                logger.warning(format_args!("connection ended: {error}"));
                (
                    -error.errno(),
                    error.message().to_owned(),
                    StopReason::Disconnected,
                )
            }
        }
    }

    /// Back to what the queue was before the connection.
    fn clean(&self, queue: &Arc<Queue>) {
        queue.retire();
        queue.forget_setup();
        queue.set_enabled(false);
        queue.call.clear(self.shared.internal.as_fd(), false);
        queue.err.clear(self.shared.internal.as_fd(), false);
        if self
            .vrings
            .get(queue.index as usize)
            .is_some_and(|vring| vring.prepared)
        {
            self.shared
                .stream
                .push(Event::QueueStopped { index: queue.index });
        }
    }

    /// The drain time-out: the queue lives on what is in flight, a new one takes its place.
    fn orphan(&self, queue: &Arc<Queue>) {
        queue.orphan();
        queue.retire();
        // In one step: a move that comes now is of the old queue, and goes with it, or of the new one.
        self.shared.lifecycle.undisturbed(|| {
            let target = queue.owner.load().target;
            if let Some(fresh) = self.shared.replace_queue(queue) {
                set_queue_target(&fresh, target);
            }
            set_queue_target(queue, CtxId::NONE);
        });
        count(&self.shared.counters.orphaned_queues);
        self.shared.logger.error(format_args!(
            "queue {}: drain time-out; what it has in flight keeps its memory",
            queue.index
        ));
        self.shared
            .stream
            .push(Event::Orphaned { index: queue.index });
    }

    /// The table goes; the mappings with it, except those that an orphan still pins.
    fn unmap(&self) {
        let generation = self.shared.table.generation();
        self.shared
            .table
            .publish(RegionTable::empty(generation + 1));
        self.shared
            .counters
            .memory_regions
            .store(0, Ordering::Relaxed);
    }

    /// `disconnected` is delivered before the next front-end is accepted. A stop does not wait longer for it
    /// than the drain may take, and a little when that took all the time there is.
    fn announce(&mut self, errno: i32, reason: String, deadline: Option<Instant>) {
        let number = self
            .shared
            .stream
            .push(Event::Disconnected { errno, reason });
        let deadline = deadline.map(|deadline| deadline.max(Instant::now() + LAST_WORDS));
        loop {
            let stopping = self.shared.lifecycle.is_stopping();
            let limit = stopping.then_some(deadline).flatten();
            let ended = self.wait_after_end(limit, |session| {
                session.is_told(number) || session.shared.lifecycle.is_stopping() != stopping
            });
            if !ended || self.is_told(number) {
                return;
            }
        }
    }

    /// The event has been delivered, or will not be: a stop has nobody to tell while detached (once a callback that
    /// was running then has returned), nor of a connection that nobody has heard of yet.
    fn is_told(&self, number: u64) -> bool {
        let stream = &self.shared.stream;
        let home = stream.owner.load();
        let detached = home.target.is_none() && home.state == State::Internal;
        stream.has_delivered(number)
            || self.shared.lifecycle.is_stopping()
                && (detached || stream.drop_if_connection_unseen())
    }
}

//! What the internal thread does whenever it wakes: offer what can be offered, report what broke, pass on
//! what changed.

use crate::context::Mail;
use crate::context::hand_over::{offer_stream, tell};
use crate::context::owner::State;
use crate::context::registry;
use crate::device::StopReason;
use crate::error::Error;
use crate::stats::count;
use crate::stream::Event;

use super::{End, Session};

impl Session {
    /// Errors end the connection.
    pub(super) fn keep_house(&mut self) -> Result<(), End> {
        self.renew_pins();
        self.move_device_state();
        self.report_broken()?;
        self.offer_queues();
        self.serve_channel();
        offer_stream(&self.shared);
        if self.shared.lifecycle.is_stopping() {
            return Err(End::Stop);
        }
        if self.shared.is_poisoned() {
            return Err(End::Failed(Error::new(
                libc::ENOTRECOVERABLE,
                "a callback of the device panicked",
            )));
        }
        Ok(())
    }

    pub(super) fn offer_queues(&mut self) {
        for index in 0..self.vrings.len() {
            if self.may_run(index) {
                self.offer(index);
            }
        }
    }

    /// Everything that a ring needs is there, and what the device must hear first has been delivered.
    fn may_run(&mut self, index: usize) -> bool {
        let vring = &self.vrings[index];
        if !vring.is_started() || !self.shared.stream.has_delivered(vring.after_event) {
            return false;
        }
        let Some(queue) = self.shared.queue(index as u32) else {
            return false;
        };
        (queue.is_enabled() || self.shared.config.run_disabled_queues)
            && queue.owner.load().state == State::Internal
            && self.prepare(index)
            && !queue.is_broken()
    }

    fn offer(&self, index: usize) {
        if let Some(queue) = self.shared.queue(index as u32)
            && let Some(transition) = registry::change(|| queue.owner.offer())
        {
            tell(&transition, || Mail::Queue(queue));
        }
    }

    /// Tells the device and the log of rings that broke.
    pub(super) fn report_broken(&mut self) -> Result<(), End> {
        if !self.shared.take_broken_hint() {
            return Ok(());
        }
        for queue in self.shared.queues() {
            if !queue.is_broken() {
                continue;
            }
            if queue.owner.load().state != State::Internal {
                // Its owner hands it back presently, and rings.
                self.shared.hint_broken();
                continue;
            }
            let Some(failure) = queue.take_failure() else {
                continue;
            };
            queue.condemn();
            queue.signal_error();
            count(&self.shared.counters.broken_rings);
            self.shared
                .logger
                .warning(format_args!("{failure}; the ring is stopped"));
            self.shared.stream.push(Event::RingBroken {
                index: queue.index,
                errno: failure.errno(),
                reason: failure.message().to_owned(),
            });
            if self.shared.config.disconnect_on_broken_ring {
                queue.set_stop_reason(StopReason::Disconnected);
                return Err(End::Failed(failure));
            }
        }
        Ok(())
    }
}

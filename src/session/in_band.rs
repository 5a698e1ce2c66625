//! In-band notifications: messages in the place of kick, call and err descriptors.

use crate::protocol::features::ProtocolFeatures;
use crate::protocol::messages::VringState;
use crate::transport::Message;
use crate::virtqueue::kick::KickSource;

use super::dispatch::{Answer, Fault, Handled};
use super::{End, Session};
use crate::error::Error;

impl Session {
    /// Messages take the place of descriptors that the front-end does not give.
    pub(super) fn is_in_band(&self) -> bool {
        self.protocol_features
            .contains(ProtocolFeatures::INBAND_NOTIFICATIONS)
    }

    /// Without a channel back and acknowledgements the feature makes no sense, and the specification leaves no
    /// way to say so but the end of the connection.
    pub(super) fn check_in_band(features: ProtocolFeatures) -> Result<(), End> {
        let needed = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK;
        if features.contains(ProtocolFeatures::INBAND_NOTIFICATIONS) && !features.contains(needed) {
            return Err(End::Failed(Error::new(
                libc::EPROTO,
                "INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK",
            )));
        }
        Ok(())
    }

    /// The front-end has negotiated the feature, or no longer.
    pub(super) fn switch_in_band(&self) {
        for queue in self.shared.queues() {
            queue.call.allow_in_band(self.is_in_band());
            queue.err.allow_in_band(self.is_in_band());
        }
    }

    /// There is a channel now: what a completion could not say without one is said.
    pub(super) fn call_all_in_band(&self) {
        if !self.is_in_band() {
            return;
        }
        for queue in self.shared.queues() {
            let started = self.vrings.get(queue.index as usize);
            if started.is_some_and(|vring| vring.is_started()) {
                queue.notify();
            }
        }
    }

    /// A kick. It also starts a ring, since SET_VRING_KICK need not be sent. A ring with a descriptor of its
    /// own is looked at all the same.
    pub(super) fn vring_kick(&mut self, message: &mut Message) -> Handled {
        let VringState { index, num } = VringState::decode(&message.body)?;
        let index = self.check_index(index)?;
        if num != 0 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: kick {num}: not 0"),
            ));
        }
        match &self.vrings[index].kick {
            Some(kick) => {
                if !kick.signal() {
                    let queue = self.queue(index)?;
                    self.look_again(&queue);
                }
            }
            None => self.start_ring(index, KickSource::in_band().map_err(Error::from)?),
        }
        Ok(Answer::Done)
    }
}

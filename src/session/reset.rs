//! Reset of the device: rings stopped and drained, their state as at the beginning.

use crate::device::StopReason;
use crate::protocol::features::F_PROTOCOL_FEATURES;
use crate::stream::Event;
use crate::transport::Message;

use super::dispatch::{Answer, Handled};
use super::{End, Session};

impl Session {
    /// Deprecated in the specification, which recommends to treat it as a stop of all rings.
    pub(super) fn reset_owner(&mut self, _: &mut Message) -> Handled {
        self.reset_whole()?;
        Ok(Answer::Done)
    }

    pub(super) fn reset_device(&mut self, _: &mut Message) -> Handled {
        self.reset_whole()?;
        self.status = 0;
        Ok(Answer::Done)
    }

    /// Also what a status of zero leaves: QEMU says that whenever the guest is paused, and then the driver does not write
    /// into the config space again, nor does QEMU know where the rings stand if nobody tells it.
    fn reset_whole(&mut self) -> Result<(), End> {
        self.shared.config_space.lock().reset();
        self.reset_rings()?;
        for vring in &mut self.vrings {
            vring.stood = None;
        }
        Ok(())
    }

    /// Memory and call descriptors stay: front-ends do not send them again after a reset.
    pub(super) fn reset_rings(&mut self) -> Result<(), End> {
        self.cancel_transfer("the device is reset");
        let running: Vec<usize> = (0..self.vrings.len())
            .filter(|&i| self.vrings[i].is_started())
            .collect();
        self.stop_rings(&running, StopReason::Reset)?;
        for index in running {
            self.vrings[index].stood = self.vrings[index].base;
        }
        for index in 0..self.vrings.len() {
            self.vrings[index].reset();
            if let Some(queue) = self.shared.queue(index as u32) {
                queue.forget_setup();
                // A front-end that cannot enable rings never does it again.
                queue.set_enabled(self.features_set && self.features & F_PROTOCOL_FEATURES == 0);
            }
        }
        // The device has forgotten them and is told again.
        self.features_set = false;
        self.shared.stream.push(Event::Reset);
        Ok(())
    }
}

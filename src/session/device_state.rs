//! The device's own state on its way to another host (vhost-user specification, "Migrating back-end state").

use crate::error::{Error, Result};
use crate::protocol::messages::DeviceStateTransfer;
use crate::transport::Message;

use super::Session;
use super::dispatch::{Answer, Fault, Handled};
use super::transfer::Transfer;

/// In a reply: no descriptor comes with it, the front-end's is used.
const INVALID_FD: u64 = 1 << 8;

/// The transfer that the front-end may ask about.
pub(super) enum DeviceState {
    NoTransfer,
    Moving(Transfer),
    /// Asked about once.
    Over(Result<()>),
}

impl Session {
    /// The specification has one phase so far, in which all rings are stopped. The transfer goes on beside the messages.
    pub(super) fn set_device_state_fd(&mut self, message: &mut Message) -> Handled {
        let direction = DeviceStateTransfer::decode(&message.body)?;
        if self.any_started() {
            return Err(Fault::refuse(
                libc::EBUSY,
                "device state: a ring is started",
            ));
        }
        let Some(channel) = message.fds.pop() else {
            return Err(Fault::refuse(libc::EINVAL, "device state: no descriptor"));
        };
        // Before there is an old one to give up: this may be refused.
        let transfer = Transfer::begin(direction, channel, &self.shared)?;
        self.cancel_transfer("another one begins");
        self.device_state = DeviceState::Moving(transfer);
        self.move_device_state();
        Ok(Answer::u64(INVALID_FD))
    }

    /// Waits until the device has had the last piece.
    pub(super) fn check_device_state(&mut self, _: &mut Message) -> Handled {
        self.wait_until(|session| !matches!(session.device_state, DeviceState::Moving(_)))?;
        match std::mem::replace(&mut self.device_state, DeviceState::NoTransfer) {
            DeviceState::Over(result) => {
                result?;
                Ok(Answer::u64(0))
            }
            _ => Err(Fault::refuse(libc::ENODATA, "device state: no transfer")),
        }
    }

    /// Whatever can go on goes on.
    pub(super) fn move_device_state(&mut self) {
        let DeviceState::Moving(transfer) = &mut self.device_state else {
            return;
        };
        let Some(result) = transfer.advance(&self.shared) else {
            return;
        };
        let logger = &self.shared.logger;
        match &result {
            Ok(bytes) => logger.info(format_args!("device state: {bytes} bytes transferred")),
            Err(error) => logger.warning(format_args!("device state not transferred: {error}")),
        }
        // Closes the channel, which is how the peer learns of the end.
        self.device_state = DeviceState::Over(result.map(drop));
    }

    /// The state would no longer be what the front-end wants, or nobody wants it.
    pub(super) fn cancel_transfer(&mut self, why: &str) {
        match std::mem::replace(&mut self.device_state, DeviceState::NoTransfer) {
            DeviceState::Moving(transfer) => {
                transfer.cancel(&self.shared);
                let error = Error::new(libc::ECANCELED, format!("device state: {why}"));
                self.shared
                    .logger
                    .warning(format_args!("device state not transferred: {why}"));
                self.device_state = DeviceState::Over(Err(error));
            }
            other => self.device_state = other,
        }
    }
}

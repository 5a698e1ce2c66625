//! Asking the device, and the requests that do nothing else.

use crate::device::Device;
use crate::error::Error;
use crate::protocol::messages::{decode_mac, decode_mtu, decode_uuid};
use crate::question::Question;
use crate::stream::Event;
use crate::transport::Message;

use super::dispatch::{Answer, Handled};
use super::{End, Session};

impl Session {
    /// Puts a question to the device and waits for the answer: while detached until it is attached again, and
    /// not beyond the end of the connection or a stop.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&dyn Device) -> T + Send + 'static,
    ) -> Result<T, End> {
        let (question, awaited) = Question::new(&self.shared, ask);
        let number = self.shared.stream.push(Event::Asked(question));
        let mut answer = None;
        let waited = self.wait_until(|_| {
            answer = awaited.take();
            answer.is_some()
        });
        if waited.is_err() {
            self.shared.stream.withdraw(number);
        }
        waited?;
        // There is one, or the wait would have failed.
        answer.ok_or_else(|| End::Failed(Error::new(libc::EIO, "the device gave no answer")))
    }

    pub(super) fn send_rarp(&mut self, message: &mut Message) -> Handled {
        let mac = decode_mac(&message.body)?;
        match self.ask(move |device| device.send_rarp(mac))? {
            // Nothing depends on it: a front-end that does not ask is not left for it.
            Err(error) if !self.wants_ack(message) => {
                self.shared
                    .logger
                    .warning(format_args!("RARP not sent: {error}"));
            }
            sent => sent?,
        }
        Ok(Answer::Done)
    }

    pub(super) fn net_set_mtu(&mut self, message: &mut Message) -> Handled {
        let mtu = decode_mtu(&message.body)?;
        self.ask(move |device| device.net_set_mtu(mtu))??;
        Ok(Answer::Done)
    }

    pub(super) fn get_shared_object(&mut self, message: &mut Message) -> Handled {
        let uuid = decode_uuid(&message.body)?;
        let fd = self.ask(move |device| device.shared_object(uuid))??;
        Ok(Answer::ReplyWithFds(Vec::new(), vec![fd]))
    }
}

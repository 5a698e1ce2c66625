//! Asking the device, and the requests that do nothing else.

use crate::device::{Capabilities, Device};
use crate::error::Error;
use crate::protocol::messages::{
    CryptoSession, decode_mac, decode_mtu, decode_u64, decode_uuid, encode_crypto_reply,
};
use crate::question::Question;
use crate::stream::Event;
use crate::transport::Message;

use super::dispatch::{Answer, Fault, Handled};
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

    pub(super) fn create_crypto_session(&mut self, message: &mut Message) -> Handled {
        let session = CryptoSession::decode(&message.body)?;
        let id = self.ask(move |device| device.create_crypto_session(&session))??;
        let id = i64::try_from(id)
            .map_err(|_| Error::invalid(format!("crypto session {id}: more than 63 bits")))?;
        let reply = encode_crypto_reply(message.body.len(), id)
            .ok_or_else(|| Error::invalid("crypto session: unknown layout"))?;
        Ok(Answer::Reply(reply))
    }

    pub(super) fn close_crypto_session(&mut self, message: &mut Message) -> Handled {
        let id = decode_u64(&message.body)?;
        self.ask(move |device| device.close_crypto_session(id))??;
        Ok(Answer::Done)
    }

    /// The one request for a device class that no protocol feature stands for.
    pub(super) fn gpu_set_socket(&mut self, message: &mut Message) -> Handled {
        if !self.shared.capabilities.contains(Capabilities::GPU_SOCKET) {
            return Err(Fault::refuse(libc::ENOSYS, "not supported by this device"));
        }
        if let Some(socket) = message.fds.pop() {
            self.ask(move |device| device.gpu_set_socket(socket))??;
        }
        Ok(Answer::Done)
    }

    pub(super) fn get_shared_object(&mut self, message: &mut Message) -> Handled {
        let uuid = decode_uuid(&message.body)?;
        let fd = self.ask(move |device| device.shared_object(uuid))??;
        Ok(Answer::ReplyWithFds(Vec::new(), vec![fd]))
    }
}

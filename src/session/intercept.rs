//! Messages that the device wants to see first.

use crate::error::Error;
use crate::message::{RawMessage, Verdict};
use crate::protocol::requests::RequestSpec;
use crate::protocol::{MAX_BODY, MAX_FDS};
use crate::transport::Message;

use super::Session;
use super::dispatch::{Answer, Fault};

impl Session {
    /// Shows the device a message that it wants to see. `None` if it is not the device's: the message is then
    /// what the device has left of it.
    pub(super) fn intercept(
        &mut self,
        spec: Option<&RequestSpec>,
        message: &mut Message,
    ) -> Result<Option<Answer>, Fault> {
        let request = message.header.request;
        if !self.shared.config.intercepted.contains(&request) {
            return Ok(None);
        }
        let mut raw = RawMessage {
            request,
            need_reply: self.wants_ack(message),
            body: std::mem::take(&mut message.body),
            fds: std::mem::take(&mut message.fds),
        };
        let (raw, verdict) = self.ask(move |device| {
            let verdict = device.message(&mut raw);
            (raw, verdict)
        })?;
        match verdict? {
            Verdict::NotMine => {
                // The header still says how long it was.
                let size = message.header.size as usize;
                if raw.body.len() != size {
                    return Err(changed(size, raw.body.len()).into());
                }
                (message.body, message.fds) = (raw.body, raw.fds);
                Ok(None)
            }
            Verdict::Handled if spec.is_some_and(|spec| spec.own_reply) => Err(Fault::refuse(
                libc::EPROTO,
                "handled by the device without the reply that it must have",
            )),
            Verdict::Handled => Ok(Some(Answer::Done)),
            Verdict::Reply(body, fds) if body.len() > MAX_BODY || fds.len() > MAX_FDS => {
                Err(Fault::refuse(
                    libc::EMSGSIZE,
                    format!(
                        "the device's reply: {} bytes, {} descriptors",
                        body.len(),
                        fds.len()
                    ),
                ))
            }
            Verdict::Reply(body, fds) => Ok(Some(Answer::ReplyWithFds(body, fds))),
        }
    }
}

fn changed(size: usize, now: usize) -> Error {
    Error::invalid(format!(
        "the device has made {now} bytes of {size} in a message that is not its own"
    ))
}

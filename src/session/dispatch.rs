//! From a message to its reply: the checks that need no handler, the handler, the form of the answer.

use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::protocol::features::ProtocolFeatures;
use crate::protocol::messages::{DecodeError, encode_crypto_reply, encode_u64};
use crate::protocol::requests::{self, ErrorReply, RequestSpec, id};
use crate::stats::count;
use crate::transport::Message;

use super::{End, Session};

/// What a handler answers.
pub(super) enum Answer {
    /// Done; acknowledged if the front-end asked for that.
    Done,
    /// The request's own reply.
    Reply(Vec<u8>),
    /// The same, with descriptors.
    ReplyWithFds(Vec<u8>, Vec<OwnedFd>),
}

impl Answer {
    pub(super) fn u64(value: u64) -> Self {
        Answer::Reply(encode_u64(value))
    }
}

/// Why a handler did not do it.
pub(super) enum Fault {
    /// Refused: nothing has changed, the connection lives on if the front-end can be told.
    Refuse(Error),
    /// The connection ends.
    End(End),
}

impl Fault {
    pub(super) fn refuse(errno: i32, message: impl Into<String>) -> Self {
        Fault::Refuse(Error::new(errno, message))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Refuse(error)
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Fault::refuse(libc::EINVAL, error.to_string())
    }
}

impl From<End> for Fault {
    fn from(end: End) -> Self {
        Fault::End(end)
    }
}

pub(super) type Handled = Result<Answer, Fault>;
type Handler = fn(&mut Session, &mut Message) -> Handled;

/// The requests that are served, by id. What is not in here is refused like an unknown one, and its feature
/// is not offered. What is has a row in `tests/protocol_support/rows.rs`, for the page on protocol support.
const HANDLERS: &[(u32, Handler)] = &[
    (id::GET_FEATURES, Session::get_features),
    (id::SET_FEATURES, Session::set_features),
    (id::SET_OWNER, Session::set_owner),
    (id::RESET_OWNER, Session::reset_owner),
    (id::SET_MEM_TABLE, Session::set_mem_table),
    (id::SET_LOG_BASE, Session::set_log_base),
    (id::SET_LOG_FD, Session::set_log_fd),
    (id::SET_VRING_NUM, Session::set_vring_num),
    (id::SET_VRING_ADDR, Session::set_vring_addr),
    (id::SET_VRING_BASE, Session::set_vring_base),
    (id::GET_VRING_BASE, Session::get_vring_base),
    (id::SET_VRING_KICK, Session::set_vring_kick),
    (id::SET_VRING_CALL, Session::set_vring_call),
    (id::SET_VRING_ERR, Session::set_vring_err),
    (id::GET_PROTOCOL_FEATURES, Session::get_protocol_features),
    (id::SET_PROTOCOL_FEATURES, Session::set_protocol_features),
    (id::GET_QUEUE_NUM, Session::get_queue_num),
    (id::SET_VRING_ENABLE, Session::set_vring_enable),
    (id::SEND_RARP, Session::send_rarp),
    (id::NET_SET_MTU, Session::net_set_mtu),
    (id::SET_BACKEND_REQ_FD, Session::set_backend_req_fd),
    (id::IOTLB_MSG, Session::iotlb_msg),
    (id::SET_VRING_ENDIAN, Session::set_vring_endian),
    (id::GET_CONFIG, Session::get_config),
    (id::SET_CONFIG, Session::set_config),
    (id::CREATE_CRYPTO_SESSION, Session::create_crypto_session),
    (id::CLOSE_CRYPTO_SESSION, Session::close_crypto_session),
    (id::POSTCOPY_ADVISE, Session::postcopy_advise),
    (id::POSTCOPY_LISTEN, Session::postcopy_listen),
    (id::POSTCOPY_END, Session::postcopy_end),
    (id::GET_INFLIGHT_FD, Session::get_inflight_fd),
    (id::SET_INFLIGHT_FD, Session::set_inflight_fd),
    (id::GPU_SET_SOCKET, Session::gpu_set_socket),
    (id::RESET_DEVICE, Session::reset_device),
    (id::VRING_KICK, Session::vring_kick),
    (id::GET_MAX_MEM_SLOTS, Session::get_max_mem_slots),
    (id::ADD_MEM_REG, Session::add_mem_reg),
    (id::REM_MEM_REG, Session::rem_mem_reg),
    (id::SET_STATUS, Session::set_status),
    (id::GET_STATUS, Session::get_status),
    (id::GET_SHARED_OBJECT, Session::get_shared_object),
    (id::SET_DEVICE_STATE_FD, Session::set_device_state_fd),
    (id::CHECK_DEVICE_STATE, Session::check_device_state),
    (id::GET_SHMEM_CONFIG, Session::get_shmem_config),
];

fn handler(id: u32) -> Option<Handler> {
    HANDLERS
        .iter()
        .find_map(|&(row, handler)| (row == id).then_some(handler))
}

/// Whether a request has a handler.
pub fn is_served(request: u32) -> bool {
    handler(request).is_some()
}

impl Session {
    /// Handles a message; the reply to send, if any. Descriptors that the handler leaves in the message are
    /// closed with it.
    pub(super) fn dispatch(&mut self, mut message: Message) -> Result<Option<Message>, End> {
        let header = message.header;
        let request = header.request;
        let wants_ack = self.wants_ack(&message);
        self.shared.logger.debug(format_args!(
            "{} ({request}), {} bytes, {} descriptors{}",
            requests::request_name(request),
            header.size,
            message.fds.len(),
            if header.need_reply() {
                ", need_reply"
            } else {
                ""
            }
        ));
        let spec = requests::lookup(request);
        match self.try_handle(spec, &mut message) {
            Ok(Answer::Reply(body)) => Ok(Some(Message::reply(request, body, Vec::new()))),
            Ok(Answer::ReplyWithFds(body, fds)) => Ok(Some(Message::reply(request, body, fds))),
            Ok(Answer::Done) if wants_ack => Ok(Some(ack(request, 0))),
            Ok(Answer::Done) => Ok(None),
            Err(Fault::End(end)) => Err(end),
            Err(Fault::Refuse(error)) => {
                count(&self.shared.counters.refusals);
                let name = requests::request_name(request);
                self.shared
                    .logger
                    .warning(format_args!("{name} ({request}) refused: {error}"));
                match error_reply(spec, request, header.size, wants_ack) {
                    Some(reply) => Ok(Some(reply)),
                    None => Err(End::Failed(Error::new(
                        error.errno(),
                        format!("{name} ({request}): {error}"),
                    ))),
                }
            }
        }
    }

    /// The front-end asked for an acknowledgement, and may.
    pub(super) fn wants_ack(&self, message: &Message) -> bool {
        message.header.need_reply() && self.protocol_features.contains(ProtocolFeatures::REPLY_ACK)
    }

    fn try_handle(&mut self, spec: Option<&RequestSpec>, message: &mut Message) -> Handled {
        if let Some(answer) = self.intercept(spec, message)? {
            return Ok(answer);
        }
        let Some(spec) = spec else {
            let request = message.header.request;
            if self.is_nameless_marker(message) {
                return self.finish_update();
            }
            return Err(Fault::refuse(
                libc::ENOSYS,
                format!("request {request}: unknown"),
            ));
        };
        spec.check(&message.body, message.fds.len())
            .map_err(|e| Fault::refuse(libc::EINVAL, e.to_string()))?;
        if let Some(needed) = spec.needs
            && !self.has_feature_for(spec.id, needed)
        {
            return Err(Fault::refuse(
                libc::ENOTSUP,
                format!("protocol feature {needed:?}: not negotiated"),
            ));
        }
        match handler(spec.id) {
            Some(handler) => handler(self, message),
            None => Err(Fault::refuse(libc::ENOSYS, "not supported by this device")),
        }
    }

    /// These may be sent as soon as the feature is offered (vhost-user specification, "Front-end message
    /// types"); the others need it acknowledged.
    fn has_feature_for(&self, request: u32, needed: ProtocolFeatures) -> bool {
        let offered_is_enough = matches!(
            request,
            id::GET_QUEUE_NUM | id::SET_BACKEND_REQ_FD | id::GET_CONFIG | id::GET_MAX_MEM_SLOTS
        );
        let has = if offered_is_enough {
            self.offered_protocol_features()
        } else {
            self.protocol_features
        };
        has.contains(needed)
    }
}

fn ack(request: u32, value: u64) -> Message {
    Message::reply(request, encode_u64(value), Vec::new())
}

/// The one error reply that is due; `None` if the front-end cannot be told.
fn error_reply(
    spec: Option<&RequestSpec>,
    request: u32,
    size: u32,
    wants_ack: bool,
) -> Option<Message> {
    if request == id::GET_VRING_BASE {
        // An acknowledgement has the size of its reply, and would be taken for one.
        return None;
    }
    let form = spec.map_or(ErrorReply::Nothing, |spec| spec.error_reply);
    let body = match form {
        ErrorReply::Status(value) => encode_u64(value),
        ErrorReply::Empty => Vec::new(),
        ErrorReply::Zeroed(size) => vec![0; size],
        ErrorReply::NegativeSession => match encode_crypto_reply(size as usize, -1) {
            Some(body) => body,
            None => return wants_ack.then(|| ack(request, 1)),
        },
        ErrorReply::Nothing => return wants_ack.then(|| ack(request, 1)),
    };
    Some(Message::reply(request, body, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_rows_of_the_request_table_in_order() {
        let ids: Vec<u32> = HANDLERS.iter().map(|row| row.0).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.iter().all(|&id| requests::lookup(id).is_some()));
    }

    #[test]
    fn a_refusal_has_one_reply_or_ends_the_connection() {
        let refused = |id, ack| {
            error_reply(requests::lookup(id), id, 12, ack).map(|m| (m.header.request, m.body.len()))
        };
        assert_eq!(
            refused(id::SET_VRING_NUM, true),
            Some((id::SET_VRING_NUM, 8))
        );
        assert_eq!(refused(id::SET_VRING_NUM, false), None);
        assert_eq!(refused(id::GET_CONFIG, false), Some((id::GET_CONFIG, 0)));
        // Whatever size the request had.
        assert_eq!(
            refused(id::GET_INFLIGHT_FD, false),
            Some((id::GET_INFLIGHT_FD, 24))
        );
        assert_eq!(refused(id::GET_VRING_BASE, true), None);
        assert_eq!(refused(77, false), None);
        assert_eq!(refused(77, true), Some((77, 8)));
    }
}

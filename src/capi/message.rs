//! `vu_message`: a message of the front-end that the device sees before the library.

use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::error::{Error, Result};
use crate::message::{RawMessage, Verdict};
use crate::protocol::{MAX_BODY, MAX_FDS};

use super::guard::refusal;
use super::structs::layout;

/// Answer of vu_device_ops.message: the library goes on with the message as if
/// the device had not been asked.
pub const VU_MESSAGE_NOT_MINE: c_int = 0;
/// Answer of vu_device_ops.message: done. The library acknowledges the message,
/// if the front-end wants that.
pub const VU_MESSAGE_HANDLED: c_int = 1;
/// Answer of vu_device_ops.message: done, and the one reply is in the message.
pub const VU_MESSAGE_REPLY: c_int = 2;

/// A message of the front-end as it came: the library has looked at its header
/// only. The library makes it, and later versions may append fields.
#[repr(C)]
pub struct vu_message {
    /// The request's number, any from 0 on.
    pub request: u32,
    /// 1: the front-end wants an acknowledgement, and REPLY_ACK is negotiated.
    pub need_reply: u32,
    /// The body.
    pub body: *const c_void,
    /// Its bytes, up to 4096.
    pub body_size: u32,
    /// Descriptors that came with it, up to 32.
    pub num_fds: u32,
    /// The descriptors. One that the device takes it replaces with -1, and
    /// closes itself; the others are the library's.
    pub fds: *mut c_int,
    /// For VU_MESSAGE_REPLY: room for a body of 4096 bytes.
    pub reply: *mut c_void,
    /// The bytes in there; 0 when the function is called.
    pub reply_size: u32,
    /// The descriptors in reply_fds; 0 when the function is called.
    pub num_reply_fds: u32,
    /// Room for 32 descriptors, which the library takes with VU_MESSAGE_REPLY,
    /// and closes when they are sent.
    pub reply_fds: *mut c_int,
}

layout!(vu_message, 56, {
    request: 0,
    need_reply: 4,
    body: 8,
    body_size: 16,
    num_fds: 20,
    fds: 24,
    reply: 32,
    reply_size: 40,
    num_reply_fds: 44,
    reply_fds: 48,
});

/// What `vu_message` points to, during one call.
pub(super) struct Room {
    raw: Vec<RawFd>,
    reply: Vec<u8>,
    reply_fds: [c_int; MAX_FDS],
}

impl Room {
    /// Takes the descriptors out of `message`; [`finish`](Self::finish) puts back what is left.
    pub(super) fn new(message: &mut RawMessage) -> Self {
        Room {
            raw: message.fds.drain(..).map(IntoRawFd::into_raw_fd).collect(),
            reply: vec![0; MAX_BODY],
            reply_fds: [-1; MAX_FDS],
        }
    }

    /// Calls `f` with the message, whose descriptors are in `self`.
    pub(super) fn call(
        mut self,
        message: &mut RawMessage,
        f: impl FnOnce(*mut vu_message) -> c_int,
    ) -> Result<Verdict> {
        let mut lent = self.raw.clone();
        let mut c = vu_message {
            request: message.request,
            need_reply: message.need_reply.into(),
            body: message.body.as_ptr().cast(),
            body_size: message.body.len() as u32,
            num_fds: lent.len() as u32,
            fds: lent.as_mut_ptr(),
            reply: self.reply.as_mut_ptr().cast(),
            reply_size: 0,
            num_reply_fds: 0,
            reply_fds: self.reply_fds.as_mut_ptr(),
        };
        let answer = f(&raw mut c);
        let left = self.raw.iter().zip(&lent).filter(|&(_, &now)| now != -1);
        // SAFETY: each was taken from its owner in `new`, and the device says that it did not take it.
        message.fds = left
            .map(|(&fd, _)| unsafe { OwnedFd::from_raw_fd(fd) })
            .collect();
        match answer {
            VU_MESSAGE_NOT_MINE => Ok(Verdict::NotMine),
            VU_MESSAGE_HANDLED => Ok(Verdict::Handled),
            VU_MESSAGE_REPLY => self.finish(c.reply_size as usize, c.num_reply_fds as usize),
            other => Err(refusal("message", other)),
        }
    }

    fn finish(mut self, size: usize, fds: usize) -> Result<Verdict> {
        let taken: Vec<OwnedFd> = self.reply_fds[..fds.min(MAX_FDS)]
            .iter()
            .filter(|&&fd| fd >= 0)
            // SAFETY: the header says that they become the library's.
            .map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) })
            .collect();
        if size > MAX_BODY || fds > MAX_FDS {
            return Err(Error::new(
                libc::EMSGSIZE,
                format!("message: reply of {size} bytes, {fds} descriptors"),
            ));
        }
        self.reply.truncate(size);
        Ok(Verdict::Reply(self.reply, taken))
    }
}

//! Messages that a device wants to see before the library.

use std::os::fd::OwnedFd;

/// A message of the front-end as it came: the library has looked at its header only.
#[derive(Debug)]
pub struct RawMessage {
    /// The request's number, any from 0 on.
    pub request: u32,
    /// The front-end wants an acknowledgement, and REPLY_ACK is negotiated.
    pub need_reply: bool,
    /// Up to 4096 bytes.
    pub body: Vec<u8>,
    /// Up to 32 descriptors. What the device leaves in here is the library's, to use or to close.
    pub fds: Vec<OwnedFd>,
}

/// What has become of a message; see [`Device::message`](crate::Device::message).
#[derive(Debug)]
pub enum Verdict {
    /// The library goes on with it as if the device had not been asked.
    NotMine,
    /// Done. The library acknowledges it, if the front-end wants that.
    Handled,
    /// Done, and this is the one reply: up to 4096 bytes and 32 descriptors. An acknowledgement is a `u64` of
    /// 0, but a front-end that did not ask for one does not expect it.
    Reply(Vec<u8>, Vec<OwnedFd>),
}

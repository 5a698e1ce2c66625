//! skeleton, see below
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[cfg(not(loom))]
mod callback;
#[cfg(not(loom))]
mod config_space;
mod context;
#[cfg(not(loom))]
mod device;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
#[doc(hidden)]
#[allow(missing_docs)]
#[allow(unsafe_code)]
pub mod listener;
#[cfg(not(loom))]
mod log;
#[cfg(not(loom))]
#[allow(unsafe_code)]
mod memory;
#[cfg(not(loom))]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod protocol;
#[cfg(not(loom))]
mod server;
#[cfg(not(loom))]
mod session;
#[cfg(not(loom))]
mod shared;
#[cfg(not(loom))]
mod stats;
#[cfg(not(loom))]
mod stream;
mod sync;
#[cfg(not(loom))]
#[doc(hidden)]
#[allow(missing_docs)]
#[allow(unsafe_code)]
pub mod transport;
#[allow(unsafe_code)]
mod virtqueue;

#[cfg(not(loom))]
pub use crate::{
    context::{Context, EventLoop, Watch},
    device::{Device, Kick, StopReason},
    error::{Error, Result},
    listener::Address,
    log::{Level, LogFn},
    server::{Server, ServerBuilder},
    stats::{MESSAGE_TYPES, ServerStats},
    virtqueue::{Element, GuestSlice, Virtqueue, VqStats},
};

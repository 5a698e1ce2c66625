//! Contexts: one for each event loop of the application.
//!
//! * [`owner`] the owner word of a queue; [`mailbox`] how a context is told; [`registry`] which there are
//! * [`watch`] the slots behind watched descriptors; [`event_loop`], [`epoll`] the loops
//! * [`core`] entering and leaving a dispatch; [`serve`] what is done in one; [`run`] the embedded loops

#[cfg(not(loom))]
mod api;
#[cfg(not(loom))]
mod busy;
#[cfg(not(loom))]
mod core;
#[cfg(not(loom))]
mod epoll;
#[cfg(not(loom))]
mod event_loop;
#[cfg(not(loom))]
pub(crate) mod hand_over;
pub(crate) mod mailbox;
pub(crate) mod owner;
#[cfg(not(loom))]
pub(crate) mod registry;
#[cfg(not(loom))]
mod run;
#[cfg(not(loom))]
mod serve;
#[cfg(not(loom))]
mod watch;

#[cfg(not(loom))]
pub(crate) use self::core::{ContextCore, Mail};
#[cfg(not(loom))]
pub(crate) use self::watch::WatchSlot;
#[cfg(not(loom))]
pub use self::{api::Context, event_loop::EventLoop, watch::Watch};

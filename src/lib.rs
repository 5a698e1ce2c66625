//! A vhost-user device server: turns a program into a virtio device back-end, in the program's own event
//! loop.
//!
//! The library listens on a UNIX socket, speaks the vhost-user protocol with the front-end that connects
//! (QEMU, libblkio, DPDK's virtio-user and others), maps the guest's memory, runs the virtqueues, and calls the
//! program back where the program wants it.
//!
//! ```no_run
//! use vu_server::{Address, Context, Device, Element, Kick, Server, Virtqueue};
//!
//! /// Answers every request with what it was sent.
//! struct Echo;
//!
//! impl Device for Echo {
//!     fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
//!         let mut batch: [Option<Element>; 32] = Default::default();
//!         while let Ok(n @ 1..) = vq.pop(&mut batch) {
//!             for element in batch[..n].iter_mut().filter_map(Option::take) {
//!                 let mut bytes = [0; 256];
//!                 let len = element.read(0, &mut bytes);
//!                 let written = element.write(0, &bytes[..len]) as u32;
//!                 vq.stage(element, written).expect("written fits");
//!             }
//!         }
//!         Kick::Done
//!     }
//! }
//!
//! fn main() -> vu_server::Result<()> {
//!     let context = Context::epoll()?;
//!     let server = Server::builder().name("echo").build(Echo)?;
//!     server.start(Address::Listen("/tmp/echo.sock".into()), Some(&context))?;
//!     context.run()?; // until Context::quit, from a signal handler for one
//!     server.stop()
//! }
//! ```
//!
//! # Theory of operation
//!
//! ```text
//!  front-end ──socket──▶ internal thread ──mailbox+doorbell──▶ context A (home): events, queue 0 kicks
//!                           │  ▲                              context B: queue 1 kicks
//!                           │  └── back-end requests, from any thread
//!  guest ──kick eventfd──▶ watched directly by the queue's context
//!  guest ◀──call eventfd── written by whoever publishes the batch
//! ```
//!
//! * A started server has **one internal thread**: it listens, accepts, decodes, maps memory and replies. It
//!   never runs device code (only the log and wake functions, which any thread may call) and never touches guest
//!   memory.
//! * A [`Context`] stands for one event loop; its *owner* is the thread that made it, adopted it or last
//!   dispatched it. Every device callback runs on the owner, inside a dispatch of the context (or inside stop or
//!   detach called there), so a single-threaded program needs no lock. The loop is the program's own
//!   ([`Context::foreign`]), the embedded one ([`Context::epoll`], which the cargo feature `tokio` serves in a
//!   tokio runtime), or none ([`Context::polled`]). `docs/integrating.md` has a page for each kind of loop.
//! * Each server has a *home* context for its events, and each queue a context of its own, at first the home
//!   one. Queues move at run time ([`Server::attach_queue`], [`Server::detach`], [`Server::attach`]);
//!   ownership is one atomic word per queue, and it moves, it is never shared.
//! * What is popped and not completed is *in flight*. An [`Element`] stays valid, and its memory mapped,
//!   until it is completed, on whatever thread, wherever its queue has gone, also after a disconnect. Stop,
//!   disconnect and the front-end's own stop of a ring wait for what is in flight, within
//!   [`ServerBuilder::drain_timeout`].
//! * The library answers the front-end from data. What only the device can compute is asked of it in its home
//!   context, in order with the events ([`Device::capabilities`] says what it answers), while the front-end
//!   waits. Requests to the front-end ([`Server::object_add`] and its kin) are for any thread and never wait;
//!   what becomes of them is heard in the home context, too.
//! * A bad message is refused, a broken ring stops that ring, a broken peer ends the connection; none of it
//!   ends the server or the process.
//!
//! # Threads and re-entrancy
//!
//! Elements are completed, in-flight work is counted, the config space is changed, statistics are read, queues are
//! moved, servers are attached, stopped ([`Server::request_stop`]) and detached ([`Server::request_detach`]) from
//! any thread, inside any callback. [`Server::detach`] is for the thread that owns the contexts concerned, and
//! answers `EBUSY` elsewhere. [`Server::stop`] is for any thread, but `EDEADLK` inside every callback and on the
//! thread of a foreign loop that cannot poll; start, detach and free are `EDEADLK` inside callbacks of the same
//! server, except that [`Device::stopped`] may free it. A second thread that dispatches a context gets `EBUSY`.
//! No lock of the library's is held while a callback runs, and distinct servers are independent.
//!
//! # Forking and signals
//!
//! All descriptors are close-on-exec. A forked child may only call `_exit` or `execve`. The library installs
//! no signal handler, raises no SIGPIPE, and blocks all signals on its internal thread.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(loom))]
mod callback;
#[cfg(not(loom))]
mod capi;
#[cfg(not(loom))]
mod config_space;
mod context;
#[cfg(not(loom))]
mod device;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod features;
#[cfg(not(loom))]
mod lifecycle;
#[cfg(not(loom))]
#[doc(hidden)]
#[allow(missing_docs, unsafe_code)]
pub mod listener;
#[cfg(not(loom))]
mod log;
#[cfg(not(loom))]
#[allow(unsafe_code)]
mod memory;
#[cfg(not(loom))]
mod message;
#[cfg(not(loom))]
mod misses;
#[cfg(not(loom))]
mod outbox;
#[cfg(not(loom))]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod protocol;
#[cfg(not(loom))]
mod question;
#[cfg(all(feature = "rust-vmm", not(loom)))]
pub mod rust_vmm;
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
#[cfg(all(feature = "tokio", not(loom)))]
pub mod tokio;
#[cfg(not(loom))]
#[doc(hidden)]
#[allow(missing_docs, unsafe_code)]
pub mod transport;
#[allow(unsafe_code)]
mod virtqueue;

/// Whether a front-end's request has a handler: what the page on protocol support is generated from.
#[cfg(not(loom))]
#[doc(hidden)]
pub use crate::session::is_served;

#[cfg(not(loom))]
pub use crate::{
    context::{Context, EventLoop, Watch},
    device::{Capabilities, Device, Kick, StopReason},
    error::{Error, Result},
    listener::Address,
    log::{Level, LogFn},
    message::{RawMessage, Verdict},
    protocol::messages::{CryptoParams, CryptoSession},
    server::{Server, ServerBuilder, ShmemMapping},
    stats::{MESSAGE_TYPES, ServerStats},
    virtqueue::{Element, GuestSlice, Virtqueue, VqStats},
};

/// The examples of the README are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! A simulated vhost-user front-end with drivers of split and packed rings.
//!
//! It shares no code with the library under test: it speaks bytes over a UNIX
//! socket and writes descriptors into memory that it maps itself, so it can
//! say things that no well-behaved front-end or driver would say.
//!
//! From the bottom up: [`wire`] and [`socket`] are the message format and its
//! transport, [`Frontend`] the requests, [`GuestMemory`] the guest's RAM,
//! [`SplitDriver`] and [`PackedDriver`] the driver's side of one virtqueue,
//! [`Session`] all of it negotiated and running. Everything below `Session` returns errors;
//! `Session` and [`echo`] panic with context, as a test wants.
//!
//! An integration test includes it with `#[path = "sim/mod.rs"] mod sim;`.

// Every test binary compiles all of this and uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod backend_channel;
pub mod deadline;
pub mod driver;
pub mod echo;
pub mod error;
pub mod eventfd;
pub mod frontend;
pub mod inflight;
pub mod memory;
pub mod packed_driver;
pub mod packed_ring;
pub mod postcopy;
pub mod process;
pub mod queue;
pub mod requests;
pub mod ring;
pub mod session;
pub mod shared;
pub mod socket;
pub mod wire;

pub use backend_channel::{BackendChannel, BackendRequest};
pub use deadline::{Deadline, HangGuard, eventually};
pub use driver::{Seg, SplitDriver, Used};
pub use error::{Error, Result};
pub use eventfd::EventFd;
pub use frontend::{Frontend, Reply};
pub use memory::{GuestMemory, Region, RegionSpec};
pub use packed_driver::PackedDriver;
pub use packed_ring::{PackedDesc, PackedLayout, Position};
pub use postcopy::Pages;
pub use queue::Driver;
pub use ring::{Desc, RingLayout};
pub use session::{Session, SessionBuilder};
pub use shared::SharedFile;

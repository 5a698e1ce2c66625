//! What the tests and benchmarks with real front-ends share: the back-end program as a child
//! process, guest memory, the data pattern, and waits that end.

#![allow(
    dead_code,
    unused_imports,
    reason = "each front-end uses its own part of this module"
)]

mod affinity;
mod backend;
mod blk_client;
mod blkio_disk;
mod deadline;
mod memory;
mod pattern;
mod queue_group;
mod raw_request;
mod split_ring;
mod temp_dir;

pub use affinity::pin_task;
pub use backend::{Backend, Disk, Options, Program};
pub use blk_client::{BlkClient, BlkQueue, Setup, Wait};
pub use blkio_disk::{BlkioDisk, BlkioQueue, QUEUE_DEPTH};
pub use deadline::{Deadline, wait_readable, wait_until};
pub use memory::SharedMemory;
pub use pattern::{BLOCK, Pattern, scattered};
pub use queue_group::QueueGroup;
pub use raw_request::{TYPE_GET_ID, TYPE_IN, raw_request};
pub use split_ring::{RING_SIZE, ReadRequest, SplitRing};
pub use temp_dir::TempDir;

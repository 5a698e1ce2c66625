//! The feature `rust-vmm`: guest memory and elements in the types of vm-memory and virtio-queue, and device code
//! that is written for those with front-ends that know nothing of it.

#[path = "clients/mod.rs"]
mod clients;
#[path = "sim/mod.rs"]
mod sim;
#[path = "common/stop.rs"]
mod stop;
#[path = "../examples/vsock-echo/device.rs"]
mod vsock_device;

#[path = "rust_vmm/blk.rs"]
mod blk;
#[path = "rust_vmm/chain.rs"]
mod chain;
#[path = "rust_vmm/memory.rs"]
mod memory;
#[path = "rust_vmm/vsock.rs"]
mod vsock;

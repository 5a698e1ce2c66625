//! The protocol, message by message, and what hostile peers and guests make of it: over a real socket,
//! against the simulated front-end. Tests that are called `case_NN` are those of the catalogue of malformed
//! inputs; each has exactly the outcome that is written there.

#[path = "sim/mod.rs"]
mod sim;

#[path = "common/stop.rs"]
mod stop;

#[path = "protocol/device.rs"]
mod device;
#[path = "protocol/rig.rs"]
mod rig;
#[path = "protocol/state_script.rs"]
mod state_script;

#[path = "protocol/backend.rs"]
mod backend;
#[path = "protocol/channel.rs"]
mod channel;
#[path = "protocol/channel_answers.rs"]
mod channel_answers;
#[path = "protocol/config.rs"]
mod config;
#[path = "protocol/connections.rs"]
mod connections;
#[path = "protocol/descriptors.rs"]
mod descriptors;
#[path = "protocol/device_classes.rs"]
mod device_classes;
#[path = "protocol/device_state.rs"]
mod device_state;
#[path = "protocol/dirty_log.rs"]
mod dirty_log;
#[path = "protocol/endian.rs"]
mod endian;
#[path = "protocol/features.rs"]
mod features;
#[path = "protocol/framing.rs"]
mod framing;
#[path = "protocol/gpa_addresses.rs"]
mod gpa_addresses;
#[path = "protocol/in_band.rs"]
mod in_band;
#[path = "protocol/inflight.rs"]
mod inflight;
#[path = "protocol/intercept.rs"]
mod intercept;
#[path = "protocol/iotlb.rs"]
mod iotlb;
#[path = "protocol/loops.rs"]
mod loops;
#[path = "protocol/memory.rs"]
mod memory;
#[path = "protocol/memory_slots.rs"]
mod memory_slots;
#[path = "protocol/misuse.rs"]
mod misuse;
#[path = "protocol/packed.rs"]
mod packed;
#[path = "protocol/packed_hostile.rs"]
mod packed_hostile;
#[path = "protocol/postcopy.rs"]
mod postcopy;
#[path = "protocol/postcopy_stuck.rs"]
mod postcopy_stuck;
#[path = "protocol/questions.rs"]
mod questions;
#[path = "protocol/replies.rs"]
mod replies;
#[path = "protocol/reset.rs"]
mod reset;
#[path = "protocol/ring_chain.rs"]
mod ring_chain;
#[path = "protocol/ring_hostile.rs"]
mod ring_hostile;
#[path = "protocol/ring_index.rs"]
mod ring_index;
#[path = "protocol/ring_indirect.rs"]
mod ring_indirect;
#[path = "protocol/vring.rs"]
mod vring;
#[path = "protocol/vring_base.rs"]
mod vring_base;
#[path = "protocol/vring_order.rs"]
mod vring_order;
#[path = "protocol/watches.rs"]
mod watches;

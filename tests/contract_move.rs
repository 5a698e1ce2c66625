//! Queues that move: between contexts, out of them, through stops, disables and new descriptors, all of it
//! under load. Every request is answered once, with the right data, and none waits for a lost notification.

#[path = "common/move_device.rs"]
mod move_device;
#[path = "common/move_loops.rs"]
mod move_loops;
#[path = "common/move_pool.rs"]
mod move_pool;
#[path = "common/move_rig.rs"]
mod move_rig;
#[path = "sim/mod.rs"]
mod sim;

#[path = "contract_move/broken.rs"]
mod broken;
#[path = "contract_move/contexts.rs"]
mod contexts;
#[path = "contract_move/descriptors.rs"]
mod descriptors;
#[path = "contract_move/detach.rs"]
mod detach;
#[path = "contract_move/stopping.rs"]
mod stopping;

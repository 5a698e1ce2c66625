//! Guest memory that comes and goes under running rings: what was acknowledged can be used at once, what is
//! still in use stays mapped, and no acknowledgement waits for a request.

#[path = "common/move_device.rs"]
mod move_device;
#[path = "common/move_load.rs"]
mod move_load;
#[path = "common/move_loops.rs"]
mod move_loops;
#[path = "common/move_pool.rs"]
mod move_pool;
#[path = "common/move_rig.rs"]
mod move_rig;
#[path = "sim/mod.rs"]
mod sim;

#[path = "contract_memory/regions.rs"]
mod regions;
#[path = "contract_memory/rings.rs"]
mod rings;

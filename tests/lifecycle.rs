//! The life of a server through the public API: states, addresses, one front-end at a time, the order and the
//! thread of callbacks, and that nothing is left behind.

#[path = "sim/mod.rs"]
mod sim;

#[path = "common/stop.rs"]
mod stop;

#[path = "lifecycle/addresses.rs"]
mod addresses;
#[path = "lifecycle/connections.rs"]
mod connections;
#[path = "lifecycle/states.rs"]
mod states;

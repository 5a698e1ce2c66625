//! The contract about stopping: it is bounded, from every state and thread, and nothing that an application
//! holds dangles afterwards. Each test would hang, crash or fail if a promise were broken.

#[path = "sim/mod.rs"]
mod sim;

#[path = "common/stop.rs"]
mod stop;
#[path = "common/stop_loop.rs"]
mod stop_loop;

#[path = "contract_stop/any_thread.rs"]
mod any_thread;
#[path = "contract_stop/drain.rs"]
mod drain;
#[path = "contract_stop/in_callbacks.rs"]
mod in_callbacks;
#[path = "contract_stop/nested.rs"]
mod nested;
#[path = "contract_stop/races.rs"]
mod races;
#[path = "contract_stop/same_thread.rs"]
mod same_thread;

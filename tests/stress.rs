//! One device at full rate while everything that can change does: queues move between four contexts and the
//! detached state, contexts are freed and made anew, memory comes and goes, rings are stopped, disabled and
//! given new descriptors, the config space changes, front-ends leave and come back, the server stops and
//! starts. Every request is answered once, with the right bytes, and nothing grows.
//!
//! The choices come from a seed that is printed: `VU_STRESS_SEED` gives it again, `VU_STRESS_ROUND` says with
//! which round to begin, `VU_STRESS_SECONDS` how long to go on (`scripts/soak`).

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

#[path = "stress/contexts.rs"]
mod contexts;
#[path = "stress/device.rs"]
mod device;
#[path = "stress/front_end.rs"]
mod front_end;
#[path = "stress/load.rs"]
mod load;
#[path = "stress/mover.rs"]
mod mover;
#[path = "stress/nest.rs"]
mod nest;
#[path = "stress/plan.rs"]
mod plan;
#[path = "stress/request.rs"]
mod request;
#[path = "stress/round.rs"]
mod round;
#[path = "stress/usage.rs"]
mod usage;
#[path = "stress/watchdog.rs"]
mod watchdog;

use std::time::Instant;

use plan::{Plan, say};
use round::Round;
use usage::Usage;

/// The first rounds fill caches of the C library's and of the kernel's; growth is counted from then on.
const WARM_UP: u64 = 2;
const ROUNDS_MIN: u64 = 5;

/// Alone in this file, so that what the process holds is this test's.
#[test]
fn every_request_is_answered_once_while_everything_changes() {
    let plan = Plan::from_environment();
    say(&format!("stress: {plan}"));
    let began = Instant::now();
    let mut highest: Option<Usage> = None;
    let mut rounds = 0;
    while began.elapsed() < plan.time || rounds < ROUNDS_MIN {
        let figures = Round::new(plan.parameters(rounds)).run();
        let usage = Usage::now();
        say(&format!("stress: {figures}; {usage}"));
        match &mut highest {
            Some(highest) if rounds > WARM_UP => usage.assert_not_above(highest),
            Some(highest) => *highest = highest.highest(&usage),
            None => highest = Some(usage),
        }
        rounds += 1;
    }
}

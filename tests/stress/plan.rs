//! What a run does: all of it follows from a seed.

use std::env;
use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::move_pool::Random;

const SECONDS: u64 = 20;
/// Rounds of a short run; those of a long one last a minute each.
const ROUNDS: u64 = 5;
const LONGEST_ROUND: Duration = Duration::from_secs(60);

pub struct Plan {
    pub time: Duration,
    seed: u64,
    first_round: u64,
}

/// One round: a server, its front-end and four drivers.
#[derive(Clone, Debug)]
pub struct Parameters {
    pub seed: u64,
    pub number: u64,
    pub time: Duration,
    pub queue_size: u16,
    pub depth: usize,
    pub event_idx: bool,
    pub stage_max: u32,
}

impl Plan {
    pub fn from_environment() -> Self {
        let seconds = number("VU_STRESS_SECONDS").unwrap_or(SECONDS);
        Plan {
            time: Duration::from_secs(seconds),
            seed: number("VU_STRESS_SEED").unwrap_or_else(any_seed),
            first_round: number("VU_STRESS_ROUND").unwrap_or(0),
        }
    }

    pub fn parameters(&self, round: u64) -> Parameters {
        let number = self.first_round + round;
        let seed = self.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9));
        let mut random = Random::new(seed);
        let queue_size = [16, 64, 256][random.below(3) as usize];
        Parameters {
            seed,
            number,
            time: (self.time / ROUNDS as u32).min(LONGEST_ROUND),
            queue_size,
            depth: 1 + random.below(u64::from(queue_size) / 2) as usize,
            event_idx: random.below(4) != 0,
            stage_max: [1, 8, 32][random.below(3) as usize],
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "VU_STRESS_SEED={} VU_STRESS_ROUND={} VU_STRESS_SECONDS={}",
            self.seed,
            self.first_round,
            self.time.as_secs()
        )
    }
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock after 1970").as_micros() as u64
}

/// Past the test harness, which keeps what a test prints until it ends; an abort would lose it.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

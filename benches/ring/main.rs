//! The ring engine in one thread: pop, translate, complete, publish, decide. Through the public API, beside a
//! straight-line loop without checks or bookkeeping (the floor) and the `virtio-queue` crate, all over the same rings.
//!
//! Machines drift, so only ratios count that were taken in one run: every round measures all three one after the other.
//! Elements are popped, completed and published in batches, cache-hot; no interrupt is ever wanted.

#[path = "../../tests/sim/mod.rs"]
mod sim;

mod floor;
mod ours;
mod peer;
mod workload;

use std::process::ExitCode;
use std::time::Instant;

use workload::Row;

/// Descriptors of a chain, whether in an indirect table, chains of a batch, memory regions.
const ROWS: &[Row] = &[
    Row {
        chain: 1,
        indirect: false,
        batch: 1,
        regions: 1,
    },
    Row {
        chain: 1,
        indirect: false,
        batch: 32,
        regions: 1,
    },
    Row {
        chain: 3,
        indirect: false,
        batch: 32,
        regions: 1,
    },
    Row {
        chain: 3,
        indirect: true,
        batch: 32,
        regions: 1,
    },
    Row {
        chain: 8,
        indirect: false,
        batch: 32,
        regions: 1,
    },
    Row {
        chain: 3,
        indirect: false,
        batch: 32,
        regions: 64,
    },
    Row {
        chain: 3,
        indirect: false,
        batch: 32,
        regions: 509,
    },
];

const ROUNDS: usize = 7;
const REQUESTS: usize = 400_000;

/// One engine with the row's ring before it, running as often as it is asked.
pub trait Engine {
    /// Takes `batches` batches through the ring.
    fn run(&mut self, batches: usize);
}

/// What a round measured: ns for a request, by engine.
type Round = [f64; 3];

fn nanoseconds(engine: &mut dyn Engine, row: &Row) -> f64 {
    let batches = REQUESTS / row.batch;
    engine.run(batches / 20);
    let start = Instant::now();
    engine.run(batches);
    start.elapsed().as_nanos() as f64 / (batches * row.batch) as f64
}

/// Measures the engines in turn.
pub fn measure(row: &Row, ours: &mut dyn Engine) -> Vec<Round> {
    let mut floor = floor::Floor::new(row);
    let mut peer = peer::Peer::new(row);
    (0..ROUNDS)
        .map(|_| {
            [
                nanoseconds(&mut floor, row),
                nanoseconds(ours, row),
                nanoseconds(&mut peer, row),
            ]
        })
        .collect()
}

fn median(rounds: &[Round], value: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> ExitCode {
    println!("ns for a request; ratios are medians over {ROUNDS} rounds");
    println!(
        "{:<44} {:>7} {:>10} {:>13} {:>9} {:>14}",
        "chain", "floor", "vu-server", "virtio-queue", "to floor", "virtio-queue /"
    );
    for row in ROWS {
        let rounds = match ours::rounds(row) {
            Ok(rounds) => rounds,
            Err(error) => {
                eprintln!("{row}: {error}");
                return ExitCode::FAILURE;
            }
        };
        println!(
            "{:<44} {:>7.1} {:>10.1} {:>13.1} {:>9.2} {:>14.1}",
            row.to_string(),
            median(&rounds, |round| round[0]),
            median(&rounds, |round| round[1]),
            median(&rounds, |round| round[2]),
            median(&rounds, |round| round[1] / round[0]),
            median(&rounds, |round| round[2] / round[1]),
        );
    }
    ExitCode::SUCCESS
}

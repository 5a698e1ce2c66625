//! The tables: a line for each program, with its ratio to the first one.

use super::case::Case;
use super::measure::Sample;
use super::server::{Candidate, Server};
use super::spread::Spread;

pub struct Report(());

impl Report {
    /// Prints the head of the table.
    pub fn new() -> Self {
        println!(
            "{:<25} {:>6} {:>5}  {:<28} {:>7} {:>10}  {:>21}  {:>21}",
            "placement",
            "queues",
            "depth",
            "program",
            "k IOPS",
            "CPU ns/req",
            "IOPS ratio",
            "CPU ratio"
        );
        Report(())
    }

    /// `rounds[r][s]` is what server `s` did in round `r`.
    pub fn print(&mut self, case: &Case, servers: &[Server], rounds: &[Vec<Sample>]) {
        for (i, server) in servers.iter().enumerate() {
            let (placement, queues, depth) = match i {
                0 => (
                    case.placement.name(),
                    case.queues.to_string(),
                    case.depth.to_string(),
                ),
                _ => ("", String::new(), String::new()),
            };
            let iops = Spread::of(rounds, |round| round[i].iops);
            let cpu = Spread::of(rounds, |round| round[i].cpu);
            print!(
                "{placement:<25} {queues:>6} {depth:>5}  {:<28} {:>7.1} {:>10.0}",
                server.name,
                iops.median / 1000.0,
                cpu.median
            );
            if i > 0 {
                let iops = Spread::of(rounds, |round| round[0].iops / round[i].iops);
                let cpu = Spread::of(rounds, |round| round[0].cpu / round[i].cpu);
                print!("  {:>21}  {:>21}", iops.to_string(), cpu.to_string());
            }
            println!();
        }
    }
}

/// The head of the table that [`print_times`] fills.
pub fn print_times_head() {
    println!(
        "{:<38}  {:<28} {:>24}  {:>21}",
        "what", "program", "ms", "ratio"
    );
}

/// `rounds[r][c]` is how many ms candidate `c` took in round `r`.
pub fn print_times(what: &str, candidates: &[Candidate], rounds: &[Vec<f64>]) {
    for (i, candidate) in candidates.iter().enumerate() {
        let what = if i == 0 { what } else { "" };
        let times = Spread::of(rounds, |round| round[i]);
        print!(
            "{what:<38}  {:<28} {:>24}",
            candidate.name,
            times.to_string()
        );
        if i > 0 {
            let ratio = Spread::of(rounds, |round| round[0] / round[i]);
            print!("  {:>21}", ratio.to_string());
        }
        println!();
    }
}

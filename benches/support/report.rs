//! The table: a line for each program, with its ratio to the first one.

use super::measure::{Case, Sample};
use super::server::Server;

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
            let iops = spread(rounds, |round| round[i].iops);
            let cpu = spread(rounds, |round| round[i].cpu);
            print!(
                "{placement:<25} {queues:>6} {depth:>5}  {:<28} {:>7.1} {:>10.0}",
                server.name,
                iops.median / 1000.0,
                cpu.median
            );
            if i > 0 {
                let iops = spread(rounds, |round| round[0].iops / round[i].iops);
                let cpu = spread(rounds, |round| round[0].cpu / round[i].cpu);
                print!("  {:>21}  {:>21}", iops.to_string(), cpu.to_string());
            }
            println!();
        }
    }
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spread {
            least,
            median,
            most,
        } = self;
        write!(f, "{median:.2} ({least:.2} .. {most:.2})")
    }
}

fn spread(rounds: &[Vec<Sample>], value: impl Fn(&[Sample]) -> f64) -> Spread {
    let mut values: Vec<f64> = rounds.iter().map(|round| value(round)).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    Spread {
        least: values[0],
        median: (values[last / 2] + values[last.div_ceil(2)]) / 2.0,
        most: values[last],
    }
}

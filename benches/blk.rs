//! `vu-blk` with a null disk beside other vhost-user-blk back-ends: I/O per second, the CPU time the
//! server spends on each, and the control path. Machines drift, so only ratios count that were taken
//! in one run, and every round measures all programs one after the other.
//!
//! VU_BLK is the path of vu-blk, QSD one or more paths of qemu-storage-daemon, separated by ':'.

#[path = "../tests/clients/mod.rs"]
mod clients;

#[path = "support/mod.rs"]
mod support;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use support::report::{print_times, print_times_head};
use support::{Candidate, Case, Placement, Plan, Report, Server, control, machine};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// (placement, queues, requests in flight on each queue)
type Row = (Placement, usize, usize);

const ONE_QUEUE: &[Row] = &[
    (Placement::OneCpu, 1, 1),
    (Placement::OneCpu, 1, 32),
    (Placement::OneCpu, 1, 128),
    (Placement::TwoCpus, 1, 1),
    (Placement::TwoCpus, 1, 32),
    (Placement::TwoCpus, 1, 128),
];

const MANY_CORES: &[Row] = &[
    (Placement::BothCpus, 2, 1),
    (Placement::BothCpus, 2, 32),
    (Placement::BothCpus, 2, 128),
    (Placement::BothCpus, 4, 32),
    (Placement::BothCpus, 4, 128),
];

/// Queues that are set up before the first request.
const CONNECT_QUEUES: &[usize] = &[1, 8];

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    OneQueue,
    ManyCores,
    Control,
}

const PARTS: &[(&str, Part)] = &[
    ("queue", Part::OneQueue),
    ("cores", Part::ManyCores),
    ("control", Part::Control),
];

struct Arguments {
    plan: Plan,
    parts: Vec<Part>,
}

fn arguments() -> Result<Arguments> {
    let mut plan = Plan {
        rounds: 5,
        duration: Duration::from_millis(500),
    };
    let mut parts = Vec::new();
    for argument in std::env::args().skip(1) {
        if let Some((_, part)) = PARTS.iter().find(|(name, _)| *name == argument) {
            parts.push(*part);
            continue;
        }
        match argument.split_once('=') {
            Some(("--rounds", rounds)) => plan.rounds = rounds.parse()?,
            Some(("--millis", millis)) => plan.duration = Duration::from_millis(millis.parse()?),
            None if argument == "--bench" => {}
            _ => {
                let text = "not queue, cores, control, --rounds=N or --millis=N";
                return Err(format!("{argument}: {text}").into());
            }
        }
    }
    if plan.rounds == 0 || plan.duration.is_zero() {
        return Err("--rounds and --millis must not be 0".into());
    }
    if parts.is_empty() {
        parts = PARTS.iter().map(|&(_, part)| part).collect();
    }
    Ok(Arguments { plan, parts })
}

/// vu-blk with each of these numbers of iothreads, and what it is compared with.
fn candidates(iothreads: &[u16]) -> Result<Vec<Candidate>> {
    let peers = std::env::var_os("QSD").unwrap_or_else(|| "qemu-storage-daemon".into());
    let peers = std::env::split_paths(&peers).map(Candidate::storage_daemon);
    let ours = iothreads.iter().copied().map(Candidate::vu_blk);
    ours.map(Ok).chain(peers).collect()
}

fn measure(plan: &Plan, rows: &[Row], candidates: &[Candidate]) -> Result<()> {
    println!(
        "null disk, 4 KiB random reads, {} rounds of {} ms, programs interleaved\n",
        plan.rounds,
        plan.duration.as_millis()
    );
    let mut report = Report::new();
    for same_queues in rows.chunk_by(|a, b| a.1 == b.1) {
        let queues = same_queues[0].1;
        let servers = candidates
            .iter()
            .map(|candidate| Server::start(candidate, queues));
        let mut servers = servers.collect::<Result<Vec<_>>>()?;
        for &(placement, queues, depth) in same_queues {
            if placement.cpus()?.is_none() {
                println!("{}: left out, this machine has one CPU", placement.name());
                continue;
            }
            let case = Case {
                placement,
                queues,
                depth,
            };
            let rounds = plan.measure(&case, &mut servers)?;
            report.print(&case, &servers, &rounds);
        }
    }
    println!();
    Ok(())
}

fn measure_control(plan: &Plan, candidates: &[Candidate]) -> Result<()> {
    // A connection takes a few ms: many of them for the time of one round of reads.
    let connections = 10 * plan.rounds;
    let stops = 2 * plan.rounds;
    println!("control path: {connections} connections, {stops} stops\n");
    print_times_head();
    for &queues in CONNECT_QUEUES {
        let rounds = control::connect(candidates, queues, connections)?;
        let plural = if queues == 1 { "" } else { "s" };
        let what = format!("connect to first read, {queues} queue{plural}");
        print_times(&what, candidates, &rounds);
    }
    let rounds = control::stop(candidates, stops)?;
    print_times("SIGTERM to end, 128 in flight", candidates, &rounds);
    println!();
    Ok(())
}

fn run() -> Result<()> {
    let Arguments { plan, parts } = arguments()?;
    println!("{}", machine::describe()?);
    for part in parts {
        match part {
            Part::OneQueue => measure(&plan, ONE_QUEUE, &candidates(&[1])?)?,
            Part::ManyCores => measure(&plan, MANY_CORES, &candidates(&[2, 1])?)?,
            Part::Control => measure_control(&plan, &candidates(&[1])?)?,
        }
    }
    println!(
        "ratios: the first program ÷ the one of the line, median (least .. most) of the rounds"
    );
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("blk: {e}");
            ExitCode::FAILURE
        }
    }
}

//! `vu-blk` with a null disk beside other vhost-user-blk back-ends: I/O per second, and the CPU
//! time the server spends on each. Machines drift, so only ratios count that were taken in one run,
//! and every round measures all programs one after the other.
//!
//! VU_BLK is the path of vu-blk, QSD one or more paths of qemu-storage-daemon, separated by ':'.

#[path = "../tests/clients/mod.rs"]
mod clients;

#[path = "support/mod.rs"]
mod support;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clients::{Program, Wait};
use support::{Case, Placement, Plan, Report, Server, machine};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// (placement, queues, requests in flight on each queue)
const CASES: &[(Placement, usize, usize)] = &[
    (Placement::OneCpu, 1, 1),
    (Placement::OneCpu, 1, 32),
    (Placement::OneCpu, 1, 128),
    (Placement::TwoCpus, 1, 1),
    (Placement::TwoCpus, 1, 32),
    (Placement::TwoCpus, 1, 128),
];

fn cases() -> Vec<Case> {
    let case = |&(placement, queues, depth): &(Placement, usize, usize)| Case {
        placement,
        queues,
        depth,
        wait: match placement {
            // A client that spins would take the CPU from the server.
            Placement::OneCpu => Wait::EventFd,
            Placement::TwoCpus => Wait::Polling,
        },
    };
    CASES.iter().map(case).collect()
}

fn programs() -> Vec<Program> {
    let peers = std::env::var_os("QSD").unwrap_or_else(|| "qemu-storage-daemon".into());
    let peers = std::env::split_paths(&peers).map(Program::StorageDaemon);
    std::iter::once(Program::under_test())
        .chain(peers)
        .collect()
}

fn plan() -> Result<Plan> {
    let mut plan = Plan {
        rounds: 5,
        duration: Duration::from_millis(500),
    };
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--rounds", rounds)) => plan.rounds = rounds.parse()?,
            Some(("--millis", millis)) => plan.duration = Duration::from_millis(millis.parse()?),
            None if argument == "--bench" => {}
            _ => return Err(format!("{argument}: not --rounds=N or --millis=N").into()),
        }
    }
    if plan.rounds == 0 || plan.duration.is_zero() {
        return Err("--rounds and --millis must not be 0".into());
    }
    Ok(plan)
}

fn run() -> Result<()> {
    let plan = plan()?;
    let cases = cases();
    let programs = programs();
    println!("{}", machine::describe()?);
    println!(
        "null disk, 4 KiB random reads, {} rounds of {} ms, programs interleaved\n",
        plan.rounds,
        plan.duration.as_millis()
    );
    let mut report = Report::new();
    for same_queues in cases.chunk_by(|a, b| a.queues == b.queues) {
        let queues = same_queues[0].queues;
        let servers = programs
            .iter()
            .map(|program| Server::start(program, queues));
        let mut servers = servers.collect::<Result<Vec<_>>>()?;
        for case in same_queues {
            if case.placement.cpus()?.is_none() {
                println!(
                    "{}: left out, this machine has one CPU",
                    case.placement.name()
                );
                continue;
            }
            let rounds = plan.measure(case, &mut servers)?;
            report.print(case, &servers, &rounds);
        }
    }
    println!("\nratios: vu-blk ÷ the program of the line, median (least .. most) of the rounds");
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

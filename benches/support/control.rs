//! The control path: how long a front-end waits for its first request, and a stop for its end.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::clients::QueueGroup;
use super::measure::Offsets;
use super::server::{Candidate, MAX_DEPTH};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// More than any program takes that is going to end at all.
const END: Duration = Duration::from_secs(20);

/// Requests after which a load counts as running.
const WARM: u64 = 10_000;

/// Milliseconds, by round and candidate.
pub type Rounds = Vec<Vec<f64>>;

/// From connect(2) to the completion of one read on the last of `queues` queues.
pub fn connect(candidates: &[Candidate], queues: usize, rounds: usize) -> Result<Rounds> {
    let backends = candidates.iter().map(|candidate| candidate.start(queues));
    let backends = backends.collect::<Result<Vec<_>>>()?;
    let first_read = |(candidate, backend): (&Candidate, _)| -> Result<f64> {
        let start = Instant::now();
        let mut client = candidate.connect(backend, queues, 1)?;
        let last = &mut client.queues()[queues - 1];
        last.read(0, 0)?;
        last.kick()?;
        client.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    // The first connection of a process pays for what is loaded and allocated once.
    (0..rounds + 1)
        .map(|_| candidates.iter().zip(&backends).map(first_read).collect())
        .skip(1)
        .collect()
}

/// From SIGTERM to the end of the process, while a client keeps 128 requests in flight.
pub fn stop(candidates: &[Candidate], rounds: usize) -> Result<Rounds> {
    (0..rounds)
        .map(|_| candidates.iter().map(stop_under_load).collect())
        .collect()
}

fn stop_under_load(candidate: &Candidate) -> Result<f64> {
    let mut backend = candidate.start(1)?;
    let mut client = candidate.connect(&backend, 1, MAX_DEPTH)?;
    let (completed, end) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let group = client.groups(1).remove(0);
        let load = scope.spawn(|| keep_reading(group, &completed, &end));
        while completed.load(Ordering::Relaxed) < WARM && !load.is_finished() {
            std::thread::yield_now();
        }
        let start = Instant::now();
        let status = backend.end_with(libc::SIGTERM, END);
        let millis = start.elapsed().as_secs_f64() * 1e3;
        end.store(true, Ordering::Relaxed);
        load.join().expect("the load does not panic")?;
        if status.success() {
            Ok(millis)
        } else {
            Err(format!("{}: {status} after SIGTERM", candidate.name).into())
        }
    })
}

/// Until it is told to end, for a server that has ended completes nothing any more.
fn keep_reading(
    mut group: QueueGroup<'_>,
    completed: &AtomicU64,
    end: &AtomicBool,
) -> std::io::Result<()> {
    let mut offsets = Offsets::new();
    let mut ready: Vec<usize> = (0..MAX_DEPTH).collect();
    while !end.load(Ordering::Relaxed) {
        for queue in group.queues() {
            for slot in ready.drain(..) {
                queue.read(slot, offsets.next())?;
            }
            queue.kick()?;
            queue.take_completions(|slot, _| ready.push(slot));
        }
        completed.fetch_add(ready.len() as u64, Ordering::Relaxed);
        if ready.is_empty() {
            std::thread::yield_now();
        }
    }
    Ok(())
}

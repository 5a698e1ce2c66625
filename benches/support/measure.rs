//! One measurement: random reads at a fixed depth for a fixed time.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use super::super::clients::{BLOCK, QueueGroup, pin_task};
use super::case::{Case, Cpus};
use super::server::{DISK, Server};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub struct Plan {
    pub rounds: usize,
    pub duration: Duration,
}

/// What one program did in one round.
#[derive(Clone, Copy)]
pub struct Sample {
    pub iops: f64,
    /// Server CPU time for one request, in ns.
    pub cpu: f64,
}

impl Plan {
    /// For each round, one sample of each server.
    pub fn measure(&self, case: &Case, servers: &mut [Server]) -> Result<Vec<Vec<Sample>>> {
        let cpus = case.placement.cpus()?.ok_or("not enough CPUs")?;
        for server in servers.iter_mut() {
            server.pin(&cpus.server)?;
            server.client.set_wait(case.placement.wait());
            self.read(case, &cpus, server, self.duration / 5)?;
        }
        let mut rounds = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            let samples = servers
                .iter_mut()
                .map(|server| self.sample(case, &cpus, server));
            rounds.push(samples.collect::<Result<_>>()?);
        }
        Ok(rounds)
    }

    fn sample(&self, case: &Case, cpus: &Cpus, server: &mut Server) -> Result<Sample> {
        let cpu_before = server.cpu_time()?;
        let start = Instant::now();
        let requests = self.read(case, cpus, server, self.duration)?;
        let elapsed = start.elapsed();
        let cpu = server.cpu_time()? - cpu_before;
        Ok(Sample {
            iops: requests as f64 / elapsed.as_secs_f64(),
            cpu: cpu as f64 / requests as f64,
        })
    }

    /// Reads for `duration` on all queues, with a thread for each of the client's CPUs; how often.
    fn read(
        &self,
        case: &Case,
        cpus: &Cpus,
        server: &mut Server,
        duration: Duration,
    ) -> Result<u64> {
        let groups = server.client.groups(cpus.clients.len());
        let counts = std::thread::scope(|scope| {
            let threads = groups.into_iter().zip(&cpus.clients).map(|(group, &cpu)| {
                scope.spawn(move || {
                    pin_task(0, &[cpu])?;
                    read_for(group, case.depth, duration)
                })
            });
            // All of them run before the first is waited for.
            let threads: Vec<_> = threads.collect();
            let counts = threads
                .into_iter()
                .map(|thread| thread.join().expect("a client thread does not panic"));
            counts.sum::<io::Result<u64>>()
        });
        counts.map_err(|e| format!("{}: {e}", server.name).into())
    }
}

/// Keeps `depth` reads in flight on every queue for `duration`, then lets them end; returns how
/// many there were.
fn read_for(mut group: QueueGroup<'_>, depth: usize, duration: Duration) -> io::Result<u64> {
    let mut offsets = Offsets::new();
    let in_flight = (group.queues().len() * depth) as u64;
    for queue in group.queues() {
        for slot in 0..depth {
            queue.read(slot, offsets.next())?;
        }
        queue.kick()?;
    }
    let (mut submitted, mut completed) = (in_flight, 0);
    let end = Instant::now() + duration;
    let mut done = Vec::with_capacity(depth);
    while completed < submitted {
        group.wait()?;
        let more = Instant::now() < end;
        for queue in group.queues() {
            let mut failed = None;
            queue.take_completions(|slot, result| {
                done.push(slot);
                failed = failed.or((result != 0).then_some(result));
            });
            if let Some(result) = failed {
                return Err(io::Error::other(format!("a read failed: {result}")));
            }
            completed += done.len() as u64;
            if more && !done.is_empty() {
                submitted += done.len() as u64;
                for &slot in &done {
                    queue.read(slot, offsets.next())?;
                }
                queue.kick()?;
            }
            done.clear();
        }
    }
    Ok(completed)
}

/// Pseudo-random block offsets on the disk (xorshift).
pub struct Offsets(u64);

impl Offsets {
    pub fn new() -> Self {
        Offsets(0x2545_f491_4f6c_dd1d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % (DISK / BLOCK as u64)) * BLOCK as u64
    }
}

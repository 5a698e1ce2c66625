//! One measurement: random reads at a fixed depth for a fixed time.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use super::super::clients::{BLOCK, BlkClient, Wait, pin_task};
use super::machine::allowed_cpus;
use super::server::{DISK, Server};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Client and server share a CPU.
    OneCpu,
    /// Client and server have a CPU each.
    TwoCpus,
}

impl Placement {
    pub fn name(self) -> &'static str {
        match self {
            Placement::OneCpu => "one CPU, notifications",
            Placement::TwoCpus => "two CPUs, polling client",
        }
    }

    /// The client's CPU and the server's, if the machine has enough of them.
    pub fn cpus(self) -> io::Result<Option<(usize, usize)>> {
        let cpus = allowed_cpus()?;
        Ok(match (self, cpus.as_slice()) {
            (Placement::OneCpu, [.., last]) => Some((*last, *last)),
            (Placement::TwoCpus, [first, .., last]) => Some((*first, *last)),
            _ => None,
        })
    }
}

pub struct Case {
    pub placement: Placement,
    pub queues: usize,
    pub depth: usize,
    pub wait: Wait,
}

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
        let (client_cpu, server_cpu) = case.placement.cpus()?.ok_or("not enough CPUs")?;
        let everywhere = CurrentTask::pin(client_cpu)?;
        for server in servers.iter_mut() {
            server.pin(server_cpu)?;
            server.client.set_wait(case.wait);
            read_for(&mut server.client, case.depth, self.duration / 5)
                .map_err(|e| format!("{}: {e}", server.name))?;
        }
        let mut rounds = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            let samples = servers.iter_mut().map(|server| self.sample(case, server));
            rounds.push(samples.collect::<Result<_>>()?);
        }
        everywhere.unpin()?;
        Ok(rounds)
    }

    fn sample(&self, case: &Case, server: &mut Server) -> Result<Sample> {
        let cpu_before = server.cpu_time()?;
        let start = Instant::now();
        let requests = read_for(&mut server.client, case.depth, self.duration)
            .map_err(|e| format!("{}: {e}", server.name))?;
        let elapsed = start.elapsed();
        let cpu = server.cpu_time()? - cpu_before;
        Ok(Sample {
            iops: requests as f64 / elapsed.as_secs_f64(),
            cpu: cpu as f64 / requests as f64,
        })
    }
}

/// The calling thread on one CPU, until it is given back to all it had.
struct CurrentTask {
    before: libc::cpu_set_t,
}

impl CurrentTask {
    fn pin(cpu: usize) -> io::Result<Self> {
        // SAFETY: an all-zero cpu_set_t is the empty set.
        let mut before: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer and the size describe `before`, which outlives the call.
        if unsafe { libc::sched_getaffinity(0, size_of_val(&before), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        pin_task(0, cpu)?;
        Ok(CurrentTask { before })
    }

    fn unpin(self) -> io::Result<()> {
        // SAFETY: the pointer and the size describe `before`, which outlives the call.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&self.before), &self.before) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Keeps `depth` reads in flight on every queue for `duration`, then lets them end; returns how
/// many there were.
fn read_for(client: &mut BlkClient, depth: usize, duration: Duration) -> Result<u64> {
    let mut offsets = Offsets(0x2545_f491_4f6c_dd1d);
    for queue in client.queues() {
        for slot in 0..depth {
            queue.read(slot, offsets.next())?;
        }
        queue.kick()?;
    }
    let in_flight = (client.queues().len() * depth) as u64;
    let (mut submitted, mut completed) = (in_flight, 0);
    let end = Instant::now() + duration;
    let mut done = Vec::with_capacity(depth);
    while completed < submitted {
        client.wait()?;
        let more = Instant::now() < end;
        for queue in client.queues() {
            let mut failed = None;
            queue.take_completions(|slot, result| {
                done.push(slot);
                failed = failed.or((result != 0).then_some(result));
            });
            if let Some(result) = failed {
                return Err(format!("a read failed: {result}").into());
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
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % (DISK / BLOCK as u64)) * BLOCK as u64
    }
}

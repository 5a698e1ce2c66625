//! What is measured: where client and server run, and how much the client asks for.

use std::io;

use super::super::clients::Wait;
use super::machine::allowed_cpus;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Client and server share a CPU.
    OneCpu,
    /// Client and server have a CPU each.
    TwoCpus,
    /// A client thread on each of two CPUs, and the server's threads on both.
    BothCpus,
}

/// The CPUs of a placement.
pub struct Cpus {
    /// One for each thread of the client.
    pub clients: Vec<usize>,
    pub server: Vec<usize>,
}

impl Placement {
    pub fn name(self) -> &'static str {
        match self {
            Placement::OneCpu => "one CPU, notifications",
            Placement::TwoCpus => "two CPUs, polling client",
            Placement::BothCpus => "both CPUs, notifications",
        }
    }

    pub fn wait(self) -> Wait {
        match self {
            // A client that spins would take the CPU from the server.
            Placement::OneCpu | Placement::BothCpus => Wait::EventFd,
            Placement::TwoCpus => Wait::Polling,
        }
    }

    /// None: the machine has not enough of them.
    pub fn cpus(self) -> io::Result<Option<Cpus>> {
        let allowed = allowed_cpus()?;
        let cpus = |clients, server| Some(Cpus { clients, server });
        Ok(match (self, allowed.as_slice()) {
            (Placement::OneCpu, [.., last]) => cpus(vec![*last], vec![*last]),
            (Placement::TwoCpus, [first, .., last]) => cpus(vec![*first], vec![*last]),
            (Placement::BothCpus, [first, .., last]) => {
                cpus(vec![*first, *last], vec![*first, *last])
            }
            _ => None,
        })
    }
}

pub struct Case {
    pub placement: Placement,
    pub queues: usize,
    /// Requests in flight on each queue.
    pub depth: usize,
}

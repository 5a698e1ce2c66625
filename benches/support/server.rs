//! A back-end with a null disk, and the client that is connected to it.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use super::super::clients::{
    BLOCK, Backend, BlkClient, Disk, Options, Program, Setup, Wait, pin_task,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub const DISK: u64 = 1 << 30;

/// The most requests in flight on a queue; each takes three descriptors of 512.
pub const MAX_DEPTH: usize = 128;

/// A program to measure.
pub struct Candidate {
    pub name: String,
    program: Program,
    iothreads: u16,
}

impl Candidate {
    pub fn vu_blk(iothreads: u16) -> Self {
        let plural = if iothreads == 1 { "" } else { "s" };
        Candidate {
            name: format!("vu-blk, {iothreads} iothread{plural}"),
            program: Program::under_test(),
            iothreads,
        }
    }

    /// Named with its version, for it comes in several.
    pub fn storage_daemon(path: std::path::PathBuf) -> Result<Self> {
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_ascii_whitespace().nth(2).unwrap_or("?");
        Ok(Candidate {
            name: format!("qemu-storage-daemon {version}"),
            program: Program::StorageDaemon(path),
            iothreads: 1,
        })
    }

    pub fn start(&self, queues: usize) -> Result<Backend> {
        let mut options = Options::new(Disk::Null(DISK));
        options.queues = u16::try_from(queues)?;
        options.iothreads = self.iothreads;
        // It serves one case after the other; the client has time-outs of its own.
        options.lifetime = Duration::from_secs(3600);
        Ok(Backend::start_program(&self.program, &options))
    }

    pub fn connect(&self, backend: &Backend, queues: usize, depth: usize) -> Result<BlkClient> {
        let setup = Setup {
            queues,
            queue_size: 512,
            depth,
            buffer_len: BLOCK,
            event_idx: true,
            wait: Wait::EventFd,
        };
        BlkClient::connect(backend.socket_str(), setup)
            .map_err(|e| format!("{}: {e}", self.name).into())
    }
}

pub struct Server {
    pub name: String,
    // Dropped first: a connected client's server does not end by itself.
    pub client: BlkClient,
    backend: Backend,
}

impl Server {
    pub fn start(candidate: &Candidate, queues: usize) -> Result<Self> {
        let backend = candidate.start(queues)?;
        Ok(Server {
            name: candidate.name.clone(),
            client: candidate.connect(&backend, queues, MAX_DEPTH)?,
            backend,
        })
    }

    fn tasks(&self) -> Result<Vec<i32>> {
        let mut tasks = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.backend.pid()))? {
            tasks.push(entry?.file_name().to_string_lossy().parse()?);
        }
        Ok(tasks)
    }

    pub fn pin(&self, cpus: &[usize]) -> Result<()> {
        for task in self.tasks()? {
            pin_task(task, cpus)?;
        }
        Ok(())
    }

    /// The time all threads have spent on a CPU, in ns.
    pub fn cpu_time(&self) -> Result<u64> {
        let mut sum = 0u64;
        for task in self.tasks()? {
            let path = format!("/proc/{}/task/{task}/schedstat", self.backend.pid());
            let times = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
            let on_cpu = times.split(' ').next().unwrap_or_default();
            sum += on_cpu.parse::<u64>().map_err(|e| format!("{path}: {e}"))?;
        }
        Ok(sum)
    }
}

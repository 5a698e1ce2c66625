//! A back-end with a null disk and the client that is connected to it.

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

pub struct Server {
    pub name: String,
    // Dropped first: a connected client's server does not end by itself.
    pub client: BlkClient,
    backend: Backend,
}

impl Server {
    pub fn start(program: &Program, queues: usize) -> Result<Self> {
        let mut options = Options::new(Disk::Null(DISK));
        options.queues = u16::try_from(queues)?;
        // It serves one case after the other; the client has time-outs of its own.
        options.lifetime = Duration::from_secs(3600);
        let backend = Backend::start_program(program, &options);
        let setup = Setup {
            queues,
            queue_size: 512,
            depth: MAX_DEPTH,
            buffer_len: BLOCK,
            event_idx: true,
            wait: Wait::EventFd,
        };
        let client = BlkClient::connect(backend.socket_str(), setup)
            .map_err(|e| format!("{}: {e}", program.path().display()))?;
        Ok(Server {
            name: name(program)?,
            client,
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

    pub fn pin(&self, cpu: usize) -> Result<()> {
        for task in self.tasks()? {
            pin_task(task, cpu)?;
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

/// The program's name, with the version for one that comes in several.
fn name(program: &Program) -> Result<String> {
    match program {
        Program::VuBlk(_) => Ok("vu-blk".to_owned()),
        Program::StorageDaemon(path) => {
            let output = Command::new(path).arg("--version").output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.split_ascii_whitespace().nth(2).unwrap_or("?");
            Ok(format!("qemu-storage-daemon {version}"))
        }
    }
}

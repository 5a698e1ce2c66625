//! The program `vu-blk`, which the environment variable `VU_BLK` names, run as a daemon is run.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

pub fn program() -> Command {
    let path = std::env::var_os("VU_BLK").expect("VU_BLK names no program, see scripts/test");
    Command::new(path)
}

pub fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vu-blk-program-{}-{name}", std::process::id()))
}

/// A running program that ends with the test.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Running(
            command
                .stderr(Stdio::piped())
                .stdin(Stdio::null())
                .spawn()
                .expect("vu-blk"),
        )
    }

    /// What it says on stderr.
    pub fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let stderr = self.0.stderr.take().expect("stderr");
        BufReader::new(stderr)
            .lines()
            .map(|line| line.expect("UTF-8"))
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child has not been waited for, so its process id is still its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    pub fn wait(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("wait") {
                return status.code().expect("ended by itself");
            }
            assert!(start.elapsed() < LIMIT, "vu-blk does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Passes `fd` as number 3.
pub fn with_fd(command: &mut Command, fd: OwnedFd) -> &mut Command {
    let raw = fd.as_raw_fd();
    // SAFETY: dup2 and fcntl are async-signal-safe; `fd` lives in the closure until the child has it.
    unsafe {
        command.pre_exec(move || {
            let _held = &fd;
            let result = if raw == 3 {
                libc::fcntl(raw, libc::F_SETFD, 0)
            } else {
                libc::dup2(raw, 3)
            };
            if result < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// GET_FEATURES, answered.
pub fn features_of(mut front_end: &UnixStream) -> u64 {
    front_end.set_read_timeout(Some(LIMIT)).expect("time-out");
    let header = [1u32, 1, 0];
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    front_end.write_all(&bytes).expect("send");
    let mut reply = [0; 20];
    front_end.read_exact(&mut reply).expect("a reply");
    u64::from_ne_bytes(reply[12..].try_into().expect("8 bytes"))
}

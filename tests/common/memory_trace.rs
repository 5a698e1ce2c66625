//! Which cache lines a program touches, as valgrind's lackey sees it.
//!
//! The trace says nothing about threads. But a caller who lets one thread work at a time, and looks at the
//! trace when all of them sleep, knows whose accesses it holds.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LINE_SHIFT: u32 = 6;
const LIMIT: Duration = Duration::from_secs(120);

/// The instructions that first read and first wrote a cache line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Touch {
    pub read_by: Option<u64>,
    pub written_by: Option<u64>,
}

/// By the number of the cache line.
pub type Touches = HashMap<u64, Touch>;

#[derive(Default)]
struct State {
    touches: Touches,
    /// The end of what was read, not yet a whole line of text.
    rest: Vec<u8>,
    instruction: u64,
}

pub struct MemoryTrace {
    fifo: File,
    state: Arc<Mutex<State>>,
}

impl MemoryTrace {
    /// Makes `program` into one that runs under lackey: its path and its trace, both in `dir`.
    pub fn wrap(program: &Path, dir: &Path) -> (PathBuf, Self) {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("trace");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        // Both directions: opens before there is a writer, and does not end with the first one.
        let fifo = File::options().read(true).write(true).open(&path);
        let fifo = fifo.expect("the fifo");
        let wrapper = dir.join("traced");
        let script = format!(
            "#!/bin/sh\nexec valgrind --tool=lackey --trace-mem=yes --fair-sched=yes \
             --log-file='{}' '{}' \"$@\"\n",
            path.display(),
            program.display()
        );
        std::fs::write(&wrapper, script).expect("the wrapper");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&wrapper, executable).expect("chmod");
        let state = Arc::new(Mutex::new(State::default()));
        let (source, weak) = (fifo.try_clone().expect("dup"), Arc::downgrade(&state));
        std::thread::spawn(move || {
            loop {
                let has_text = wait_for_text(&source);
                let Some(state) = weak.upgrade() else { return };
                if has_text {
                    // What has left the fifo is in the state before anybody sees either.
                    state.lock().expect("no panic").read(&source);
                }
            }
        });
        (wrapper, MemoryTrace { fifo, state })
    }

    /// What was touched since the last call, as soon as the process sleeps.
    pub fn take(&self, pid: u32) -> Touches {
        let start = Instant::now();
        loop {
            let mut state = self.state.lock().expect("no panic");
            if is_empty(&self.fifo) && all_threads_sleep(pid) && is_empty(&self.fifo) {
                return std::mem::take(&mut state.touches);
            }
            drop(state);
            assert!(start.elapsed() < LIMIT, "the program does not come to rest");
            std::thread::yield_now();
        }
    }
}

impl State {
    fn read(&mut self, mut source: &File) {
        let mut bytes = [0; 1 << 16];
        let count = source.read(&mut bytes).expect("read the trace");
        self.rest.extend_from_slice(&bytes[..count]);
        let text = std::mem::take(&mut self.rest);
        let mut lines = text.split_inclusive(|&byte| byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() && !line.ends_with(b"\n") {
                self.rest = line.to_vec();
            } else {
                self.parse(line);
            }
        }
    }

    /// A kind (I: instruction, L: load, S: store, M: both), an address and a size; or other text.
    fn parse(&mut self, line: &[u8]) -> Option<()> {
        let line = std::str::from_utf8(line).ok()?.trim();
        let (kind, access) = line.split_once(' ')?;
        let (address, size) = access.trim().split_once(',')?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let size: u64 = size.parse().ok()?;
        if kind == "I" {
            self.instruction = address;
            return Some(());
        }
        let first = address >> LINE_SHIFT;
        let last = (address + size.saturating_sub(1)) >> LINE_SHIFT;
        for number in first..=last {
            let touch = self.touches.entry(number).or_default();
            if kind != "S" {
                touch.read_by.get_or_insert(self.instruction);
            }
            if kind != "L" {
                touch.written_by.get_or_insert(self.instruction);
            }
        }
        Some(())
    }
}

/// For a moment: the caller looks now and then whether the trace is still wanted.
fn wait_for_text(fifo: &File) -> bool {
    let mut fds = [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(200u16)).is_ok_and(|ready| ready > 0)
}

fn is_empty(fifo: &File) -> bool {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int, which `count` is.
    let rc = unsafe { libc::ioctl(fifo.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(rc, 0, "FIONREAD");
    count == 0
}

/// None runs or waits for a processor.
fn all_threads_sleep(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the program's threads");
    tasks.into_iter().all(|task| {
        let path = task.expect("a thread").path().join("stat");
        let stat = std::fs::read_to_string(path).expect("its state");
        let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
        rest.trim_start().starts_with('S')
    })
}

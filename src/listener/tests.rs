//! Listening, adopting and connecting over real sockets and files.

mod accepting;
mod binding;
mod connecting;
mod text;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{Address, ListenError, Listener};

/// A directory of its own for one test, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the value must differ, nothing is ordered by it.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vu-server-test-{}-{number}", process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).expect("a fresh directory");
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn listen(path: &Path) -> Result<Listener, ListenError> {
    Listener::open(Address::Listen(path.to_path_buf()))
}

fn accept(listener: &mut Listener) -> Option<OwnedFd> {
    listener.try_accept(Instant::now()).expect("no failure")
}

fn is_cloexec(fd: &OwnedFd) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFD).expect("F_GETFD");
    FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)
}

fn is_nonblocking(fd: &OwnedFd) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFL).expect("F_GETFL");
    OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
}

/// Whether `accepted` is the other end of `client`.
fn connects(client: &UnixStream, accepted: OwnedFd) -> bool {
    use std::io::{Read, Write};
    let mut accepted = UnixStream::from(accepted);
    let word = (client.as_raw_fd() as u32).to_ne_bytes();
    let mut seen = [0; 4];
    let mut writer = client;
    writer.write_all(&word).is_ok() && accepted.read_exact(&mut seen).is_ok() && seen == word
}

/// A socket file without a process behind it.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).expect("bind"));
    // A test that starts a process may have given it a copy of the socket for
    // a moment, until it executes its program.
    let deadline = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(path).is_ok() {
        assert!(Instant::now() < deadline, "the socket is still open");
        thread::yield_now();
    }
}

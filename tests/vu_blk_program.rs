//! `vu-blk` as a program: its options, its status, its signals, its sockets.
//!
//! The program is named by the environment variable `VU_BLK`; see scripts/test.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

fn program() -> Command {
    let path = std::env::var_os("VU_BLK").expect("VU_BLK names no program, see scripts/test");
    Command::new(path)
}

fn run(options: &[&str]) -> Output {
    program()
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("vu-blk")
}

/// One line on stderr that names `what`, nothing on stdout, status 2.
fn refused(options: &[&str], what: &str) {
    let output = run(options);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{options:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{options:?}: {stderr}");
    assert!(stderr.contains(what), "{options:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{options:?}");
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vu-blk-program-{}-{name}", std::process::id()))
}

/// A running program that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Running(
            command
                .stderr(Stdio::piped())
                .stdin(Stdio::null())
                .spawn()
                .expect("vu-blk"),
        )
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child has not been waited for, so its process id is still its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    fn wait(&mut self) -> i32 {
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

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn wrong_options_are_one_line_and_status_2() {
    refused(&["--socket-path=/tmp/x", "--null=1G", "--bogus"], "--bogus");
    refused(&["--socket-path=/tmp/x", "--null=1Q"], "1Q");
    refused(&["--socket-path=/tmp/x", "--null=100"], "100");
    refused(&["--socket-path=/tmp/x", "--null=99999999T"], "99999999T");
    refused(&["--null=1G"], "--socket-path");
    refused(&["--socket-path=/tmp/x"], "--blk-file");
    refused(
        &["--socket-path=/tmp/x", "--blk-file=/nonexistent/disk"],
        "/nonexistent/disk",
    );
    refused(
        &["--socket-path=/tmp/x", "--null=1G", "--num-queues=0"],
        "0",
    );
    refused(
        &["--socket-path=/tmp/x", "--null=1G", "--queue-size=100"],
        "100",
    );
    refused(&["--fd=77", "--null=1G"], "77");
    refused(
        &["--socket-path=/tmp/x", "--null=1G", "--poll-max-ns=-1"],
        "-1",
    );
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn it_says_what_it_is() {
    let capabilities = run(&["--print-capabilities"]);
    assert!(capabilities.status.success() && capabilities.stderr.is_empty());
    let text: String = String::from_utf8(capabilities.stdout)
        .expect("UTF-8")
        .split_whitespace()
        .collect();
    assert!(
        text.starts_with('{') && text.ends_with('}') && text.contains("\"type\":\"block\""),
        "{text}"
    );
    assert!(
        text.contains("\"read-only\"") && text.contains("\"blk-file\""),
        "{text}"
    );
    let help = run(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for option in [
        "--socket-path",
        "--fd",
        "--blk-file",
        "--null",
        "--read-only",
        "--num-queues",
        "--queue-size",
        "--iothreads",
        "--poll-max-ns",
        "--serial",
        "--print-capabilities",
        "--version",
    ] {
        assert!(help.contains(option), "{option}");
    }
    let version = run(&["--version"]);
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn sigusr1_prints_one_line_of_statistics() {
    let socket = scratch("stats.sock");
    let mut vu_blk = Running::start(
        program()
            .arg(format!("--socket-path={}", socket.display()))
            .arg("--null=1M"),
    );
    let mut lines = BufReader::new(vu_blk.0.stderr.take().expect("stderr")).lines();
    lines.next().expect("the start-up line").expect("UTF-8");
    vu_blk.signal(libc::SIGUSR1);
    let line = lines.next().expect("statistics").expect("UTF-8");
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert!(
        line.contains("\"connections\":0") && line.contains("\"pops\":0"),
        "{line}"
    );
    vu_blk.signal(libc::SIGINT);
    assert_eq!(vu_blk.wait(), 0);
    assert!(!socket.exists());
}

/// Passes `fd` as number 3.
fn with_fd(command: &mut Command, fd: OwnedFd) -> &mut Command {
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
fn features_of(mut front_end: &UnixStream) -> u64 {
    use std::io::Write;
    front_end.set_read_timeout(Some(LIMIT)).expect("time-out");
    let header = [1u32, 1, 0];
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    front_end.write_all(&bytes).expect("send");
    let mut reply = [0; 20];
    front_end.read_exact(&mut reply).expect("a reply");
    u64::from_ne_bytes(reply[12..].try_into().expect("8 bytes"))
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn an_inherited_listening_socket_is_served_again_and_again() {
    let socket = scratch("listen.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let mut command = program();
    command.args(["--fd=3", "--null=1M"]);
    let mut vu_blk = Running::start(with_fd(&mut command, listener.into()));
    for _ in 0..2 {
        let front_end = UnixStream::connect(&socket).expect("connect");
        assert_ne!(features_of(&front_end) & 1 << 30, 0);
    }
    vu_blk.signal(libc::SIGTERM);
    assert_eq!(vu_blk.wait(), 0);
    std::fs::remove_file(&socket).expect("the socket file is its owner's");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn an_inherited_connection_ends_the_program_with_it() {
    let (front_end, back_end) = UnixStream::pair().expect("pair");
    let mut command = program();
    command.args(["--fd=3", "--null=1M"]);
    // SAFETY: a new descriptor number that nothing else owns.
    let back_end = unsafe { OwnedFd::from_raw_fd(libc::dup(back_end.as_raw_fd())) };
    let mut vu_blk = Running::start(with_fd(&mut command, back_end));
    drop(command);
    assert_ne!(features_of(&front_end) & 1 << 30, 0);
    drop(front_end);
    assert_eq!(vu_blk.wait(), 0);
}

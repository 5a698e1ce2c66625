//! The back-end program under test, as a child process that never outlives its test.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Deadline, TempDir, wait_readable, wait_until};

/// The time from the start of the program to its listening socket.
const START: Duration = Duration::from_secs(60);

/// A program that can serve a vhost-user-blk device.
#[derive(Clone)]
pub enum Program {
    VuBlk(PathBuf),
    StorageDaemon(PathBuf),
}

impl Program {
    /// The program that VU_BLK names. A qemu-storage-daemon may stand in for `vu-blk`, to tell a
    /// fault of a test from one of the program.
    pub fn under_test() -> Self {
        let path = PathBuf::from(std::env::var_os("VU_BLK").expect(
            "VU_BLK is not set: it must hold the path of the program vu-blk (see scripts/test)",
        ));
        match path.file_name().map(|name| name.to_string_lossy()) {
            Some(name) if name.starts_with("qemu-storage-daemon") => Program::StorageDaemon(path),
            _ => Program::VuBlk(path),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Program::VuBlk(path) | Program::StorageDaemon(path) => path,
        }
    }

    fn arguments(&self, options: &Options, socket: &Path) -> Vec<OsString> {
        match self {
            Program::VuBlk(_) => options.for_vu_blk(socket),
            Program::StorageDaemon(_) => options.for_storage_daemon(socket),
        }
    }
}

#[derive(Clone)]
pub enum Disk {
    /// Reads nothing and keeps nothing: this many bytes of it.
    Null(u64),
    Image(PathBuf),
}

#[derive(Clone)]
pub struct Options {
    pub disk: Disk,
    pub queues: u16,
    pub queue_size: u16,
    pub iothreads: u16,
    pub serial: Option<String>,
    pub read_only: bool,
    /// After this time the program is killed, so that a front-end that waits for it without a
    /// time-out of its own fails.
    pub lifetime: Duration,
}

impl Options {
    pub fn new(disk: Disk) -> Self {
        Options {
            disk,
            queues: 1,
            queue_size: 512,
            iothreads: 1,
            serial: None,
            read_only: false,
            lifetime: Duration::from_secs(120),
        }
    }

    fn for_vu_blk(&self, socket: &Path) -> Vec<OsString> {
        let mut args = vec![
            option("--socket-path=", socket),
            format!("--num-queues={}", self.queues).into(),
            format!("--queue-size={}", self.queue_size).into(),
            format!("--iothreads={}", self.iothreads).into(),
        ];
        args.push(match &self.disk {
            Disk::Null(size) => format!("--null={size}").into(),
            Disk::Image(path) => option("--blk-file=", path),
        });
        if let Some(serial) = &self.serial {
            args.push(format!("--serial={serial}").into());
        }
        if self.read_only {
            args.push("--read-only".into());
        }
        args
    }

    fn for_storage_daemon(&self, socket: &Path) -> Vec<OsString> {
        let node = match &self.disk {
            Disk::Null(size) => {
                format!("driver=null-co,node-name=d0,size={size},read-zeroes=off")
            }
            Disk::Image(path) => format!(
                "driver=file,node-name=d0,filename={},discard=unmap,read-only={}",
                path.display(),
                if self.read_only { "on" } else { "off" }
            ),
        };
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable={},\
             num-queues={}",
            socket.display(),
            if self.read_only { "off" } else { "on" },
            self.queues
        );
        ["--blockdev", &node, "--export", &export]
            .map(OsString::from)
            .to_vec()
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(path);
    argument
}

pub struct Backend {
    child: Child,
    pidfd: OwnedFd,
    socket: PathBuf,
    log: PathBuf,
    /// The program was told to end, so it may.
    ended: bool,
    lifetime: Lifetime,
    _dir: TempDir,
}

impl Backend {
    /// Starts the program that VU_BLK names and waits until it listens.
    pub fn start(options: &Options) -> Self {
        Self::start_program(&Program::under_test(), options)
    }

    pub fn start_program(program: &Program, options: &Options) -> Self {
        let dir = TempDir::new();
        let socket = dir.join("vhost.sock");
        let log = dir.join("stderr");
        let child = spawn(program, &program.arguments(options, &socket), &log);
        let pidfd = open_pidfd(&child);
        let lifetime = Lifetime::start(&pidfd, options.lifetime);
        let mut backend = Backend {
            child,
            pidfd,
            socket,
            log,
            ended: false,
            lifetime,
            _dir: dir,
        };
        backend.wait_listening();
        backend
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The path as the front-end crates want it.
    pub fn socket_str(&self) -> &str {
        self.socket.to_str().expect("temporary path in UTF-8")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` and waits for the end of the program.
    pub fn end_with(&mut self, signal: libc::c_int, limit: Duration) -> ExitStatus {
        self.ended = true;
        send_signal(&self.pidfd, signal).unwrap_or_else(|e| panic!("signal {signal}: {e}"));
        let exited = wait_readable(self.pidfd.as_fd(), &Deadline::after(limit));
        assert!(
            exited,
            "{} still runs {limit:?} after signal {signal}",
            self.child.id()
        );
        self.child.wait().expect("wait for the back-end")
    }

    fn wait_listening(&mut self) {
        let socket = self.socket.clone();
        let mut status = None;
        wait_until(START, "listening socket", || {
            status = self.child.try_wait().expect("wait for the back-end");
            status.is_some() || is_listening(&socket)
        });
        if let Some(status) = status {
            self.ended = true;
            panic!("the back-end ended at its start: {status}");
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.lifetime.stop();
        let early = self.child.try_wait().expect("wait for the back-end");
        if early.is_none() {
            // The pidfd refers to our own child, which has not been waited for.
            let _ = send_signal(&self.pidfd, libc::SIGKILL);
            let _ = self.child.wait();
        }
        let died = early.filter(|_| !self.ended);
        if died.is_some() || std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- stderr of the back-end ---\n{log}--- end ---");
        }
        if let (Some(status), false) = (died, std::thread::panicking()) {
            panic!("the back-end ended by itself: {status}");
        }
    }
}

fn spawn(program: &Program, args: &[OsString], log: &Path) -> Child {
    let stderr = File::create(log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    let mut command = Command::new(program.path());
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    // SAFETY: prctl is async-signal-safe, and the closure touches nothing else.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        )
    };
    command
        .spawn()
        .unwrap_or_else(|e| panic!("start {}: {e}", program.path().display()))
}

fn open_pidfd(child: &Child) -> OwnedFd {
    let pid = libc::pid_t::try_from(child.id()).expect("pid");
    // SAFETY: plain numbers; the child has not been waited for, so the pid is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    // SAFETY: a new fd that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn send_signal(pidfd: &OwnedFd, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: a null siginfo means the kernel fills it in, as for kill(2).
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Looks into the kernel's list of sockets: a probing connection would be served as a front-end.
fn is_listening(socket: &Path) -> bool {
    const ACCEPTCON: &str = "00010000";
    let list = std::fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    list.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some(ACCEPTCON) && fields.last().is_some_and(|p| Path::new(p) == socket)
    })
}

/// Kills a program that is still there when its time is over.
struct Lifetime {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lifetime {
    fn start(pidfd: &OwnedFd, limit: Duration) -> Self {
        let pidfd = pidfd.try_clone().expect("dup of a pidfd");
        let (stop, stopped): (Sender<()>, Receiver<()>) = channel();
        let thread = std::thread::spawn(move || {
            if stopped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test took more than {limit:?}: its back-end is killed");
                // It may have ended in this moment.
                let _ = send_signal(&pidfd, libc::SIGKILL);
            }
        });
        Lifetime {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

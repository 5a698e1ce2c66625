//! Listening at a path: taking over a stale socket file, removing our own.
//!
//! A socket file outlives the process that made it, so one that is found at
//! the path is stale if nobody answers there. Two servers that start at the
//! same path must not take each other's fresh file for a stale one:
//! * between bind(2) and listen(2) a socket answers as if it were stale;
//! * between finding a file stale and unlinking it, another server may have
//!   put its own in the place.
//!
//! So all of it is done under an advisory lock on the directory, which leaves
//! no file behind. (Binding to a temporary name and renaming would need no
//! lock, but the temporary name is what ss(8) and the peer would then see for
//! ever.) Programs that do not take the lock can still interfere; against
//! them the file is compared once more right before it is unlinked.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::socket::{Backlog, UnixAddr, bind, listen};
use nix::sys::stat::{FileStat, Mode, SFlag, lstat};
use nix::unistd::unlink;

use super::address::file_kind;
use super::{ListenError, connect_to, new_socket};

/// How many front-ends may wait while one is served.
const BACKLOG: i32 = 16;

/// How long to wait for the lock. Its holders need microseconds, but anybody
/// who may read the directory could hold it for ever; then we go on without.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// A socket file that is ours. Dropping it removes the file, unless another
/// one has taken its place.
#[derive(Debug)]
pub(super) struct BoundPath {
    /// Absolute, so that a change of the working directory does no harm.
    path: PathBuf,
    identity: Identity,
}

/// What tells a file from another one that has its name later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(stat: &FileStat) -> Identity {
        Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl BoundPath {
    /// Binds and listens.
    pub(super) fn bind(path: &Path) -> Result<(BoundPath, OwnedFd), ListenError> {
        let fail = |call: &'static str| move |errno| system(call, path, errno);
        let address = UnixAddr::new(path).map_err(fail("bind"))?;
        let absolute = std::path::absolute(path)
            .map_err(errno_of)
            .map_err(fail("getcwd"))?;
        let _lock = lock_directory(&absolute);

        let socket = new_socket().map_err(fail("socket"))?;
        let mut bound = bind(socket.as_raw_fd(), &address);
        if bound == Err(Errno::EADDRINUSE) {
            remove_stale(path)?;
            bound = bind(socket.as_raw_fd(), &address);
        }
        bound.map_err(|errno| match errno {
            Errno::EADDRINUSE => in_use(path),
            errno => system("bind", path, errno),
        })?;

        let identity = Identity::of(&lstat(&absolute).map_err(fail("lstat"))?);
        let bound = BoundPath {
            path: absolute,
            identity,
        };
        let backlog = Backlog::new(BACKLOG).map_err(fail("listen"))?;
        listen(&socket, backlog).map_err(fail("listen"))?;
        Ok((bound, socket))
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // The socket is still open here and holds on to its inode, so no
        // other file can have the same numbers.
        let ours = lstat(&self.path).is_ok_and(|stat| Identity::of(&stat) == self.identity);
        if ours {
            // Nothing is left to be done if it fails.
            let _ = unlink(&self.path);
        }
    }
}

/// Removes the socket file at `path` if nobody listens there.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Some(found) = socket_at(path)? else {
        return Ok(());
    };
    match connect_to(path) {
        // Another kind of socket is alive, too.
        Ok(_) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => return Err(in_use(path)),
        Err(Errno::ECONNREFUSED) => {}
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(system("connect", path, errno)),
    }
    match socket_at(path)? {
        None => Ok(()),
        Some(now) if now != found => Err(in_use(path)),
        Some(_) => match unlink(path) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(system("unlink", path, errno)),
        },
    }
}

/// The socket file at `path`, or none if there is nothing.
fn socket_at(path: &Path) -> Result<Option<Identity>, ListenError> {
    let stat = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(system("lstat", path, errno)),
    };
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Err(ListenError::NotASocket {
            path: path.to_path_buf(),
            what: file_kind(stat.st_mode),
        });
    }
    Ok(Some(Identity::of(&stat)))
}

/// Locks the directory of `path`, as far as that is possible: it takes leave
/// to read the directory, and a file system that has locks.
fn lock_directory(path: &Path) -> Option<Flock<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = open(path.parent()?, flags, Mode::empty()).ok()?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => {
                directory = back;
                thread::sleep(LOCK_PAUSE);
            }
            Err(_) => return None,
        }
    }
}

fn in_use(path: &Path) -> ListenError {
    ListenError::InUse {
        path: path.to_path_buf(),
    }
}

fn system(call: &'static str, path: &Path, errno: Errno) -> ListenError {
    ListenError::System {
        call,
        subject: path.display().to_string(),
        errno,
    }
}

fn errno_of(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL))
}

//! The file descriptors that a queue signals: call and err.
//!
//! They come from the peer, so they may be anything that a write can be tried on. A write does not block, also
//! not when the peer takes the flag away that says so, and never raises SIGPIPE.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::{SFlag, fstat};

use crate::sync::{AtomicBool, AtomicU8, AtomicU32, Mutex, Ordering};

const NONE: u8 = 0;
/// An eventfd, or anything else whose write raises no signal.
const QUIET: u8 = 1;
/// A socket or a pipe: a write to one without a reader raises SIGPIPE.
const LOUD: u8 = 2;
/// No descriptor: a message takes its place.
const IN_BAND: u8 = 3;

/// What is left to do for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signalled {
    Done,
    /// The front-end must be sent a message.
    InBand,
}

/// The kind of a descriptor that can be signalled. Files, directories and devices cannot: the flag that makes a write
/// or a read return at once means nothing to some of them, and a terminal stops who writes to it.
pub(super) fn kind_of(fd: BorrowedFd<'_>) -> Result<u8, Errno> {
    match SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK | SFlag::S_IFIFO => Ok(LOUD),
        SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFBLK | SFlag::S_IFCHR => Err(Errno::EPERM),
        // An eventfd or the like, which is no kind of file.
        _ => Ok(QUIET),
    }
}

/// Makes the descriptor non-blocking. The flag belongs to the open file, so the peer sees it too.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// A descriptor number that is never closed while its owner lives, only replaced: a write that races with a
/// replacement goes to the old or the new file, never to a number that something else has taken.
#[derive(Debug)]
struct Number {
    held: Mutex<Option<OwnedFd>>,
    raw: AtomicU32,
}

impl Number {
    fn new() -> Self {
        Number {
            held: Mutex::new(None),
            raw: AtomicU32::new(0),
        }
    }

    fn set(&self, fd: OwnedFd) -> Result<(), Errno> {
        let mut held = self.held.lock();
        match held.as_mut() {
            Some(held) => nix::unistd::dup3(&fd, held, OFlag::O_CLOEXEC),
            None => {
                self.raw.store(fd.as_raw_fd() as u32, Ordering::Relaxed);
                *held = Some(fd);
                Ok(())
            }
        }
    }

    /// Only after it was set.
    fn borrow(&self) -> BorrowedFd<'_> {
        let raw = self.raw.load(Ordering::Relaxed) as i32;
        // SAFETY: the number stays open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }

    /// Lets go of the file; `placeholder` takes over the number.
    fn clear(&self, placeholder: BorrowedFd<'_>) {
        if let Some(held) = self.held.lock().as_mut() {
            // If even this fails, the number keeps the old file, which is then merely not signalled.
            let _ = nix::unistd::dup3(placeholder, held, OFlag::O_CLOEXEC);
        }
    }
}

/// A descriptor to signal.
///
/// Quiet and loud files have a number each, so that a write which saw one kind cannot reach a file of the other
/// that was set meanwhile.
#[derive(Debug)]
pub(crate) struct SignalFd {
    kind: AtomicU8,
    quiet: Number,
    loud: Number,
    failure_reported: AtomicBool,
}

impl SignalFd {
    pub(crate) fn new() -> Self {
        SignalFd {
            kind: AtomicU8::new(NONE),
            quiet: Number::new(),
            loud: Number::new(),
            failure_reported: AtomicBool::new(false),
        }
    }

    /// Takes a descriptor of the peer's. `placeholder` takes the place of one of the other kind.
    pub(crate) fn set(&self, fd: OwnedFd, placeholder: BorrowedFd<'_>) -> Result<(), Errno> {
        let kind = kind_of(fd.as_fd())?;
        set_nonblocking(fd.as_fd())?;
        let (own, other) = if kind == LOUD {
            (&self.loud, &self.quiet)
        } else {
            (&self.quiet, &self.loud)
        };
        own.set(fd)?;
        self.failure_reported.store(false, Ordering::Relaxed);
        // Release pairs with the Acquire in `signal`: who sees the kind sees the number.
        self.kind.store(kind, Ordering::Release);
        other.clear(placeholder);
        Ok(())
    }

    /// Gives the peer's descriptor up. With `in_band`, messages take its place.
    pub(crate) fn clear(&self, placeholder: BorrowedFd<'_>, in_band: bool) {
        let kind = if in_band { IN_BAND } else { NONE };
        self.kind.store(kind, Ordering::Release);
        self.quiet.clear(placeholder);
        self.loud.clear(placeholder);
    }

    /// Whether messages take the place of a descriptor where there is none.
    pub(crate) fn allow_in_band(&self, allow: bool) {
        let (from, to) = if allow {
            (NONE, IN_BAND)
        } else {
            (IN_BAND, NONE)
        };
        // Release as in `set`; only the internal thread changes the kind, so there is nothing to race with.
        let _ = self
            .kind
            .compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
    }

    /// Signals the peer. An error is returned once per descriptor, so that it is logged once.
    pub(crate) fn signal(&self) -> Result<Signalled, Errno> {
        let result = match self.kind.load(Ordering::Acquire) {
            NONE => return Ok(Signalled::Done),
            IN_BAND => return Ok(Signalled::InBand),
            QUIET => write_one(self.quiet.borrow()),
            _ => write_quietly(self.loud.borrow()),
        };
        match result {
            // A full counter or buffer: the peer has a signal pending anyway.
            Ok(()) | Err(Errno::EAGAIN) => Ok(Signalled::Done),
            Err(_) if self.failure_reported.swap(true, Ordering::Relaxed) => Ok(Signalled::Done),
            Err(errno) => Err(errno),
        }
    }
}

/// The peer shares the file, and may have taken its O_NONBLOCK away.
fn write_one(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    set_nonblocking(fd)?;
    nix::unistd::write(fd, &1u64.to_ne_bytes()).map(drop)
}

/// SIGPIPE is blocked around the write, and a new one taken off the queue.
fn write_quietly(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let before = pipe.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let result = write_one(fd);
    if result == Err(Errno::EPIPE) && !before.contains(Signal::SIGPIPE) {
        take_pending(&pipe);
    }
    before.thread_set_mask()?;
    result
}

fn take_pending(set: &SigSet) {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to live values; the call only removes a pending signal of this thread.
    unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &now) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    fn eventfd() -> EventFd {
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()
    }

    fn owned(fd: &impl AsFd) -> OwnedFd {
        fd.as_fd().try_clone_to_owned().unwrap()
    }

    fn closed_pipe() -> OwnedFd {
        nix::unistd::pipe().unwrap().1
    }

    #[test]
    fn replacing_keeps_the_number_and_signals_the_new_file() {
        let signal = SignalFd::new();
        let (first, second, placeholder) = (eventfd(), eventfd(), eventfd());
        signal.set(owned(&first), placeholder.as_fd()).unwrap();
        let number = signal.quiet.raw.load(Ordering::Relaxed);
        signal.set(owned(&second), placeholder.as_fd()).unwrap();
        assert_eq!(signal.quiet.raw.load(Ordering::Relaxed), number);
        signal.signal().unwrap();
        assert_eq!(first.read(), Err(Errno::EAGAIN));
        assert_eq!(second.read(), Ok(1));
        signal.clear(placeholder.as_fd(), false);
        signal.signal().unwrap();
        assert_eq!(second.read(), Err(Errno::EAGAIN));
    }

    #[test]
    fn messages_take_the_place_of_a_missing_descriptor_only() {
        let signal = SignalFd::new();
        let (fd, placeholder) = (eventfd(), eventfd());
        signal.allow_in_band(true);
        assert_eq!(signal.signal(), Ok(Signalled::InBand));
        signal.set(owned(&fd), placeholder.as_fd()).unwrap();
        signal.allow_in_band(true);
        assert_eq!(signal.signal(), Ok(Signalled::Done));
        assert_eq!(fd.read(), Ok(1));
        signal.clear(placeholder.as_fd(), true);
        assert_eq!(signal.signal(), Ok(Signalled::InBand));
        signal.allow_in_band(false);
        assert_eq!(signal.signal(), Ok(Signalled::Done));
    }

    #[test]
    fn a_full_counter_does_not_block() {
        let full = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let signal = SignalFd::new();
        signal.set(owned(&full), eventfd().as_fd()).unwrap();
        assert_eq!(signal.signal(), Ok(Signalled::Done));
    }

    #[test]
    fn a_full_counter_does_not_block_though_its_flag_was_taken_away() {
        let full = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        let signal = SignalFd::new();
        signal.set(owned(&full), eventfd().as_fd()).unwrap();
        full.write(u64::MAX - 1).unwrap();
        for _ in 0..3 {
            fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            assert_eq!(signal.signal(), Ok(Signalled::Done));
        }
    }

    #[test]
    fn files_and_devices_are_refused() {
        let regular = std::fs::File::open("/proc/self/exe").unwrap();
        let directory = std::fs::File::open("/").unwrap();
        let device = std::fs::File::open("/dev/null").unwrap();
        for file in [regular, directory, device] {
            let signal = SignalFd::new();
            let refused = signal.set(OwnedFd::from(file), eventfd().as_fd());
            assert_eq!(refused, Err(Errno::EPERM));
        }
    }

    #[test]
    fn a_closed_pipe_or_socket_is_reported_once_and_raises_nothing() {
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(peer);
        for fd in [closed_pipe(), OwnedFd::from(socket)] {
            let signal = SignalFd::new();
            signal.set(fd, eventfd().as_fd()).unwrap();
            assert_eq!(signal.signal(), Err(Errno::EPIPE));
            assert_eq!(signal.signal(), Ok(Signalled::Done), "reported twice");
        }
    }

    /// A completion that has read "quiet" and is overtaken by SET_VRING_CALL with a closed pipe.
    #[test]
    fn a_write_that_saw_the_old_kind_never_reaches_a_pipe() {
        let signal = SignalFd::new();
        let placeholder = eventfd();
        signal.set(owned(&eventfd()), placeholder.as_fd()).unwrap();
        let seen = signal.quiet.borrow();
        signal.set(closed_pipe(), placeholder.as_fd()).unwrap();
        assert_ne!(signal.loud.borrow().as_raw_fd(), seen.as_raw_fd());
        assert_eq!(write_one(seen), Ok(()));
        assert_eq!(placeholder.read(), Ok(1));
    }
}

//! The file descriptors that a queue signals: call and err.
//!
//! They come from the peer, so they may be anything that a write can be tried on. A write never blocks and
//! never raises SIGPIPE.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::{SFlag, fstat};

use crate::sync::{AtomicBool, AtomicU8, Mutex, Ordering};

const NONE: u8 = 0;
const PLAIN: u8 = 1;
const SOCKET: u8 = 2;
const PIPE: u8 = 3;

/// Makes the descriptor non-blocking. The flag belongs to the open file, so the peer sees it too.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// A descriptor to signal, with one number for its whole life: a write that races with a replacement goes to
/// the old or the new file, never to a number that something else has taken.
#[derive(Debug)]
pub(crate) struct SignalFd {
    number: Mutex<Option<OwnedFd>>,
    raw: crate::sync::AtomicU32,
    kind: AtomicU8,
    failure_reported: AtomicBool,
}

impl SignalFd {
    pub(crate) fn new() -> Self {
        SignalFd {
            number: Mutex::new(None),
            raw: crate::sync::AtomicU32::new(0),
            kind: AtomicU8::new(NONE),
            failure_reported: AtomicBool::new(false),
        }
    }

    /// Takes a descriptor of the peer's.
    pub(crate) fn set(&self, fd: OwnedFd) -> Result<(), Errno> {
        set_nonblocking(fd.as_fd())?;
        let kind = match SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFSOCK => SOCKET,
            SFlag::S_IFIFO => PIPE,
            _ => PLAIN,
        };
        let mut number = self.number.lock();
        match number.as_mut() {
            Some(held) => nix::unistd::dup3(&fd, held, OFlag::O_CLOEXEC)?,
            None => {
                self.raw.store(fd.as_raw_fd() as u32, Ordering::Relaxed);
                *number = Some(fd);
            }
        }
        self.failure_reported.store(false, Ordering::Relaxed);
        // Release pairs with the Acquire in `signal`: who sees the kind sees the number.
        self.kind.store(kind, Ordering::Release);
        Ok(())
    }

    /// Gives the peer's descriptor up; `placeholder` takes over the number.
    pub(crate) fn clear(&self, placeholder: BorrowedFd<'_>) {
        let mut number = self.number.lock();
        self.kind.store(NONE, Ordering::Release);
        if let Some(held) = number.as_mut() {
            // Without a free table slot the number keeps the old file, which is then merely not signalled.
            let _ = nix::unistd::dup3(placeholder, held, OFlag::O_CLOEXEC);
        }
    }

    /// Signals the peer. An error is returned once per descriptor, so that it is logged once.
    pub(crate) fn signal(&self) -> Result<(), Errno> {
        let kind = self.kind.load(Ordering::Acquire);
        if kind == NONE {
            return Ok(());
        }
        let raw = self.raw.load(Ordering::Relaxed) as i32;
        // SAFETY: the number was set before the kind and stays open as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        let result = match kind {
            SOCKET => send_quietly(fd),
            PIPE => write_quietly(fd),
            _ => nix::unistd::write(fd, &1u64.to_ne_bytes()).map(drop),
        };
        match result {
            // A full counter or buffer: the peer has a signal pending anyway.
            Ok(()) | Err(Errno::EAGAIN) => Ok(()),
            Err(_) if self.failure_reported.swap(true, Ordering::Relaxed) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

fn send_quietly(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    use nix::sys::socket::{MsgFlags, send};
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(fd.as_raw_fd(), &1u64.to_ne_bytes(), flags).map(drop)
}

/// A pipe has no MSG_NOSIGNAL, so SIGPIPE is blocked around the write and a new one taken off the queue.
fn write_quietly(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let before = pipe.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let result = nix::unistd::write(fd, &1u64.to_ne_bytes()).map(drop);
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

    fn value(fd: &EventFd) -> Result<u64, Errno> {
        fd.read()
    }

    #[test]
    fn replacing_keeps_the_number_and_signals_the_new_file() {
        let signal = SignalFd::new();
        let first = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let second = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        signal.set(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let number = signal.raw.load(Ordering::Relaxed);
        signal.set(second.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(signal.raw.load(Ordering::Relaxed), number);
        signal.signal().unwrap();
        assert_eq!(value(&first), Err(Errno::EAGAIN));
        assert_eq!(value(&second), Ok(1));
        signal.clear(first.as_fd());
        signal.signal().unwrap();
        assert_eq!(value(&first), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_full_counter_does_not_block() {
        let full = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let signal = SignalFd::new();
        signal.set(full.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(signal.signal(), Ok(()));
    }

    #[test]
    fn a_closed_pipe_or_socket_is_reported_once_and_raises_nothing() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(b);
        for fd in [writer, OwnedFd::from(a)] {
            let signal = SignalFd::new();
            signal.set(fd).unwrap();
            assert_eq!(signal.signal(), Err(Errno::EPIPE));
            assert_eq!(signal.signal(), Ok(()), "reported twice");
        }
    }
}

//! Where a queue's kicks come from: the front-end's descriptor, its messages, or a timer for a ring without
//! either.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::signal::{kind_of, set_nonblocking};

/// How often a ring is looked at whose front-end gave no kick descriptor (the specification's "no FD" bit).
/// Any loop can watch a timer, so such a ring works in every kind of context.
const POLL_INTERVAL: Duration = Duration::from_micros(250);

/// Aligned as the queue is: a kick takes a reference to it.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct KickSource {
    fd: OwnedFd,
    /// The internal thread signals it, when a message says so.
    in_band: bool,
}

/// What a read of the kick descriptor said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Signalled, or a spurious wake-up: look at the ring.
    Ok,
    /// It will never signal again.
    Gone,
    Failed(Errno),
}

impl KickSource {
    /// A descriptor that epoll accepts, made non-blocking.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self, Errno> {
        kind_of(fd.as_fd())?;
        set_nonblocking(fd.as_fd())?;
        // A loop of the application is never asked to watch what cannot be watched.
        let probe = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        probe.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self::new(fd))
    }

    pub(crate) fn timer() -> Result<Self, Errno> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        timer.set(
            Expiration::Interval(TimeSpec::from_duration(POLL_INTERVAL)),
            TimerSetTimeFlags::empty(),
        )?;
        Ok(Self::new(OwnedFd::from(timer)))
    }

    /// For kicks that come as messages (the protocol feature INBAND_NOTIFICATIONS).
    pub(crate) fn in_band() -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(KickSource {
            fd: EventFd::from_flags(flags)?.into(),
            in_band: true,
        })
    }

    fn new(fd: OwnedFd) -> Self {
        KickSource { fd, in_band: false }
    }

    /// A message has come. False if this one is signalled by other means.
    pub(crate) fn signal(&self) -> bool {
        if self.in_band {
            // A full counter is a signal already.
            let _ = nix::unistd::write(&self.fd, &1u64.to_ne_bytes());
        }
        self.in_band
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes the signal off. One bounded read: what is left makes the loop call again.
    pub(crate) fn drain(&self) -> Drained {
        let mut buffer = [0u8; 512];
        let read = match read_now(self.fd.as_fd(), &mut buffer) {
            // Not every kind of file knows the flag; those that front-ends use do.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => set_nonblocking(self.fd.as_fd())
                .and_then(|()| nix::unistd::read(&self.fd, &mut buffer)),
            read => read,
        };
        match read {
            Ok(0) => Drained::Gone,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Drained::Ok,
            Err(errno) => Drained::Failed(errno),
        }
    }

    /// Something is there to drain; does not block.
    pub(crate) fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// Nobody can signal it any more.
    pub(crate) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        // An error here is no news about the descriptor.
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any() == Some(true)
    }
}

impl AsFd for KickSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A read that does not wait, whatever the peer has made of the file's flags, which are its too.
fn read_now(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let piece = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: one iovec over `buffer`, which outlives the call.
    let count = unsafe { libc::preadv2(fd.as_raw_fd(), &piece, 1, -1, libc::RWF_NOWAIT) };
    Errno::result(count).map(|count| count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_descriptor_does_not_block_though_its_flag_was_taken_away() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let event = EventFd::from_flags(EfdFlags::empty()).unwrap();
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for fd in [OwnedFd::from(event), reader, OwnedFd::from(socket)] {
            let source = KickSource::from_fd(fd).unwrap();
            fcntl(&source, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            assert_eq!(source.drain(), Drained::Ok);
        }
    }

    #[test]
    fn what_epoll_refuses_is_refused() {
        let regular = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(
            KickSource::from_fd(regular.into()).err(),
            Some(Errno::EPERM)
        );
        // This one epoll would accept.
        let terminal = std::fs::File::open("/dev/ptmx").unwrap();
        assert_eq!(
            KickSource::from_fd(terminal.into()).err(),
            Some(Errno::EPERM)
        );
    }

    #[test]
    fn a_pipe_without_writer_is_gone() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let source = KickSource::from_fd(reader).unwrap();
        assert_eq!(
            source.drain(),
            Drained::Ok,
            "empty is spurious, not an error"
        );
        assert!(!source.is_gone());
        drop(writer);
        assert!(source.is_gone());
        assert_eq!(source.drain(), Drained::Gone);
    }

    #[test]
    fn messages_signal_an_event_of_our_own() {
        let source = KickSource::in_band().unwrap();
        assert!(!source.is_ready());
        assert!(source.signal() && source.is_ready());
        assert_eq!(source.drain(), Drained::Ok);
        assert!(!source.is_ready());
        let timer = KickSource::timer().unwrap();
        assert!(!timer.signal(), "it has its own time");
    }

    #[test]
    fn a_timer_signals_by_itself() {
        let timer = KickSource::timer().unwrap();
        let mut fds = [PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000u16)), Ok(1));
        assert_eq!(timer.drain(), Drained::Ok);
    }
}

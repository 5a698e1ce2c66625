//! Descriptors of all kinds, for messages that want one and messages that do not.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::sim::EventFd;

/// One open descriptor of each kind; they live as long as the world.
pub struct Assortment {
    all: Vec<OwnedFd>,
}

const EVENTFD: usize = 0;
const SOCKET: usize = 1;

impl Assortment {
    pub fn new() -> Assortment {
        let (socket, peer) = UnixStream::pair().expect("a socket pair");
        let (closed, _) = UnixStream::pair().expect("a socket pair");
        let (datagram, other) = UnixDatagram::pair().expect("a datagram pair");
        let [reader, writer] = pipe();
        let [hung_up, _] = pipe();
        let [_, unread] = pipe();
        let full = EventFd::with_flags(0).expect("an eventfd");
        full.add(u64::MAX - 1).expect("a full eventfd");
        let read_only = File::open("/proc/self/exe").expect("this program");
        let directory = File::open("/").expect("the root");
        let null = File::open("/dev/null").expect("/dev/null");
        Assortment {
            all: vec![
                owned(EventFd::new().expect("an eventfd")),
                socket.into(),
                peer.into(),
                closed.into(),
                datagram.into(),
                other.into(),
                reader,
                writer,
                hung_up,
                unread,
                owned(full),
                memfd(0),
                memfd(1 << 16),
                read_only.into(),
                directory.into(),
                null.into(),
                TcpListener::bind("127.0.0.1:0")
                    .expect("a TCP socket")
                    .into(),
            ],
        }
    }

    pub fn eventfd(&self) -> RawFd {
        self.all[EVENTFD].as_raw_fd()
    }

    pub fn socket(&self) -> RawFd {
        self.all[SOCKET].as_raw_fd()
    }

    pub fn choose(&self, choice: u8) -> RawFd {
        self.all[usize::from(choice) % self.all.len()].as_raw_fd()
    }

    pub fn list(&self, choices: &[u8]) -> Vec<RawFd> {
        choices.iter().map(|&choice| self.choose(choice)).collect()
    }
}

fn owned(event: EventFd) -> OwnedFd {
    super::sim::frontend::dup(event.as_raw_fd()).expect("a duplicate")
}

fn pipe() -> [OwnedFd; 2] {
    let mut ends = [0; 2];
    // SAFETY: two ints to write to.
    assert_eq!(
        unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) },
        0
    );
    // SAFETY: both are new and owned by nobody else.
    ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn memfd(length: i64) -> OwnedFd {
    // SAFETY: the name is a terminated string; the descriptor is new and owned by nobody else.
    unsafe {
        let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, length), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

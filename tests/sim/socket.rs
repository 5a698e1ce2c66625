//! A stream socket that carries file descriptors, with deadlines.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;
use std::thread;
use std::time::Duration;

use super::deadline::Deadline;
use super::error::{Error, Result};
use super::wire::{HEADER_LEN, Header};

/// What the kernel allows in one message.
pub const MAX_FDS: usize = 253;

/// No honest message is larger; a reply that claims more is nonsense.
const MAX_BODY: u32 = 1 << 20;

pub struct Socket(UnixStream);

/// A received message: a reply, or a request of the back-end.
#[derive(Debug)]
pub struct Message {
    pub header: Header,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Socket {
    pub fn new(stream: UnixStream) -> Self {
        Socket(stream)
    }

    /// Connects, again and again while nobody listens there yet or the backlog
    /// is full.
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Self> {
        loop {
            let error = match connect_now(path) {
                Ok(stream) => return Ok(Socket(stream)),
                Err(error) => error,
            };
            let retry = matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::WouldBlock
            );
            if !retry || deadline.expired() {
                return Err(Error::Io {
                    what: format!("connecting to {} ({:?})", path.display(), deadline.limit()),
                    source: error,
                });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Sends all of `bytes`; `fds` travel with the first of them.
    pub fn send_all(&self, bytes: &[u8], fds: &[RawFd], deadline: Deadline) -> Result<()> {
        let what = || format!("sending {} bytes and {} fds", bytes.len(), fds.len());
        let mut sent = 0;
        while sent < bytes.len() {
            let now = if sent == 0 { fds } else { &[] };
            match send_some(self.0.as_raw_fd(), &bytes[sent..], now) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLOUT, deadline, &what)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(what(), error)),
            }
        }
        Ok(())
    }

    pub fn recv_message(&self, what: &str, deadline: Deadline) -> Result<Message> {
        let mut fds = Vec::new();
        let mut bytes = [0; HEADER_LEN];
        self.recv_exact(&mut bytes, &mut fds, deadline, what)?;
        let header = Header::decode(&bytes);
        if header.size > MAX_BODY {
            return Err(Error::Broken(format!(
                "{what}: message claims {} bytes",
                header.size
            )));
        }
        let mut body = vec![0; header.size as usize];
        self.recv_exact(&mut body, &mut fds, deadline, what)?;
        Ok(Message { header, body, fds })
    }

    /// Whether something, data or end of file, can be read before the deadline.
    pub fn readable(&self, deadline: Deadline) -> Result<bool> {
        deadline
            .poll_fd(self.0.as_raw_fd(), libc::POLLIN)
            .map(|events| events != 0)
            .map_err(|error| Error::io("polling the socket", error))
    }

    /// Waits for the peer to close and fails on data. A reset counts as
    /// closed: that is what closing with unread data looks like.
    pub fn wait_closed(&self, deadline: Deadline) -> Result<()> {
        let mut byte = [0];
        let what = "waiting for the back-end to close the connection";
        match self.recv_exact(&mut byte, &mut Vec::new(), deadline, what) {
            Err(Error::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(Error::Broken(format!("{what}: it sent data"))),
        }
    }

    fn recv_exact(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Deadline,
        what: &str,
    ) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match recv_some(self.0.as_raw_fd(), &mut buffer[filled..], fds) {
                Ok(0) => return Err(Error::Closed { what: what.into() }),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLIN, deadline, &|| what.to_owned())?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(what, error)),
            }
        }
        Ok(())
    }

    fn wait(&self, events: i16, deadline: Deadline, what: &dyn Fn() -> String) -> Result<()> {
        match deadline.poll_fd(self.0.as_raw_fd(), events) {
            Ok(0) => Err(Error::Timeout {
                what: what(),
                after: deadline.limit(),
            }),
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io(what(), error)),
        }
    }
}

/// One attempt that never blocks: a full backlog is `WouldBlock`.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: all zeroes is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // One byte stays for the terminating zero.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_un of `length` bytes.
    let status = unsafe { libc::connect(fd, (&raw const address).cast(), length) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(socket))
}

/// Room for a control message with `MAX_FDS` descriptors, aligned for it.
struct ControlBuffer([u64; 160]);

impl ControlBuffer {
    fn new() -> Self {
        const { assert!(size_of::<ControlBuffer>() >= 16 + MAX_FDS * size_of::<RawFd>() + 8) };
        ControlBuffer([0; 160])
    }
}

fn send_some(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
    }
    let mut control = ControlBuffer::new();
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let length = size_of_val(fds) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the macro only computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: the control buffer is aligned and holds MAX_FDS descriptors,
        // so the first header and its data of `length` bytes lie inside.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
            ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        }
    }
    // SAFETY: `message` points at buffers that live until the call returns;
    // the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn recv_some(socket: RawFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = ControlBuffer::new();
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<ControlBuffer>();
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at writable buffers of the stated sizes.
    let received = unsafe { libc::recvmsg(socket, &mut message, flags) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled `message`, and `control` is still alive.
    unsafe { take_fds(&message, fds) };
    Ok(received)
}

/// # Safety
/// `message` is as recvmsg left it and its control buffer is alive.
unsafe fn take_fds(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: per the caller, the macros walk headers that the kernel wrote,
    // and each descriptor in an SCM_RIGHTS message is new and ours.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let length = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data: *const RawFd = libc::CMSG_DATA(header).cast();
                for index in 0..length / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

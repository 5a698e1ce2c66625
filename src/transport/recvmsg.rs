//! recvmsg(2) with SCM_RIGHTS.
//!
//! nix's wrapper refuses to hand out any descriptor once the kernel has set
//! MSG_CTRUNC. But those that fitted are installed in this process by then, so
//! they would leak, one message after the other. Hence the plain system call.

use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::protocol::MAX_FDS;

// SAFETY: CMSG_SPACE only calculates.
const CONTROL_SIZE: usize =
    unsafe { libc::CMSG_SPACE((MAX_FDS * mem::size_of::<RawFd>()) as u32) } as usize;

/// Room for the descriptors of one call, aligned as the kernel wants it.
#[repr(C)]
struct ControlBuffer {
    align: [libc::cmsghdr; 0],
    bytes: [MaybeUninit<u8>; CONTROL_SIZE],
}

/// What one call has brought.
pub(super) struct Received {
    /// Bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// Descriptors were dropped for want of room or of descriptor numbers.
    pub truncated: bool,
}

/// Reads into `buffer`, which is not empty, and appends the descriptors that
/// come with these bytes to `fds`, close-on-exec.
pub(super) fn recvmsg(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Received, Errno> {
    let mut control = ControlBuffer {
        align: [],
        bytes: [MaybeUninit::uninit(); CONTROL_SIZE],
    };
    let mut piece = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_SIZE as _;

    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to one iovec over `buffer` and to a control
    // buffer of the length given; both are exclusively ours and outlive the
    // call.
    let bytes = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) })?;

    // SAFETY: the kernel has just filled in `message`, and `control`, which
    // it points to, is alive and untouched.
    unsafe { take_fds(&message, fds) };
    Ok(Received {
        bytes: bytes as usize,
        truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Takes ownership of all descriptors in the control data.
///
/// # Safety
/// `message` is as a successful recvmsg(2) left it, its control buffer is
/// alive, and its descriptors have not been taken yet.
unsafe fn take_fds(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: as the caller promises, the control data is well-formed.
    let mut entry = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !entry.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only headers that lie
        // within the control data; the buffer has a header's alignment.
        let header = unsafe { &*entry };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only calculates.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (header.cmsg_len as usize - head) / mem::size_of::<RawFd>();
            // SAFETY: the data of an SCM_RIGHTS entry follows its header.
            let data = unsafe { libc::CMSG_DATA(entry) }.cast::<RawFd>();
            for index in 0..count {
                // SAFETY: `index` is within the entry, whose length the kernel
                // wrote; the data need not be aligned for an i32.
                let fd = unsafe { data.add(index).read_unaligned() };
                // SAFETY: the kernel has installed this descriptor for us, and
                // nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `entry` came from the same message.
        entry = unsafe { libc::CMSG_NXTHDR(message, entry) };
    }
}

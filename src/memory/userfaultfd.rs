//! The part of userfaultfd(2) that postcopy needs: ranges of this process whose missing pages somebody else supplies.
//!
//! The four requests and their structures are those of `linux/userfaultfd.h`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// What the kernel must be able to do: report missing pages of shared memory, with pages of any size.
const FEATURES: u64 = MISSING_HUGETLBFS | MISSING_SHMEM;
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;

const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;

/// Makes a userfaultfd of `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;
const UFFDIO_API: libc::Ioctl = read_write(0x3f, size_of::<Api>());
const UFFDIO_REGISTER: libc::Ioctl = read_write(0x00, size_of::<Register>());
const UFFDIO_UNREGISTER: libc::Ioctl = read(0x01, size_of::<Range>());
const UFFDIO_WAKE: libc::Ioctl = read(0x02, size_of::<Range>());

/// `_IOWR(0xaa, number, ..)`
const fn read_write(number: u32, size: usize) -> libc::Ioctl {
    (3 << 30 | (size as u32) << 16 | 0xaa00 | number) as libc::Ioctl
}

/// `_IOR(0xaa, number, ..)`
const fn read(number: u32, size: usize) -> libc::Ioctl {
    (2 << 30 | (size as u32) << 16 | 0xaa00 | number) as libc::Ioctl
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// Whole pages.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[derive(Debug)]
pub(crate) struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// # Errors
    /// `EPERM` or `EACCES` if this process may not, `ENOSYS` or `EOPNOTSUPP` if this kernel cannot.
    pub(crate) fn open() -> Result<Self, Errno> {
        let fd = match new_by_call() {
            // Where the system call is reserved for the privileged, the device's permissions decide.
            Err(Errno::EPERM) => new_by_device().map_err(|_| Errno::EPERM),
            other => other,
        }?;
        let mut api = Api {
            api: API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the structure of this request.
        unsafe { ioctl(fd.as_fd(), UFFDIO_API, &mut api) }?;
        if api.features & FEATURES != FEATURES {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(Userfaultfd(fd))
    }

    /// For the process that supplies the pages.
    pub(crate) fn share(&self) -> Result<OwnedFd, Errno> {
        let duplicate = self.0.try_clone();
        duplicate.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))
    }

    /// From here on whoever touches a missing page of the range waits until it has been supplied.
    pub(super) fn register(&self, range: Range) -> Result<(), Errno> {
        let mut register = Register {
            range,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the structure of this request. No memory changes, and pages that are missing only become slow.
        unsafe { ioctl(self.0.as_fd(), UFFDIO_REGISTER, &mut register) }
    }

    /// Missing pages of the range are zero again, also for those who wait for them.
    pub(super) fn unregister(&self, mut range: Range) -> Result<(), Errno> {
        // SAFETY: the structure of this request.
        unsafe { ioctl(self.0.as_fd(), UFFDIO_UNREGISTER, &mut range) }
    }

    /// Those who wait in the range look again.
    pub(super) fn wake(&self, mut range: Range) -> Result<(), Errno> {
        // SAFETY: the structure of this request.
        unsafe { ioctl(self.0.as_fd(), UFFDIO_WAKE, &mut range) }
    }
}

/// Not `UFFD_USER_MODE_ONLY`: the kernel touches guest memory for this process too, when a device reads a file straight
/// into a guest's buffer, and such a fault would then fail that read with `EFAULT` instead of waiting.
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

fn new_by_call() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes one integer.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) } as libc::c_int)
}

fn new_by_device() -> Result<OwnedFd, Errno> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let device = open("/dev/userfaultfd", flags, nix::sys::stat::Mode::empty())?;
    // SAFETY: the request takes the new descriptor's flags.
    owned(unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, FLAGS) })
}

fn owned(fd: libc::c_int) -> Result<OwnedFd, Errno> {
    Errno::result(fd)?;
    // SAFETY: new, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `T` is the structure of `request`.
unsafe fn ioctl<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: &mut T,
) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(result).map(drop)
}

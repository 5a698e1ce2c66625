//! Memory that a back-end can map: a memfd and this process's mapping of it.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

pub struct SharedMemory {
    fd: OwnedFd,
    base: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to this object alone and stays at its place until drop; every access
// goes through `unsafe` or copying functions that name what they share.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    pub fn new(len: usize) -> Self {
        let fd = memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
        nix::unistd::ftruncate(&fd, i64::try_from(len).expect("length")).expect("ftruncate");
        let size = NonZeroUsize::new(len).expect("guest memory of 0 bytes");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, &fd, 0) }.expect("mmap");
        SharedMemory { fd, base, len }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn addr(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// The address of `len` bytes from `offset` on; panics when they do not lie inside.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).expect("range");
        assert!(end <= self.len, "{offset}+{len} outside {}", self.len);
        // SAFETY: `offset` lies inside the mapping, by the assertion above.
        unsafe { self.base.as_ptr().cast::<u8>().add(offset) }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range, and a slice of ours cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; pointers into it do not outlive the object.
        if let Err(e) = unsafe { munmap(self.base, self.len) } {
            eprintln!("munmap: {e}");
        }
    }
}

//! A file that the back-end maps too: a dirty log, an in-flight area.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use super::error::{Error, Result};

pub struct SharedFile {
    file: OwnedFd,
    mapping: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping lives as long as the object, and is accessed atomically only.
unsafe impl Send for SharedFile {}
// SAFETY: as above.
unsafe impl Sync for SharedFile {}

impl SharedFile {
    /// A file of zeroes.
    pub fn new(len: usize) -> Result<Self> {
        // SAFETY: a NUL-terminated name; the descriptor is new and owned by nobody else.
        let file = unsafe {
            let fd = libc::memfd_create(c"shared".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(Error::last_os("memfd_create"));
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: changes nothing of this process's.
        if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } < 0 {
            return Err(Error::last_os("ftruncate"));
        }
        Self::over(file, len)
    }

    /// The first `len` bytes of a file that somebody else made.
    pub fn over(file: OwnedFd, len: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<u8>()) {
            Some(mapping) if address != libc::MAP_FAILED => Ok(SharedFile { file, mapping, len }),
            _ => Err(Error::last_os("mapping a shared file")),
        }
    }

    pub fn raw_fd(&self) -> RawFd {
        self.file.as_fd().as_raw_fd()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.len, "byte {at} of {}", self.len);
        // SAFETY: inside of the mapping, which lives as long as `self`.
        unsafe { AtomicU8::from_ptr(self.mapping.as_ptr().add(at)) }
    }

    /// Reads `len` bytes.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len)
            .map(|at| self.byte(at).load(Ordering::Acquire))
            .collect()
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.byte(at + index).store(*byte, Ordering::Release);
        }
    }

    /// Takes out the bits that are set, as a front-end does with its dirty log; their numbers.
    pub fn take_bits(&self) -> Vec<u64> {
        let mut bits = Vec::new();
        for at in 0..self.len {
            let byte = self.byte(at).swap(0, Ordering::AcqRel);
            bits.extend(
                (0..8)
                    .filter(|bit| byte >> bit & 1 == 1)
                    .map(|bit| at as u64 * 8 + bit),
            );
        }
        bits
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.len) };
    }
}

//! A part of a file that both sides write to: the dirty log, the in-flight area.

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use libc::{S_IFMT, S_IFREG, c_void, off_t};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;

use super::MemoryPolicy;
use super::mapping::has_shrink_seal;
use crate::error::{Error, Result};

/// What a mapping's offset in its file must be a multiple of.
const PAGE: u64 = 4096;

/// Mapped shared, readable and writable, and aligned to a page; unmapped on drop.
#[derive(Debug)]
pub(crate) struct SharedArea {
    base: NonNull<c_void>,
    size: usize,
}

// SAFETY: plain shared memory without thread affinity; the struct only hands out its address.
unsafe impl Send for SharedArea {}
// SAFETY: as above; no method changes the struct.
unsafe impl Sync for SharedArea {}

impl SharedArea {
    /// Maps `size` bytes of the file from `offset` on. `what` is the area's name in errors.
    ///
    /// # Errors
    /// `EINVAL` for a size of zero, an offset that is not page-aligned, and a file that is no regular one or ends
    /// before the area does; `EPERM` for one without the seal that the policy demands; what `mmap` says.
    pub(crate) fn map(
        what: &str,
        fd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        policy: MemoryPolicy,
    ) -> Result<SharedArea> {
        let invalid = |text: String| Error::invalid(format!("{what}: {text}"));
        let length = usize::try_from(size)
            .ok()
            .and_then(std::num::NonZeroUsize::new)
            .ok_or_else(|| invalid(format!("size {size:#x}: zero or too large")))?;
        let start = off_t::try_from(offset)
            .ok()
            .filter(|_| offset.is_multiple_of(PAGE))
            .ok_or_else(|| invalid(format!("offset {offset:#x}: not page-aligned")))?;
        let stat = fstat(fd)?;
        if stat.st_mode & S_IFMT != S_IFREG {
            return Err(invalid("the descriptor is not a regular file".into()));
        }
        let have = u64::try_from(stat.st_size).unwrap_or(0);
        if offset.checked_add(size).is_none_or(|needed| have < needed) {
            return Err(invalid(format!(
                "offset {offset:#x}, size {size:#x}: the file has {have:#x} bytes"
            )));
        }
        if policy.require_shrink_seal && !has_shrink_seal(fd) {
            let text = format!("{what}: the file lacks F_SEAL_SHRINK");
            return Err(Error::new(libc::EPERM, text));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let base = unsafe {
            mmap(
                None,
                length,
                protection,
                MapFlags::MAP_SHARED,
                fd.as_fd(),
                start,
            )
        }
        .map_err(|errno| Error::new(errno as i32, format!("{what}: mmap: {}", errno.desc())))?;
        // As for guest memory: not for core dumps, and no reason to fail.
        // SAFETY: exactly the range just mapped; the advice does not change its contents.
        let _ = unsafe { madvise(base, length.get(), MmapAdvise::MADV_DONTDUMP) };
        Ok(SharedArea {
            base,
            size: length.get(),
        })
    }

    /// The first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr().cast()
    }

    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

impl Drop for SharedArea {
    fn drop(&mut self) {
        // SAFETY: this object owns the mapping, and whoever drops it holds no pointer into it.
        let result = unsafe { munmap(self.base, self.size) };
        debug_assert_eq!(result, Ok(()));
    }
}

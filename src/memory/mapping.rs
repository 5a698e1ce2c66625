//! One shared mapping of a region's file.
//!
//! The mapping is made with `mmap` directly: `vm_memory::MmapRegion` keeps the file open for as long as it lives, which
//! would cost a descriptor per region (509 per server), and it neither checks the file's size nor knows huge pages.

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use libc::{S_IFMT, S_IFREG, c_void, off_t};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};

use super::{MemoryError, MemoryPolicy, RegionDesc};

/// What makes two regions the same memory: the file, and the part of it that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileRange {
    dev: u64,
    ino: u64,
    offset: u64,
    size: u64,
}

impl FileRange {
    /// Checks the file behind `fd` and names the part of it that `desc` asks for.
    pub(super) fn of(
        desc: &RegionDesc,
        fd: BorrowedFd<'_>,
        policy: MemoryPolicy,
    ) -> Result<FileRange, MemoryError> {
        let stat = fstat(fd).map_err(|errno| MemoryError::Stat {
            gpa: desc.gpa,
            errno,
        })?;
        if stat.st_mode & S_IFMT != S_IFREG {
            return Err(MemoryError::NotAFile {
                gpa: desc.gpa,
                mode: stat.st_mode,
            });
        }
        let needed =
            desc.mmap_offset
                .checked_add(desc.size)
                .ok_or(MemoryError::OffsetOverflow {
                    offset: desc.mmap_offset,
                    size: desc.size,
                })?;
        // mmap accepts a range beyond the end of the file; the first touch would then be a SIGBUS.
        let have = u64::try_from(stat.st_size).unwrap_or(0);
        if have < needed {
            return Err(MemoryError::FileTooSmall {
                gpa: desc.gpa,
                have,
                needed,
            });
        }
        if policy.require_shrink_seal && !has_shrink_seal(fd) {
            return Err(MemoryError::NotSealed { gpa: desc.gpa });
        }
        Ok(FileRange {
            dev: stat.st_dev,
            ino: stat.st_ino,
            offset: desc.mmap_offset,
            size: desc.size,
        })
    }
}

pub(super) fn has_shrink_seal(fd: BorrowedFd<'_>) -> bool {
    // A file that knows no seals answers EINVAL: it can be truncated.
    fcntl(fd, FcntlArg::F_GET_SEALS)
        .is_ok_and(|bits| SealFlag::from_bits_truncate(bits).contains(SealFlag::F_SEAL_SHRINK))
}

/// A part of a file mapped shared, readable and writable; unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<c_void>,
    mapped: usize,
    /// Bytes between the start of the mapping and the region's first byte.
    skip: usize,
    range: FileRange,
}

// SAFETY: the mapping is plain shared memory without thread affinity; the struct only hands out its address.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the struct.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(
        desc: &RegionDesc,
        fd: BorrowedFd<'_>,
        range: FileRange,
        policy: MemoryPolicy,
    ) -> Result<Mapping, MemoryError> {
        let page = page_size(fd).map_err(|errno| MemoryError::Stat {
            gpa: desc.gpa,
            errno,
        })?;
        let unsupported = MemoryError::OffsetOverflow {
            offset: range.offset,
            size: range.size,
        };
        let skip = range.offset % page;
        // munmap of huge pages wants the full length that mmap rounded up to by itself.
        let mapped = (skip + range.size).checked_next_multiple_of(page);
        let (Some(mapped), Ok(start)) = (mapped, off_t::try_from(range.offset - skip)) else {
            return Err(unsupported);
        };
        let Some(length) = usize::try_from(mapped)
            .ok()
            .and_then(std::num::NonZeroUsize::new)
        else {
            return Err(unsupported);
        };
        let mut flags = MapFlags::MAP_SHARED;
        if !policy.require_shrink_seal {
            // A front-end may have more memory of huge pages than it has pages: it plugs them in as it goes.
            flags |= MapFlags::MAP_NORESERVE;
        }
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                flags,
                fd.as_fd(),
                start,
            )
        }
        .map_err(|errno| MemoryError::Map {
            gpa: desc.gpa,
            size: desc.size,
            errno,
        })?;
        // A core dump of the program must not carry the guest's memory. Failing to say so is no reason to fail.
        // SAFETY: exactly the range just mapped; the advice does not change its contents.
        let _ = unsafe { madvise(base, length.get(), MmapAdvise::MADV_DONTDUMP) };
        Ok(Mapping {
            base,
            mapped: length.get(),
            skip: skip as usize,
            range,
        })
    }

    /// The host address of the region's first byte.
    pub(super) fn host(&self) -> *mut u8 {
        // SAFETY: `skip` is smaller than the mapped length by construction.
        unsafe { self.base.as_ptr().cast::<u8>().add(self.skip) }
    }

    /// The address and the length of the whole mapping.
    pub(super) fn extent(&self) -> (usize, usize) {
        (self.base.addr().get(), self.mapped)
    }

    /// A page of ours must not fill places of neighbours that are missing. Memory without transparent huge pages
    /// refuses the advice, and is as good.
    pub(super) fn without_huge_pages(&self) {
        // SAFETY: exactly the range that this object mapped; the advice does not change its contents.
        let _ = unsafe { madvise(self.base, self.mapped, MmapAdvise::MADV_NOHUGEPAGE) };
    }

    /// Cuts the mapping off its file: what is at its addresses from here on is private memory, zero at first. Nothing
    /// that is written there reaches the file.
    pub(super) fn make_private(&self) -> Result<(), Errno> {
        let Some(length) = std::num::NonZeroUsize::new(self.mapped) else {
            return Ok(());
        };
        // SAFETY: replaces exactly the range that this object mapped, in one step and readable and writable as before.
        // Shared memory changes at any time, so nobody relies on what was in it.
        unsafe {
            mmap_anonymous(
                Some(self.base.addr()),
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE,
            )
        }
        .map(drop)
    }

    pub(super) fn is(&self, range: &FileRange) -> bool {
        self.range == *range
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this object owns the mapping, and whoever drops the last reference holds no pointer into it.
        let result = unsafe { munmap(self.base, self.mapped) };
        debug_assert_eq!(result, Ok(()));
    }
}

/// The granularity of mappings of this file.
fn page_size(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let fs = fstatfs(fd)?;
    if fs.filesystem_type() == HUGETLBFS_MAGIC {
        return Ok(u64::try_from(fs.block_size()).unwrap_or(0).max(4096));
    }
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(u64::try_from(page).unwrap_or(4096))
}

//! Why a region table could not be changed.

use std::fmt;

use nix::errno::Errno;

use super::{MAX_SLOTS, RegionDesc};

/// A refused change of the memory table; the old table stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryError {
    /// The size is zero or larger than an address space.
    Size { gpa: u64, size: u64 },
    /// The guest address range wraps.
    GuestOverflow { gpa: u64, size: u64 },
    /// The front-end address range wraps.
    UserOverflow { user_addr: u64, size: u64 },
    /// The range in the file wraps, or the system cannot express it.
    OffsetOverflow { offset: u64, size: u64 },
    /// The guest address range overlaps that of another region.
    GuestOverlap { new: RegionDesc, old: RegionDesc },
    /// The front-end address range overlaps that of another region.
    UserOverlap { new: RegionDesc, old: RegionDesc },
    /// The table would have more than [`MAX_SLOTS`] regions.
    TooMany { count: usize },
    /// No region has this guest address, size and user address.
    NotFound { gpa: u64, size: u64, user_addr: u64 },
    /// The descriptor cannot be examined.
    Stat { gpa: u64, errno: Errno },
    /// The descriptor is not a regular file.
    NotAFile { gpa: u64, mode: u32 },
    /// The file ends before the region does.
    FileTooSmall { gpa: u64, have: u64, needed: u64 },
    /// The file lacks the seal that the policy demands.
    NotSealed { gpa: u64 },
    /// The system refuses the mapping.
    Map { gpa: u64, size: u64, errno: Errno },
    /// The system does not report missing pages of this memory, which postcopy needs.
    Register { gpa: u64, size: u64, errno: Errno },
}

impl MemoryError {
    /// The error as a positive errno.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let errno = match self {
            MemoryError::Stat { errno, .. }
            | MemoryError::Map { errno, .. }
            | MemoryError::Register { errno, .. } => *errno,
            MemoryError::GuestOverlap { .. } | MemoryError::UserOverlap { .. } => Errno::EEXIST,
            MemoryError::TooMany { .. } => Errno::ENOSPC,
            MemoryError::NotFound { .. } => Errno::ENOENT,
            MemoryError::NotSealed { .. } => Errno::EPERM,
            _ => Errno::EINVAL,
        };
        errno as i32
    }
}

impl std::error::Error for MemoryError {}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryError::Size { gpa, size } => {
                write!(
                    f,
                    "memory region at guest address {gpa:#x}: size {size:#x} is not in 1..=2^47"
                )
            }
            MemoryError::GuestOverflow { gpa, size } => {
                write!(
                    f,
                    "memory region: guest address {gpa:#x} + size {size:#x} overflows"
                )
            }
            MemoryError::UserOverflow { user_addr, size } => {
                write!(
                    f,
                    "memory region: user address {user_addr:#x} + size {size:#x} overflows"
                )
            }
            MemoryError::OffsetOverflow { offset, size } => {
                write!(
                    f,
                    "memory region: mmap offset {offset:#x} + size {size:#x} is out of range"
                )
            }
            MemoryError::GuestOverlap { new, old } => write!(
                f,
                "memory region at guest address {:#x}, size {:#x} overlaps the one at guest address {:#x}, size {:#x}",
                new.gpa, new.size, old.gpa, old.size
            ),
            MemoryError::UserOverlap { new, old } => write!(
                f,
                "memory region at user address {:#x}, size {:#x} overlaps the one at user address {:#x}, size {:#x}",
                new.user_addr, new.size, old.user_addr, old.size
            ),
            MemoryError::TooMany { count } => {
                write!(f, "memory table: {count} regions are more than {MAX_SLOTS}")
            }
            MemoryError::NotFound {
                gpa,
                size,
                user_addr,
            } => write!(
                f,
                "no memory region has guest address {gpa:#x}, size {size:#x}, user address {user_addr:#x}"
            ),
            MemoryError::Stat { gpa, errno } => {
                write!(
                    f,
                    "memory region at guest address {gpa:#x}: fstat: {}",
                    errno.desc()
                )
            }
            MemoryError::NotAFile { gpa, mode } => write!(
                f,
                "memory region at guest address {gpa:#x}: the fd is not a regular file (mode {mode:#o})"
            ),
            MemoryError::FileTooSmall { gpa, have, needed } => write!(
                f,
                "memory region at guest address {gpa:#x}: the file has {have:#x} bytes, the region needs {needed:#x}"
            ),
            MemoryError::NotSealed { gpa } => {
                write!(
                    f,
                    "memory region at guest address {gpa:#x}: the file lacks F_SEAL_SHRINK"
                )
            }
            MemoryError::Register { gpa, size, errno } => write!(
                f,
                "memory region at guest address {gpa:#x}, size {size:#x}: userfaultfd: {}",
                errno.desc()
            ),
            MemoryError::Map { gpa, size, errno } => write!(
                f,
                "memory region at guest address {gpa:#x}, size {size:#x}: mmap: {}",
                errno.desc()
            ),
        }
    }
}

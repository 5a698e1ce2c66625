//! Guest memory: the regions a front-end shares, and the translation of guest addresses to host pointers.
//!
//! A [`RegionTable`] is an immutable snapshot. Changing the memory means building the next table, which shares the
//! mappings that stay; a mapping goes away with the last table that names it. So a pointer into a region is good for as
//! long as the table it was translated with is held.

mod area;
mod cell;
mod dirty_log;
mod error;
#[cfg(feature = "rust-vmm")]
mod guest_memory;
mod iotlb;
mod mapping;
mod postcopy;
mod regions;
mod table;
#[cfg(test)]
mod tests;
mod translate;
mod userfaultfd;

pub(crate) use area::SharedArea;
pub(crate) use cell::{Bracket, TableCell};
pub(crate) use dirty_log::DirtyLog;
pub use error::MemoryError;
#[cfg(feature = "rust-vmm")]
pub use guest_memory::{MappedMemory, MappedRegion};
pub(crate) use iotlb::{Iotlb, IotlbCursor, Obstacle};
pub(crate) use postcopy::FaultRanges;
pub(crate) use regions::Regions;
pub use table::RegionTable;
pub(crate) use translate::{Access, Cursor, Hint, Translate};
pub(crate) use userfaultfd::Userfaultfd;

/// The most regions a table holds: what KVM and QEMU use as the number of memory slots.
pub const MAX_SLOTS: usize = 509;

/// The largest region: the user half of a 64-bit address space.
const MAX_REGION_SIZE: u64 = 1 << 47;

/// One region as the front-end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionDesc {
    /// The first guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// The first address in the front-end's own address space; ring addresses are given in that.
    pub user_addr: u64,
    /// Where the region begins in its file.
    pub mmap_offset: u64,
}

impl RegionDesc {
    fn check(&self) -> Result<(), MemoryError> {
        let RegionDesc {
            gpa,
            size,
            user_addr,
            mmap_offset,
        } = *self;
        if size == 0 || size > MAX_REGION_SIZE {
            return Err(MemoryError::Size { gpa, size });
        }
        if gpa.checked_add(size).is_none() {
            return Err(MemoryError::GuestOverflow { gpa, size });
        }
        if user_addr.checked_add(size).is_none() {
            return Err(MemoryError::UserOverflow { user_addr, size });
        }
        if mmap_offset.checked_add(size).is_none() {
            return Err(MemoryError::OffsetOverflow {
                offset: mmap_offset,
                size,
            });
        }
        Ok(())
    }
}

/// What the application demands of the files a front-end sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// Refuse files without `F_SEAL_SHRINK`: without the seal the front-end can truncate a file that is mapped, and the
    /// next access is a SIGBUS. For the same reason refuse files of huge pages that the system does not have.
    pub require_shrink_seal: bool,
}

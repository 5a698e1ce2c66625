//! Region tables: what is refused and what is kept, and translation beside a naive model.

mod model;
mod table;

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::{MemoryError, MemoryPolicy, RegionDesc, RegionTable};

const ANY: MemoryPolicy = MemoryPolicy {
    require_shrink_seal: false,
};

fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create(
        c"vu-test",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .expect("memfd_create");
    ftruncate(&fd, i64::try_from(size).expect("size")).expect("ftruncate");
    fd
}

fn seal(fd: &OwnedFd, seals: SealFlag) {
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).expect("F_ADD_SEALS");
}

/// A region whose user address is far from its guest address.
fn desc(gpa: u64, size: u64, mmap_offset: u64) -> RegionDesc {
    RegionDesc {
        gpa,
        size,
        user_addr: gpa + 0x7000_0000_0000,
        mmap_offset,
    }
}

fn add(table: &RegionTable, desc: RegionDesc, fd: &OwnedFd) -> Result<RegionTable, MemoryError> {
    table.with_added(desc, fd.as_fd(), ANY, table.generation() + 1)
}

/// A table of one file with these regions.
fn table_of(fd: &OwnedFd, descs: &[RegionDesc]) -> RegionTable {
    let regions: Vec<_> = descs.iter().map(|desc| (*desc, fd)).collect();
    RegionTable::empty(0)
        .replaced(&regions, ANY, 1)
        .expect("table")
}

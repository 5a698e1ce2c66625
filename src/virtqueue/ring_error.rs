//! What a guest can get wrong in a ring.

use std::fmt;

use crate::memory::Access;

/// A ring that cannot be used, or an element that cannot be popped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RingError {
    /// Not a size of a split ring.
    Size { size: u16 },
    /// Not a size of a packed ring.
    PackedSize { size: u16 },
    /// An area is not aligned in the host.
    Misaligned {
        area: &'static str,
        host: usize,
        align: usize,
    },
    /// The available index is not within the ring's size of what was consumed.
    AvailIndex { index: u16, last: u16, size: u16 },
    /// An entry of the available ring is no descriptor.
    Head { head: u16, position: u16, size: u16 },
    /// A head was made available that is outstanding already.
    HeadBusy { head: u16, position: u16 },
    /// More chains are outstanding than there are ring entries.
    Outstanding { size: u16 },
    /// A descriptor's `next` is outside its table.
    Next { head: u16, next: u16, entries: u16 },
    /// A chain visits more descriptors than its table has.
    Endless { head: u16, entries: u16 },
    /// A chain has more buffers than an element takes.
    TooManyBuffers { head: u16, limit: usize },
    /// The lengths of a chain's buffers are more than 32 bits hold.
    TooLong { head: u16, len: u64 },
    /// A device-readable buffer follows a device-writable one.
    ReadableAfterWritable { head: u16, addr: u64 },
    /// A buffer's or table's address range wraps.
    AddressWrap { head: u16, addr: u64, len: u32 },
    /// A buffer or table is not in guest memory, at least not all of it.
    Unmapped {
        head: u16,
        addr: u64,
        len: u32,
        access: Access,
    },
    /// The IOMMU does not permit what the chain asks for.
    Denied {
        head: u16,
        addr: u64,
        access: Access,
    },
    /// An indirect table without `INDIRECT_DESC`.
    IndirectNotNegotiated { head: u16 },
    /// An indirect table inside an indirect table.
    IndirectNested { head: u16 },
    /// A descriptor with both `INDIRECT` and `NEXT`.
    IndirectNext { head: u16, flags: u16 },
    /// An indirect table behind other descriptors of a packed ring.
    IndirectMixed { head: u16 },
    /// A descriptor inside a packed ring's chain is not marked available.
    OutOfStep {
        head: u16,
        position: u16,
        flags: u16,
        wrap: bool,
    },
    /// A packed ring's buffer has an id beyond the ring's size.
    Id { head: u16, id: u16, size: u16 },
    /// A packed ring's buffer has an id that is outstanding already.
    IdBusy { head: u16, id: u16 },
    /// An indirect table's length is zero, no multiple of 16, or beyond the limit.
    IndirectLen { head: u16, len: u32, limit: usize },
    /// A field of the in-flight area has a value that no back-end writes.
    InflightArea { field: &'static str, value: u16 },
    /// The queue's budget for long chains is spent.
    Budget { head: u16, buffers: usize },
    /// The system has no memory for more elements.
    NoMemory,
}

impl RingError {
    /// The error as a positive errno.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            RingError::Budget { .. } | RingError::NoMemory => libc::ENOMEM,
            RingError::Size { .. }
            | RingError::PackedSize { .. }
            | RingError::Misaligned { .. } => libc::EINVAL,
            _ => libc::EBADMSG,
        }
    }

    /// Whether a newer memory table can make it go away.
    pub(crate) fn is_unmapped(&self) -> bool {
        matches!(self, RingError::Unmapped { .. })
    }
}

impl std::error::Error for RingError {}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Size { size } => {
                write!(f, "queue size {size} is not a power of two up to 32768")
            }
            RingError::PackedSize { size } => {
                write!(f, "packed queue size {size} is not 1 to 32768")
            }
            RingError::Misaligned { area, host, align } => {
                write!(
                    f,
                    "{area}: host address {host:#x} is not aligned to {align}"
                )
            }
            RingError::AvailIndex { index, last, size } => write!(
                f,
                "available index {index} is more than the queue size {size} ahead of {last}"
            ),
            RingError::Head {
                head,
                position,
                size,
            } => write!(
                f,
                "available ring position {position}: head {head} is not below the queue size {size}"
            ),
            RingError::HeadBusy { head, position } => write!(
                f,
                "available ring position {position}: head {head} is outstanding already"
            ),
            RingError::Outstanding { size } => {
                write!(f, "more than {size} chains outstanding, the queue size")
            }
            RingError::Next {
                head,
                next,
                entries,
            } => {
                write!(
                    f,
                    "chain at head {head}: next {next} is not below {entries}"
                )
            }
            RingError::Endless { head, entries } => {
                write!(
                    f,
                    "chain at head {head} is longer than its table's {entries} descriptors"
                )
            }
            RingError::TooManyBuffers { head, limit } => {
                write!(f, "chain at head {head} has more than {limit} buffers")
            }
            RingError::TooLong { head, len } => {
                write!(
                    f,
                    "chain at head {head}: length {len:#x} does not fit in 32 bits"
                )
            }
            RingError::ReadableAfterWritable { head, addr } => write!(
                f,
                "chain at head {head}: device-readable buffer {addr:#x} after a device-writable one"
            ),
            RingError::AddressWrap { head, addr, len } => {
                write!(
                    f,
                    "chain at head {head}: address {addr:#x} + length {len:#x} wraps"
                )
            }
            RingError::Denied { head, addr, access } => write!(
                f,
                "chain at head {head}: address {addr:#x} may not be {}",
                match access {
                    Access::Read => "read",
                    Access::Write => "written",
                    Access::ReadWrite => "read and written",
                }
            ),
            RingError::Unmapped {
                head, addr, len, ..
            } => write!(
                f,
                "chain at head {head}: address {addr:#x}, length {len:#x} is not all in guest memory"
            ),
            RingError::IndirectNotNegotiated { head } => {
                write!(
                    f,
                    "chain at head {head}: indirect table, but INDIRECT_DESC is not negotiated"
                )
            }
            RingError::IndirectNested { head } => {
                write!(
                    f,
                    "chain at head {head}: indirect table inside an indirect table"
                )
            }
            RingError::IndirectNext { head, flags } => {
                write!(
                    f,
                    "chain at head {head}: flags {flags:#x} have both INDIRECT and NEXT"
                )
            }
            RingError::IndirectMixed { head } => {
                write!(
                    f,
                    "chain at head {head}: indirect table behind other descriptors"
                )
            }
            RingError::OutOfStep {
                head,
                position,
                flags,
                wrap,
            } => write!(
                f,
                "chain at head {head}: descriptor {position}, flags {flags:#x}: not available with wrap counter {}",
                u8::from(*wrap)
            ),
            RingError::Id { head, id, size } => write!(
                f,
                "chain at head {head}: buffer id {id} is not below the queue size {size}"
            ),
            RingError::IdBusy { head, id } => {
                write!(
                    f,
                    "chain at head {head}: buffer id {id} is outstanding already"
                )
            }
            RingError::IndirectLen { head, len, limit } => write!(
                f,
                "chain at head {head}: indirect table length {len} is not 1 to {limit} times 16"
            ),
            RingError::InflightArea { field, value } => {
                write!(f, "in-flight area: {field} {value}")
            }
            RingError::Budget { head, buffers } => write!(
                f,
                "chain at head {head}: no memory left in the queue's budget for {buffers} buffers"
            ),
            RingError::NoMemory => write!(f, "no memory for more elements"),
        }
    }
}

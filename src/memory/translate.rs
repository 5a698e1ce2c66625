//! Guest address to host pointer, on the hot path.
//!
//! The last region that was hit is tried first, out of registers; then a binary search without data-dependent branches
//! over the start addresses alone, so that random accesses to many regions cost no mispredictions and few cache lines.

use super::regions::Regions;

/// What the device will do with the memory. Regions allow both; an IOTLB tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Both: the descriptors of a packed ring.
    ReadWrite,
}

/// How a ring turns the addresses of its descriptors into host memory.
pub(crate) trait Translate: Copy {
    /// Where `addr` lies and how many bytes are contiguous in the host from there on; `None` if it is not mapped.
    /// The count is never zero.
    fn run(&mut self, addr: u64, access: Access) -> Option<(*mut u8, u64)>;

    /// What to begin with the next time.
    fn hint(&self) -> Hint;

    /// The host pointer of `len` bytes at `addr` if they are contiguous in the host.
    #[inline(always)]
    fn whole(&mut self, addr: u64, len: u64, access: Access) -> Option<*mut u8> {
        let (host, run) = self.run(addr, access)?;
        (len <= run).then_some(host)
    }
}

/// What translation needs to know of a region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) host: *mut u8,
}

impl Span {
    /// Contains no address at all.
    pub(super) const NOWHERE: Span = Span {
        gpa: 0,
        size: 0,
        host: std::ptr::null_mut(),
    };

    #[inline(always)]
    pub(super) fn run(&self, gpa: u64) -> Option<(*mut u8, u64)> {
        let offset = gpa.wrapping_sub(self.gpa);
        if offset < self.size {
            Some((self.host.wrapping_add(offset as usize), self.size - offset))
        } else {
            None
        }
    }
}

/// The region a ring hit last: a guess that is right for any table, because it is checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hint(usize);

impl Hint {
    pub(super) fn new(index: usize) -> Hint {
        Hint(index)
    }

    pub(super) fn index(self) -> usize {
        self.0
    }
}

/// Translation over one table during one pop, beginning with the hinted region.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'t> {
    regions: &'t Regions,
    last: &'t Span,
    hint: Hint,
}

impl<'t> Cursor<'t> {
    #[inline(always)]
    pub(crate) fn new(regions: &'t Regions, hint: Hint) -> Cursor<'t> {
        let last = regions.spans().get(hint.0).unwrap_or(&Span::NOWHERE);
        Cursor {
            regions,
            last,
            hint,
        }
    }
}

impl Translate for Cursor<'_> {
    #[inline(always)]
    fn run(&mut self, addr: u64, _access: Access) -> Option<(*mut u8, u64)> {
        if let Some(found) = self.last.run(addr) {
            return Some(found);
        }
        let index = self.regions.search(addr)?;
        self.last = &self.regions.spans()[index];
        self.hint = Hint(index);
        self.last.run(addr)
    }

    #[inline(always)]
    fn hint(&self) -> Hint {
        self.hint
    }
}

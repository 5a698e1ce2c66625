//! The regions as vm-memory sees guest memory.

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::regions::{Region, Regions};
use crate::sync::Arc;

/// The guest's memory as it was mapped at one moment, for code that is written for
/// [`vm_memory::GuestMemory`].
///
/// It pins the mappings as an [`Element`](crate::Element) does: what is reached through it stays mapped until
/// the last clone is dropped, also after the front-end has removed the memory or is gone. It is not counted
/// as in flight, so nothing waits for it: the guest may have other plans for memory that no element covers. Nor is
/// what is written through it marked for the migration of the guest; completing an element marks what it covers, and
/// [`Element::mark_dirty`](crate::Element::mark_dirty) the rest of its buffers.
#[derive(Clone, Debug)]
pub struct MappedMemory(Arc<Regions>);

impl MappedMemory {
    pub(crate) fn new(regions: Arc<Regions>) -> Self {
        MappedMemory(regions)
    }

    /// The guest address of what `host` points to, which must be in here to have one.
    pub(crate) fn address_of(&self, host: *const u8) -> Option<GuestAddress> {
        self.0.host_to_gpa(host).map(GuestAddress)
    }
}

impl GuestMemoryBackend for MappedMemory {
    type R = MappedRegion;

    fn num_regions(&self) -> usize {
        self.0.all().len()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&MappedRegion> {
        let region = self.0.all().get(self.0.search(addr.0)?)?;
        // Below the first region the search names that one.
        let offset = addr.0.wrapping_sub(region.desc.gpa);
        (offset < region.desc.size).then(|| MappedRegion::of(region))
    }

    fn iter(&self) -> impl Iterator<Item = &MappedRegion> {
        self.0.all().iter().map(MappedRegion::of)
    }
}

/// One region of [`MappedMemory`].
#[derive(Debug)]
#[repr(transparent)]
pub struct MappedRegion(Region);

impl MappedRegion {
    fn of(region: &Region) -> &MappedRegion {
        // SAFETY: transparent.
        unsafe { &*std::ptr::from_ref(region).cast() }
    }

    fn pointer(&self, offset: MemoryRegionAddress, count: u64) -> Result<*mut u8> {
        match offset.0.checked_add(count) {
            Some(end) if end <= self.0.desc.size => {
                Ok(self.0.mapping.host().wrapping_add(offset.0 as usize))
            }
            _ => Err(GuestMemoryError::InvalidBackendAddress),
        }
    }
}

impl GuestMemoryRegion for MappedRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.0.desc.size
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.0.desc.gpa)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        self.pointer(addr, 1)
    }

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_>> {
        let host = self.pointer(offset, count as u64)?;
        // SAFETY: the bytes lie in the region, which this object keeps mapped, shared and writable.
        Ok(unsafe { VolatileSlice::new(host, count) })
    }
}

impl GuestMemoryRegionBytes for MappedRegion {}

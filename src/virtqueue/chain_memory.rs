//! An element as a descriptor chain of the virtio-queue crate.
//!
//! That crate has one way to a [`DescriptorChain`]: a queue in guest memory to pop it from. So a queue of one
//! chain is written into memory of our own, from the buffers that our pop has read and checked, and shown at
//! guest addresses that the guest has no memory at.

use std::marker::PhantomData;

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result as MemoryResult};
use vm_memory::{
    ByteValued, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    Permissions, VolatileSlice,
};

use super::element::Element;
use crate::error::{Error, Result};
use crate::memory::MappedMemory;
use crate::sync::AtomicU64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const DESCRIPTOR: usize = size_of::<RawDescriptor>();
/// The available ring behind the descriptors: flags, index 1, and the one entry, head 0.
const AVAILABLE: u64 = u64::from_ne_bytes([0, 0, 1, 0, 0, 0, 0, 0]);
const LARGEST: usize = 1 << 15;

/// The guest's memory and, at addresses of its own, the descriptors of one element.
///
/// Made by [`Element::chain_memory`]. What is written through it is in the guest's memory at once; the element
/// is still to be completed, and is borrowed so that it is not completed before its users are done.
#[derive(Debug)]
pub struct ChainMemory<'e> {
    guest: MappedMemory,
    /// Descriptors, then the available ring. Atomic, because a VolatileSlice of it may be written to.
    table: Box<[AtomicU64]>,
    start: GuestAddress,
    size: u16,
    _element: PhantomData<&'e Element>,
}

impl<'e> ChainMemory<'e> {
    pub(super) fn new(element: &'e Element, guest: MappedMemory) -> Result<Self> {
        let count = element.readable().len() + element.writable().len();
        let size = count.next_power_of_two();
        if count == 0 || size > LARGEST {
            return Err(Error::invalid(format!(
                "the element has {count} buffers: a descriptor chain has 1 to {LARGEST}"
            )));
        }
        let mut words = Vec::with_capacity(size * 2 + 1);
        let readable = element.readable().map(|buffer| (buffer, 0));
        let writable = element.writable().map(|buffer| (buffer, WRITE));
        for (index, (buffer, flags)) in readable.chain(writable).enumerate() {
            let address = guest.address_of(buffer.as_ptr()).ok_or_else(|| {
                Error::invalid("a buffer of the element is not in the guest's memory")
            })?;
            let more = if index + 1 < count { NEXT } else { 0 };
            // Pop refuses chains of more than u32::MAX bytes and of more than u16::MAX descriptors.
            let (len, next) = (buffer.len() as u32, (index + 1) as u16);
            let raw = RawDescriptor::from(Descriptor::new(address.0, len, flags | more, next));
            let bytes = raw.as_slice().as_chunks().0;
            words.extend(bytes.iter().copied().map(u64::from_ne_bytes));
        }
        words.resize(size * 2, 0);
        words.push(AVAILABLE);
        let start = unused(&guest, (words.len() * 8) as u64)?;
        Ok(ChainMemory {
            guest,
            table: words.into_iter().map(AtomicU64::new).collect(),
            start,
            size: size as u16,
            _element: PhantomData,
        })
    }

    /// The element as a descriptor chain, of which [`DescriptorChain::reader`] and
    /// [`DescriptorChain::writer`] can be made.
    ///
    /// # Errors
    /// As of virtio-queue, whose every requirement is fulfilled here.
    pub fn chain(&self) -> std::result::Result<DescriptorChain<&Self>, virtio_queue::Error> {
        let mut queue = Queue::new(self.size)?;
        let available = self.start.0 + self.size as u64 * DESCRIPTOR as u64;
        queue.try_set_desc_table_address(self.start)?;
        queue.try_set_avail_ring_address(GuestAddress(available))?;
        queue.set_ready(true);
        queue
            .pop_descriptor_chain(self)
            .ok_or(virtio_queue::Error::InvalidChain)
    }

    /// The guest's memory alone.
    pub fn guest_memory(&self) -> &MappedMemory {
        &self.guest
    }

    /// `count` bytes of the descriptors, if that is where `addr` is.
    fn own(&self, addr: GuestAddress, count: usize) -> Option<MemoryResult<VolatileSlice<'_>>> {
        let bytes = self.table.len() * 8;
        let offset = usize::try_from(addr.0.checked_sub(self.start.0)?).ok()?;
        if offset >= bytes {
            return None;
        }
        if count > bytes - offset {
            return Some(Err(GuestMemoryError::InvalidBackendAddress));
        }
        let base = self.table.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: within the table, which may be written to through a shared reference.
        Some(Ok(unsafe {
            VolatileSlice::new(base.wrapping_add(offset), count)
        }))
    }
}

/// Guest addresses of `size` bytes, aligned as a ring must be, that no region uses.
fn unused(guest: &MappedMemory, size: u64) -> Result<GuestAddress> {
    const ALIGN: u64 = 16;
    let mut free = Some(0u64);
    for region in guest.iter() {
        let start = region.start_addr().0;
        if free.is_some_and(|free| start.checked_sub(free).is_some_and(|gap| gap >= size)) {
            break;
        }
        free = (start + region.len()).checked_next_multiple_of(ALIGN);
    }
    free.filter(|free| free.checked_add(size).is_some())
        .map(GuestAddress)
        // The regions together are much smaller than the address space.
        .ok_or_else(|| Error::invalid(format!("no {size} guest addresses without memory")))
}

impl GuestMemory for ChainMemory<'_> {
    type PhysicalMemory = MappedMemory;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        match self.own(addr, count) {
            Some(own) => own.is_ok(),
            None => GuestMemory::check_range(&self.guest, addr, count, access),
        }
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> MemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let own = self.own(addr, count);
        let guest = match &own {
            Some(_) => None,
            None => Some(GuestMemory::get_slices(&self.guest, addr, count, access)?),
        };
        Ok(Slices { own, guest })
    }

    fn physical_memory(&self) -> Option<&MappedMemory> {
        Some(&self.guest)
    }
}

/// One slice of our own, or those of the guest's memory.
struct Slices<'a, I> {
    own: Option<MemoryResult<VolatileSlice<'a>>>,
    guest: Option<I>,
}

impl<'a, I> Iterator for Slices<'a, I>
where
    I: Iterator<Item = MemoryResult<VolatileSlice<'a>>>,
{
    type Item = MemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.own.take().or_else(|| self.guest.as_mut()?.next())
    }
}

impl<'a, I> std::iter::FusedIterator for Slices<'a, I> where
    I: std::iter::FusedIterator<Item = MemoryResult<VolatileSlice<'a>>>
{
}

impl<'a, I> GuestMemorySliceIterator<'a, ()> for Slices<'a, I> where
    I: GuestMemorySliceIterator<'a, ()>
{
}

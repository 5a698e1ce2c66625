//! What the application holds of a descriptor chain, and how it is completed.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use vm_memory::VolatileSlice;

use super::slot::{Elem, Slot, state};
use super::vq::Queue;
use crate::error::{Error, Result};

/// Completes a slot, on any thread. `Err` with an errno leaves everything as it is.
///
/// # Safety
/// `slot` is null or was popped from a queue of this library whose memory still lives (it does as long as
/// the element is not completed).
#[inline]
pub(crate) unsafe fn complete(
    slot: *mut Slot,
    written: u32,
    stage: bool,
) -> std::result::Result<(), i32> {
    // SAFETY: the caller's promise.
    let Some(live) = (unsafe { slot.as_ref() }) else {
        return Err(libc::EINVAL);
    };
    if written > live.elem.in_len {
        return Err(libc::EINVAL);
    }
    // SAFETY: a popped slot is stamped with its queue, which outlives it.
    let Some(queue) = (unsafe { live.queue.cast::<Queue>().as_ref() }) else {
        return Err(libc::EINVAL);
    };
    // Completing twice is a bug of the application's. On the owner's thread a plain check finds it; elsewhere
    // the exchange makes sure that of two threads only one goes on.
    if queue.completes_here(stage) {
        if live.state() != state::LIVE {
            return Err(libc::EINVAL);
        }
        // SAFETY: the slot is live, and this thread owns its queue.
        if unsafe { queue.stage(slot, written) } {
            return Ok(());
        }
    }
    if !live.claim() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the slot was live, and its state was moved just now.
    unsafe { queue.finish(slot, written) };
    Ok(())
}

/// Lets go of a slot whose element stays in flight, on any thread. An error leaves everything as it is.
///
/// # Safety
/// As [`complete`].
pub(crate) unsafe fn suspend(slot: *mut Slot) -> Result<()> {
    // SAFETY: the caller's promise; a popped slot is stamped with its queue, which outlives it.
    unsafe {
        let queue = slot
            .as_ref()
            .and_then(|slot| slot.queue.cast::<Queue>().as_ref());
        match queue {
            Some(queue) => queue.suspend(slot),
            None => Err(Error::invalid("element: NULL")),
        }
    }
}

/// Completes an element that its holder let go of, and counts that.
///
/// # Safety
/// As [`complete`].
pub(crate) unsafe fn dropped(slot: *mut Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(queue) = (*slot).queue.cast::<Queue>().as_ref() {
            queue.count_dropped();
        }
        // Nothing written is never too much.
        let _ = complete(slot, 0, false);
    }
}

/// A piece of guest memory.
///
/// The guest can change it at any time, so there is no `&[u8]` of it: only copies.
#[derive(Clone, Copy)]
pub struct GuestSlice<'a> {
    iov: libc::iovec,
    _element: PhantomData<&'a Element>,
}

impl<'a> GuestSlice<'a> {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.iov.iov_len
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.iov.iov_len == 0
    }

    /// For system calls that read or write it, while the element lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.iov.iov_base.cast()
    }

    /// As vm-memory's type; not to be written to if it is a device-readable slice.
    #[cfg(feature = "rust-vmm")]
    pub fn volatile(&self) -> VolatileSlice<'a> {
        // SAFETY: as in `read_from`; the element is borrowed for 'a, so that it is not completed.
        unsafe { VolatileSlice::new(self.as_ptr(), self.len()) }
    }

    /// Copies from `offset` on; how many bytes there were.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        read_from(&[self.iov], offset, buffer)
    }

    /// Copies to `offset` on; how many bytes fitted. Only for device-writable slices.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        write_to(&[self.iov], offset, bytes)
    }
}

impl fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestSlice({} bytes)", self.len())
    }
}

/// Calls `f(address, bytes)` for each part of `iov` behind `offset`, `limit` bytes in all.
fn walk(iov: &[libc::iovec], offset: usize, limit: usize, mut f: impl FnMut(*mut u8, usize)) {
    let (mut skip, mut left) = (offset, limit);
    for part in iov {
        if left == 0 {
            return;
        }
        if skip >= part.iov_len {
            skip -= part.iov_len;
            continue;
        }
        let len = (part.iov_len - skip).min(left);
        f(part.iov_base.cast::<u8>().wrapping_add(skip), len);
        skip = 0;
        left -= len;
    }
}

fn read_from(iov: &[libc::iovec], offset: usize, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    walk(iov, offset, buffer.len(), |guest, len| {
        // SAFETY: the iovec was translated in full length at pop, and its mapping is pinned by the element.
        let guest = unsafe { VolatileSlice::new(guest, len) };
        done += guest.copy_to(&mut buffer[done..done + len]);
    });
    done
}

fn write_to(iov: &[libc::iovec], offset: usize, bytes: &[u8]) -> usize {
    let mut done = 0;
    walk(iov, offset, bytes.len(), |guest, len| {
        // SAFETY: as in `read_from`; the region is mapped writable.
        let guest = unsafe { VolatileSlice::new(guest, len) };
        guest.copy_from(&bytes[done..done + len]);
        done += len;
    });
    done
}

impl Elem {
    /// Calls `f(address, bytes)` for each part of the device-writable bytes behind `offset`, `len` in all.
    pub(super) fn walk_in(&self, offset: usize, len: usize, f: impl FnMut(*mut u8, usize)) {
        walk(iovecs(self.in_, self.in_num), offset, len, f);
    }
}

fn iovecs<'a>(base: *const libc::iovec, num: u32) -> &'a [libc::iovec] {
    if num == 0 {
        return &[];
    }
    // SAFETY: pop filled `num` iovecs at `base`; they are not touched again until the slot is released.
    unsafe { std::slice::from_raw_parts(base, num as usize) }
}

/// Copies out of an element's device-readable buffers; short counts at their end.
pub(crate) fn read_out(elem: &Elem, offset: usize, buffer: &mut [u8]) -> usize {
    read_from(iovecs(elem.out, elem.out_num), offset, buffer)
}

/// Copies into an element's device-writable buffers; short counts at their end.
pub(crate) fn write_in(elem: &Elem, offset: usize, bytes: &[u8]) -> usize {
    write_to(iovecs(elem.in_, elem.in_num), offset, bytes)
}

/// A popped descriptor chain.
///
/// It stays valid until it is completed, whatever happens to the queue, the connection or the server, and
/// may be completed on any thread. Dropping one completes it with 0 bytes written and counts that
/// ([`VqStats::dropped`](crate::VqStats::dropped)).
#[repr(transparent)]
pub struct Element(NonNull<Slot>);

// SAFETY: an element is the only handle to its slot; completing it is legal on any thread, and the memory
// that it points to is pinned until then.
unsafe impl Send for Element {}
// SAFETY: the methods on `&Element` only read the slot and copy guest bytes.
unsafe impl Sync for Element {}

impl Element {
    pub(crate) fn from_slot(slot: *mut Slot) -> Option<Self> {
        NonNull::new(slot).map(Element)
    }

    pub(crate) fn into_slot(self) -> *mut Slot {
        ManuallyDrop::new(self).0.as_ptr()
    }

    /// Empties the places and lends them as slots for pop to fill.
    pub(crate) fn places(elements: &mut [Option<Element>]) -> &mut [*mut Slot] {
        for place in &mut *elements {
            drop(place.take());
        }
        // SAFETY: Option<Element> is a transparent NonNull with null as None, so it has the layout of a
        // pointer; pop stores only null or slots whose single handle becomes the new Element.
        unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), elements.len()) }
    }

    fn elem(&self) -> &Elem {
        // SAFETY: the slot lives as long as its element is not completed.
        unsafe { &self.0.as_ref().elem }
    }

    /// The queue it was popped from.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: a popped slot is stamped with its queue, which lives as long as the element is not completed.
        unsafe { &*self.0.as_ref().queue.cast::<Queue>() }
    }

    /// Bytes that the device can read.
    pub fn readable_len(&self) -> u32 {
        self.elem().out_len
    }

    /// Bytes that the device can write.
    pub fn writable_len(&self) -> u32 {
        self.elem().in_len
    }

    /// The device-readable buffers, in order.
    pub fn readable(&self) -> impl ExactSizeIterator<Item = GuestSlice<'_>> {
        slices(iovecs(self.elem().out, self.elem().out_num))
    }

    /// The device-writable buffers, in order.
    pub fn writable(&self) -> impl ExactSizeIterator<Item = GuestSlice<'_>> {
        slices(iovecs(self.elem().in_, self.elem().in_num))
    }

    /// Copies from the readable bytes, `offset` counted over all buffers; how many there were.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        read_out(self.elem(), offset, buffer)
    }

    /// Copies to the writable bytes, `offset` counted over all buffers; how many fitted.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        write_in(self.elem(), offset, bytes)
    }

    /// Says that the device wrote to `len` writable bytes from `offset` on that [`complete`](Self::complete) does not
    /// cover, because they lie behind the first `written` ones: so that they are not lost when the guest is migrated.
    ///
    /// # Errors
    /// `ERANGE` unless the bytes are all there.
    pub fn mark_dirty(&self, offset: usize, len: usize) -> Result<()> {
        // SAFETY: an element that is not completed is live, and completing takes it by value.
        unsafe { self.queue().mark_dirty(self.0.as_ptr(), offset, len) }
    }

    /// The guest's memory, as it was mapped when this element was popped.
    #[cfg(feature = "rust-vmm")]
    pub fn guest_memory(&self) -> crate::rust_vmm::MappedMemory {
        // SAFETY: a popped slot is stamped with its epoch, and this one is not completed.
        let regions = unsafe { super::vq::regions_of(self.0.as_ref().epoch) };
        crate::rust_vmm::MappedMemory::new(regions)
    }

    /// Shows this element as a descriptor chain of the virtio-queue crate.
    ///
    /// # Errors
    /// `EINVAL` if it has no buffer at all, or more than that crate's chains can have.
    #[cfg(feature = "rust-vmm")]
    pub fn chain_memory(&self) -> Result<crate::rust_vmm::ChainMemory<'_>> {
        crate::rust_vmm::ChainMemory::new(self, self.guest_memory())
    }

    /// Gives the chain back to the driver with `written` bytes written from the first writable byte on.
    /// Published at once; inside the queue's own `kick`, with that kick.
    ///
    /// # Errors
    /// `EINVAL` if `written` exceeds [`writable_len`](Self::writable_len); the element is then completed
    /// with 0.
    pub fn complete(self, written: u32) -> Result<()> {
        self.finish(written, false)
    }

    /// Lets go of the element without completing it: it stays in flight, and whoever starts the ring next does it. Legal
    /// while the front-end stops the ring ([`StopReason::VringBase`](crate::StopReason::VringBase), from
    /// [`queue_stopping`](crate::Device::queue_stopping) until the drain is over) and takes it over with requests in
    /// flight (GET_VRING_BASE_INFLIGHT; [`ServerBuilder::suspends`](crate::ServerBuilder::suspends)). Nothing of the request
    /// may be going on any more.
    ///
    /// # Errors
    /// With the element: `ENOTSUP` if the front-end does not; `EBUSY` while the ring is not being stopped.
    pub fn suspend(self) -> std::result::Result<(), (Error, Self)> {
        let slot = self.into_slot();
        // SAFETY: the element was live, so its queue is.
        let result = unsafe { suspend(slot) };
        result.or_else(|error| match Element::from_slot(slot) {
            Some(element) => Err((error, element)),
            None => Ok(()),
        })
    }

    pub(crate) fn finish(self, written: u32, stage: bool) -> Result<()> {
        if written > self.writable_len() {
            return Err(too_much(written, self.writable_len()));
        }
        // SAFETY: this is the slot's only handle, and it is given up.
        unsafe { complete(self.into_slot(), written, stage) }
            .map_err(|errno| Error::new(errno, "the element is not live"))
    }
}

#[cold]
fn too_much(written: u32, writable: u32) -> Error {
    Error::invalid(format!(
        "written {written}: more than the {writable} writable bytes"
    ))
}

fn slices<'a>(iov: &'a [libc::iovec]) -> impl ExactSizeIterator<Item = GuestSlice<'a>> {
    iov.iter().map(|&iov| GuestSlice {
        iov,
        _element: PhantomData,
    })
}

impl Drop for Element {
    fn drop(&mut self) {
        // SAFETY: this is the slot's only handle.
        unsafe { dropped(self.0.as_ptr()) };
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Element({} bytes readable, {} writable)",
            self.readable_len(),
            self.writable_len()
        )
    }
}

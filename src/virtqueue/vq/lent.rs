//! The queue as a Rust device sees it.

use std::marker::PhantomData;

use crate::error::{Error, Result};
use crate::sync::Arc;
use crate::virtqueue::element::Element;
use crate::virtqueue::stats::VqStats;

use super::Queue;

/// A queue, lent to a callback on the thread that owns it.
#[derive(Debug)]
pub struct Virtqueue<'a> {
    queue: &'a Arc<Queue>,
    /// Not Send: the queue belongs to this thread.
    _thread: PhantomData<*mut ()>,
}

impl<'a> Virtqueue<'a> {
    pub(crate) fn lend(queue: &'a Arc<Queue>) -> Self {
        Virtqueue {
            queue,
            _thread: PhantomData,
        }
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        self.queue
    }

    /// The queue's number in the device.
    pub fn index(&self) -> u32 {
        self.queue.index
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u32 {
        self.queue.size()
    }

    /// False for a queue that runs while the front-end has it disabled
    /// ([`ServerBuilder::run_disabled_queues`](crate::ServerBuilder::run_disabled_queues)).
    pub fn is_enabled(&self) -> bool {
        self.queue.is_enabled()
    }

    /// The device is a legacy one and its guest big-endian: so are the device's own structures in the elements. A modern
    /// device's are always little-endian (virtio 1.3, 2.6.1.1).
    pub fn is_big_endian(&self) -> bool {
        self.queue.is_big_endian()
    }

    /// Pops up to `elements.len()` elements into the front of `elements`; how many came. 0 means that the
    /// ring is empty, and publishes what is staged. Elements that are still in there are dropped first.
    ///
    /// # Errors
    /// `EBADMSG`: the ring is broken. `ESHUTDOWN`: the queue is leaving this context.
    #[inline]
    pub fn pop(&mut self, elements: &mut [Option<Element>]) -> Result<usize> {
        let slots = Element::places(elements);
        self.queue.pop(slots).map_err(|errno| self.pop_error(errno))
    }

    /// Pops one element.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    pub fn pop_one(&mut self) -> Result<Option<Element>> {
        let mut slot = [std::ptr::null_mut()];
        match self.queue.pop(&mut slot) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Element::from_slot(slot[0])),
            Err(errno) => Err(self.pop_error(errno)),
        }
    }

    #[cold]
    fn pop_error(&self, errno: i32) -> Error {
        let what = match errno {
            libc::EBADMSG => "the ring is broken",
            libc::EXDEV => "not the owner",
            _ => "leaving its context",
        };
        Error::new(errno, format!("queue {}: {what}", self.queue.index))
    }

    /// Puts an element back that is the newest one popped; the next pop returns it again.
    ///
    /// # Errors
    /// `EINVAL` with the element if it is not the newest.
    pub fn unpop(&mut self, element: Element) -> std::result::Result<(), (Error, Element)> {
        let slot = element.into_slot();
        match self.queue.unpop(&[slot]) {
            Ok(()) => Ok(()),
            Err(errno) => {
                let error = Error::new(errno, "only the newest element can be put back");
                match Element::from_slot(slot) {
                    Some(element) => Err((error, element)),
                    None => Ok(()),
                }
            }
        }
    }

    /// Stages a completion: published with the batch, at the latest when the running dispatch ends. An
    /// element of another queue is completed at once.
    ///
    /// # Errors
    /// `EINVAL` if `written` exceeds the element's writable bytes; the element is then completed with 0.
    #[inline]
    pub fn stage(&mut self, element: Element, written: u32) -> Result<()> {
        let own = std::ptr::eq(element.queue(), Arc::as_ptr(self.queue));
        if own && written <= element.writable_len() && self.queue.is_mine() {
            let slot = element.into_slot();
            // SAFETY: the element was live and of this queue, and the calling thread owns that.
            if unsafe { self.queue.stage(slot, written) } {
                return Ok(());
            }
            return Element::from_slot(slot)
                .map_or(Ok(()), |element| element.finish(written, false));
        }
        element.finish(written, own)
    }

    /// Publishes what is staged now.
    pub fn flush(&mut self) {
        // The lender owns the queue, so there is nothing that can fail.
        let _ = self.queue.flush();
    }

    /// Statistics; see [`VqStats`].
    pub fn stats(&self) -> VqStats {
        self.queue.stats()
    }
}

//! Popping and putting back.

use crate::context::Mail;
use crate::error::{Error, Result};
use crate::virtqueue::ring_error::RingError;
use crate::virtqueue::slot::{Slot, Stamp};

use super::epoch::{Epoch, complete_in};
use super::set_up::ring_error;
use super::{Private, Queue};

impl Queue {
    /// Pops up to `out.len()` elements.
    #[inline]
    pub(crate) fn pop(&self, out: &mut [*mut Slot]) -> std::result::Result<usize, i32> {
        if !self.is_mine() {
            return Err(libc::EXDEV);
        }
        if self.owner.is_recalled_relaxed() {
            return Err(libc::ESHUTDOWN);
        }
        if self.is_broken() {
            return Err(libc::EBADMSG);
        }
        // SAFETY: this thread owns the queue, and nothing below comes back to it.
        let private = unsafe { &mut *self.private.get() };
        let Some(generation) = private.table.as_ref().map(|table| table.generation()) else {
            return Err(self.pop_without_ring());
        };
        self.bracket.enter(&self.server.table, generation);
        let result = self.pop_bracketed(private, out, generation);
        self.bracket.leave();
        match result {
            Ok(0) => {
                self.flush_private(private);
                if private.ring.is_some() {
                    Ok(0)
                } else {
                    Err(self.pop_without_ring())
                }
            }
            Ok(n) => {
                private.popped += n as u64;
                if private.tracked {
                    self.mark_popped(&out[..n]);
                }
                self.counters.pops.add(n as u64);
                Ok(n)
            }
            Err(error) => Err(self.broke_in_pop(private, error)),
        }
    }

    fn pop_without_ring(&self) -> i32 {
        if self.is_broken() {
            libc::EBADMSG
        } else {
            libc::ESHUTDOWN
        }
    }

    #[inline]
    fn pop_bracketed(
        &self,
        private: &mut Private,
        out: &mut [*mut Slot],
        generation: u64,
    ) -> Result<usize> {
        if self.server.table.generation() != generation {
            self.renew(private)?;
        }
        match self.pop_once(private, out) {
            Ok(n) => Ok(n),
            Err(error) => self.pop_again(private, out, error),
        }
    }

    #[inline(always)]
    fn pop_once(
        &self,
        private: &mut Private,
        out: &mut [*mut Slot],
    ) -> std::result::Result<usize, RingError> {
        let stamp = Stamp {
            queue: std::ptr::from_ref(self).cast(),
            epoch: private.epoch.cast(),
        };
        match (&mut private.ring, &mut private.pool, &private.table) {
            (Some(ring), Some(pool), Some(table)) => ring.pop(table, pool, stamp, out),
            _ => Ok(0),
        }
    }

    /// A translation failed: the region may have been added after this pop began.
    #[cold]
    fn pop_again(
        &self,
        private: &mut Private,
        out: &mut [*mut Slot],
        error: RingError,
    ) -> Result<usize> {
        if !error.is_unmapped() {
            return Err(ring_error(self.index, &error));
        }
        let held = private.table.as_ref().map_or(0, |table| table.generation());
        let again = if self.server.table.generation() == held {
            Err(error)
        } else {
            self.renew(private)?;
            self.pop_once(private, out)
        };
        again.or_else(|error| self.ask_for_translation(private, error))
    }

    #[cold]
    fn broke_in_pop(&self, private: &Private, error: Error) -> i32 {
        self.fail(error);
        if let (Some(context), Some(this)) = (&private.context, self.this(private)) {
            // Also when pop was called outside of `kick`: the context must stop the ring.
            context.post(Mail::Queue(this));
        }
        libc::EBADMSG
    }

    /// Puts the newest elements back, given in the order in which they were popped.
    pub(crate) fn unpop(&self, slots: &[*mut Slot]) -> std::result::Result<(), i32> {
        if !self.is_mine() {
            return Err(libc::EXDEV);
        }
        let this: *const () = std::ptr::from_ref(self).cast();
        // SAFETY: the caller's elements are slots of this library; reading the stamp of one is harmless.
        if slots
            .iter()
            .any(|&slot| slot.is_null() || unsafe { (*slot).queue } != this)
        {
            return Err(libc::EINVAL);
        }
        // SAFETY: this thread owns the queue, and nothing below comes back to it.
        let private = unsafe { &mut *self.private.get() };
        let epochs: Vec<*const Epoch> =
            // SAFETY: as above.
            slots.iter().map(|&slot| unsafe { (*slot).epoch }.cast()).collect();
        let (Some(ring), Some(pool)) = (&mut private.ring, &mut private.pool) else {
            return Err(libc::ESHUTDOWN);
        };
        // SAFETY: the slots are this queue's and live; the ring checks that they are the newest.
        unsafe { ring.unpop(pool, slots) }.map_err(|_| libc::EINVAL)?;
        self.counters.unpops.add(slots.len() as u64);
        if private.tracked {
            self.mark_unpopped(slots);
        }
        for epoch in epochs {
            if epoch == private.epoch {
                private.completed += 1;
            } else {
                // SAFETY: the element that was put back kept its epoch alive until here.
                unsafe { complete_in(epoch) };
            }
        }
        Ok(())
    }
}

//! Completing and publishing: staged by the owner, or at once by anybody else.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::virtqueue::publication::Publication;
use crate::virtqueue::signal::Signalled;
use crate::virtqueue::slot::Slot;
use crate::virtqueue::used::UsedElem;

use super::dirty::mark;
use super::epoch::{Epoch, complete_in};
use super::{Private, Queue};

impl Queue {
    /// Publishes what is staged.
    pub(crate) fn flush(&self) -> Result<()> {
        self.with_private(|private| self.flush_private(private))
            .ok_or_else(|| Error::new(libc::EXDEV, "not the owner of the queue"))
    }

    pub(super) fn flush_private(&self, private: &mut Private) {
        let n = private.staged.len() as u64;
        if n == 0 {
            return;
        }
        let (notify, logged) = {
            let mut publication = self.publication.lock();
            self.publications.completions.add(n);
            self.publications.bytes_in.add(private.staged.bytes_in());
            self.publications.bytes_out.add(private.staged.bytes_out);
            let decision = self.publish(&mut publication, private.staged.batch());
            (self.count_decision(decision), publication.log().is_some())
        };
        private.staged.clear();
        if logged {
            self.server.signal_log();
        }
        if notify {
            self.notify();
        }
        // Last: whoever waits for what is in flight finds it published.
        private.completed += n;
    }

    fn publish(&self, publication: &mut Publication, batch: &[UsedElem]) -> Option<bool> {
        if self.is_condemned() {
            return None;
        }
        publication.publish(batch)
    }

    /// Under the publication lock.
    fn count_decision(&self, decision: Option<bool>) -> bool {
        match decision {
            Some(true) => self.publications.notifications.add(1),
            Some(false) => self.publications.suppressed.add(1),
            None => {}
        }
        decision == Some(true)
    }

    /// Signals the call descriptor; one that cannot be signalled is logged once.
    pub(crate) fn notify(&self) {
        match self.call.signal() {
            Ok(Signalled::Done) => {}
            Ok(Signalled::InBand) => self.server.call_in_band(self.index),
            Err(errno) => self.log_signal("call", errno),
        }
    }

    /// Tells the front-end that the ring is broken.
    pub(crate) fn signal_error(&self) {
        match self.err.signal() {
            Ok(Signalled::Done) => {}
            Ok(Signalled::InBand) => self.server.error_in_band(self.index),
            Err(errno) => self.log_signal("err", errno),
        }
    }

    #[cold]
    fn log_signal(&self, name: &str, errno: Errno) {
        self.server.logger.warning(format_args!(
            "queue {}: {name} descriptor: {}",
            self.index,
            errno.desc()
        ));
    }

    /// Stages the completion of an element of the running epoch. False, with nothing done, if it is of one that
    /// has ended.
    ///
    /// # Safety
    /// `slot` is a live element of this queue, and [`completes_here`](Self::completes_here) said that the
    /// calling thread owns the queue.
    #[inline(always)]
    pub(in crate::virtqueue) unsafe fn stage(&self, slot: *mut Slot, written: u32) -> bool {
        // SAFETY: this thread owns the queue, and nothing below comes back to it.
        let private = unsafe { &mut *self.private.get() };
        // SAFETY: the slot is live until it is released below.
        let (used, epoch, out_len) = unsafe {
            let slot = &*slot;
            (
                UsedElem::of(slot, written),
                slot.epoch.cast(),
                slot.elem.out_len,
            )
        };
        if epoch != private.epoch {
            return false;
        }
        if private.unlogged != self.server.table.generation() {
            // SAFETY: as above.
            self.mark_staged(private, unsafe { &(*slot).elem }, written);
        }
        let Some(pool) = &mut private.pool else {
            return false;
        };
        // SAFETY: the slot is this pool's and nobody uses it any more.
        unsafe { pool.release(slot) };
        if private.staged.push(used, out_len) {
            self.flush_private(private);
        } else if private.staged.len() == 1 && !private.in_kick {
            self.flush_later(private);
        }
        true
    }

    /// Staged outside of `kick`: the context publishes at the end of its dispatch, or is made to dispatch.
    #[cold]
    fn flush_later(&self, private: &Private) {
        if let (Some(context), Some(this)) = (&private.context, self.this(private)) {
            context.will_flush(this);
        }
    }

    /// Completes an element on another thread than the owner's, or one whose epoch has ended: published at
    /// once.
    ///
    /// # Safety
    /// `slot` is an element of this queue, and its state was moved from LIVE by the caller.
    #[inline(never)]
    pub(in crate::virtqueue) unsafe fn finish(&self, slot: *mut Slot, written: u32) {
        // SAFETY: the caller's promise; the slot stays valid until it is given back below.
        let (elem, epoch, out_len) = unsafe {
            (
                UsedElem::of(&*slot, written),
                (*slot).epoch.cast::<Epoch>(),
                (*slot).elem.out_len,
            )
        };
        let (notify, logged) = {
            let mut publication = self.publication.lock();
            if let Some(log) = publication.log() {
                // SAFETY: the caller's promise; a live element keeps its epoch.
                let (elem, epoch) = unsafe { (&(*slot).elem, &*epoch) };
                mark(log, &epoch.regions, elem, 0, written as usize);
            }
            // SAFETY: the slot is of this queue's pool and nobody uses it after this.
            unsafe { publication.give_back(slot) };
            self.publications.completions.add(1);
            self.publications.bytes_in.add(u64::from(elem.len()));
            self.publications.bytes_out.add(u64::from(out_len));
            let decision = self.publish(&mut publication, &[elem]);
            (self.count_decision(decision), publication.log().is_some())
        };
        if logged {
            self.server.signal_log();
        }
        if notify {
            self.notify();
        }
        // SAFETY: the element kept its epoch alive until here; neither it nor `self` is used afterwards.
        unsafe { complete_in(epoch) };
    }
}

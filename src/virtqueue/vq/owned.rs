//! The owner's side: a queue arrives, is looked at, and departs.

use crate::context::ContextCore;
use crate::context::owner::CtxId;
use crate::device::StopReason;
use crate::error::{Error, Result};
use crate::memory::RegionTable;
use crate::sync::{Arc, Ordering, thread_id};
use crate::virtqueue::inflight::EpochCount;
use crate::virtqueue::kick::KickSource;
use crate::virtqueue::ring::Ring;
use crate::virtqueue::slot::SlotPool;

use super::epoch::{Epoch, release_epoch};
use super::set_up::{resolve, ring_error};
use super::{Look, Private, Queue, Setup};

impl Queue {
    /// Why the queue goes: what its owner tells the device.
    pub(crate) fn reason(&self, context: CtxId) -> StopReason {
        let target = self.owner.load().target;
        if self.is_broken() {
            StopReason::Broken
        } else if target.is_none() {
            StopReason::Detached
        } else if target != context {
            StopReason::Moved
        } else {
            StopReason::from_u32(self.stop_reason.load(Ordering::Acquire))
        }
    }

    /// The context has just taken the queue: the calling thread becomes its owner. The kick source to watch.
    pub(crate) fn arrive(self: &Arc<Self>, context: &Arc<ContextCore>) -> Result<Arc<KickSource>> {
        self.owner_thread.store(thread_id(), Ordering::Relaxed);
        let setup = self.setup.lock().clone();
        let table = self.enter_current_table();
        let result = self.with_private(|private| {
            private.context = Some(context.clone());
            private.remembered = false;
            let setup = setup.ok_or_else(|| Error::invalid("a queue without a ring"))?;
            if private.incarnation != setup.incarnation {
                // Whatever the previous ring had in flight is gone, or this queue would be an orphan.
                private.pool = Some(SlotPool::new(setup.size, self.server.config.elem_priv_size));
                private.incarnation = setup.incarnation;
                // Never more than the ring has entries, whatever the guest makes available.
                private.staged.set_limit(setup.size.into());
                self.recover(&setup, &table)?;
            }
            private.setup = Some(setup.clone());
            self.place(private, &setup, table, self.popped())
                .map(|()| setup.kick)
        });
        self.bracket.leave();
        match result {
            Some(Ok(kick)) => Ok(kick),
            Some(Err(error)) => {
                self.fail(error.clone());
                Err(error)
            }
            None => Err(Error::new(libc::EXDEV, "not the owner")),
        }
    }

    /// Begins a bracket with the table that is the current one also after it began.
    pub(super) fn enter_current_table(&self) -> Arc<RegionTable> {
        loop {
            let table = self.server.table.current();
            self.bracket.enter(&self.server.table, table.generation());
            if self.server.table.generation() == table.generation() {
                return table;
            }
        }
    }

    /// Resolves the ring over `table` and begins an epoch.
    pub(super) fn place(
        self: &Arc<Self>,
        private: &mut Private,
        setup: &Setup,
        table: Arc<RegionTable>,
        popped: u64,
    ) -> Result<()> {
        let areas = resolve(setup, &table, self.index)?;
        let Some(pool) = private.pool.as_ref() else {
            return Err(Error::invalid("a queue without slots"));
        };
        // The areas are good as long as `table`, which `private.table` keeps.
        let mut ring = Ring::new(areas, setup.features, popped);
        ring.set_recovered(self.recovered.lock().clone());
        ring.set_log(self.used_log(&table), &table);
        let mut publication = self.publication.lock();
        publication.place(
            areas,
            setup.features,
            table.clone(),
            self.used_log_base(),
            pool.returns().clone(),
        );
        private.tracked = publication.tracker().is_some();
        drop(publication);
        self.pinned.store(table.generation(), Ordering::Relaxed);
        private.ring = Some(ring);
        private.paused = 0;
        private.table = Some(table.clone());
        private.unlogged = match table.log() {
            Some(_) => 0,
            None => table.generation(),
        };
        self.gate
            .inc()
            .map_err(|_| Error::new(libc::ESHUTDOWN, "the queue is being drained"))?;
        private.epoch = Box::into_raw(Box::new(Epoch {
            count: EpochCount::new(),
            queue: self.clone(),
            regions: table.regions().clone(),
        }));
        private.popped = 0;
        private.completed = 0;
        Ok(())
    }

    /// Ends an epoch of this owner's, with `balance` elements out: from here on they count themselves. Null is no
    /// epoch.
    fn fold(epoch: *const Epoch, balance: u64) {
        if epoch.is_null() {
            return;
        }
        // SAFETY: an epoch lives until the call of `fold` or `complete` that returns true.
        if unsafe { (*epoch).count.fold(balance) } {
            // SAFETY: this was that call.
            unsafe { release_epoch(epoch) };
        }
    }

    /// The queue leaves its owner: publishes, folds, forgets the ring. The context has removed the watch and
    /// told the device; it hands the owner word back after this.
    pub(crate) fn depart(&self) {
        self.with_private(|private| {
            self.flush_private(private);
            if let Some(ring) = private.ring.take() {
                self.popped.store(ring.popped(), Ordering::Release);
            }
            let epoch = std::mem::replace(&mut private.epoch, std::ptr::null());
            Self::fold(epoch, private.popped - private.completed);
            private.table = None;
            private.setup = None;
            private.context = None;
            private.in_kick = false;
        });
        self.owner_thread.store(0, Ordering::Relaxed);
    }

    /// Moves to the current table if there is a newer one than the ring was resolved with.
    pub(super) fn renew(&self, private: &mut Private) -> Result<()> {
        let table = self.server.table.current();
        if private
            .table
            .as_ref()
            .is_some_and(|held| held.generation() == table.generation())
        {
            return Ok(());
        }
        let (Some(setup), Some(ring)) = (private.setup.clone(), private.ring.take()) else {
            return Ok(());
        };
        self.flush_private(private);
        let popped = ring.popped();
        self.popped.store(popped, Ordering::Release);
        // The epoch holds the strong reference that a new one is made from.
        let Some(this) = self.this(private) else {
            return Ok(());
        };
        // The next epoch begins before the old one ends, so the gate does not pass through zero.
        let (old, balance) = (private.epoch, private.popped - private.completed);
        let placed = this.place(private, &setup, table.clone(), popped);
        match placed {
            Ok(()) => Self::fold(old, balance),
            // The old epoch is still the current one.
            Err(_) => self.retire(),
        }
        self.bracket.renew(table.generation());
        placed
    }

    pub(super) fn this(&self, private: &Private) -> Option<Arc<Queue>> {
        // SAFETY: the current epoch lives until it is folded.
        unsafe { private.epoch.as_ref() }.map(|epoch| epoch.queue.clone())
    }

    /// Renews the table and looks whether there is something to pop.
    pub(crate) fn look(&self) -> Look {
        self.with_private(|private| {
            if private.in_kick {
                private.remembered = true;
                return Look::Busy;
            }
            if self.is_broken() {
                return Look::Broken;
            }
            let generation = private.table.as_ref().map_or(0, |table| table.generation());
            self.bracket.enter(&self.server.table, generation);
            let look = self.look_bracketed(private, generation);
            self.bracket.leave();
            look
        })
        .unwrap_or(Look::Busy)
    }

    pub(super) fn look_bracketed(&self, private: &mut Private, generation: u64) -> Look {
        if self.server.table.generation() != generation
            && let Err(error) = self.renew(private)
        {
            self.fail(error);
            return Look::Broken;
        }
        if private.is_paused() {
            return Look::Empty;
        }
        match private.ring.as_mut().map(Ring::fetch) {
            Some(Ok(0)) => Look::Empty,
            Some(Ok(_)) => Look::Work,
            Some(Err(error)) => {
                self.fail(ring_error(self.index, &error));
                Look::Broken
            }
            None => Look::Empty,
        }
    }

    /// One relaxed load: is there something that the device has not seen?
    #[inline]
    pub(crate) fn peek(&self) -> bool {
        self.with_private(|private| {
            !private.in_kick && private.ring.as_ref().is_some_and(Ring::has_new)
        })
        .unwrap_or(false)
    }

    pub(crate) fn disable_notifications(&self) {
        // A hint, which need not be given in the moment in which the table changes.
        self.write_used(Ring::disable_notifications);
    }

    /// Writes to the used ring outside of a publication. `None`, with nothing done, when the table has changed: the new
    /// one may want the write to be marked, and the look that follows moves to it.
    fn write_used<R>(&self, write: impl FnOnce(&mut Ring) -> R) -> Option<R> {
        self.with_private(|private| {
            let (ring, table) = (private.ring.as_mut()?, private.table.as_ref()?);
            self.bracket.enter(&self.server.table, table.generation());
            let current = self.server.table.generation() == table.generation();
            let result = current.then(|| write(ring));
            self.bracket.leave();
            result
        })
        .flatten()
    }

    /// Turns guest notifications on. True if something came in the meantime (also a readiness that was
    /// remembered while `kick` was on the stack).
    pub(crate) fn rearm(&self) -> bool {
        let remembered = self
            .with_private(|private| std::mem::take(&mut private.remembered))
            .unwrap_or(false);
        let more = self.write_used(Ring::rearm);
        more.unwrap_or_else(|| self.has_ring()) || remembered
    }

    fn has_ring(&self) -> bool {
        self.with_private(|private| private.ring.is_some())
            .unwrap_or(false)
    }

    /// `kick` is on this thread's stack.
    pub(crate) fn is_in_kick(&self) -> bool {
        self.with_private(|private| private.in_kick)
            .unwrap_or(false)
    }

    /// The kick descriptor does not work.
    pub(crate) fn fail_kick(&self, errno: i32, why: &str) {
        self.fail(Error::new(errno, format!("queue {}: {why}", self.index)));
    }

    /// Brackets a call of `kick`.
    pub(crate) fn set_in_kick(&self, in_kick: bool) {
        self.with_private(|private| private.in_kick = in_kick);
        self.kicking
            .store(if in_kick { thread_id() } else { 0 }, Ordering::Relaxed);
        if in_kick {
            self.counters.kicks.add(1);
        }
    }
}

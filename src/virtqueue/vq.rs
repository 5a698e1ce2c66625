//! A virtqueue: its owner's private half, the shared half, and what each side does with them.

use std::cell::UnsafeCell;
use std::marker::PhantomData;

use crate::context::owner::{CtxId, OwnerWord, State};
use crate::context::{ContextCore, Mail};
use crate::device::StopReason;
use crate::error::{Error, Result};
use crate::memory::{Bracket, RegionTable};
use crate::shared::Shared;
use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering, thread_id,
};

use super::areas::{SplitAreas, SplitLayout};
use super::element::Element;
use super::inflight::{EpochCount, Gate};
use super::kick::KickSource;
use super::publication::Publication;
use super::ring_error::RingError;
use super::signal::SignalFd;
use super::slot::{Slot, SlotPool, Stamp};
use super::split::{SplitFeatures, SplitRing};
use super::staged::Staged;
use super::stats::{Counter, OwnerCounters, PublicationCounters, VqStats};
use super::used::UsedElem;

/// What the internal thread prepares before it offers a ring.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Changes with every start, so that an owner knows a fresh ring from one that merely moved.
    pub(crate) incarnation: u64,
    pub(crate) size: u16,
    /// Front-end addresses of the three areas.
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) features: SplitFeatures,
    pub(crate) kick: Arc<KickSource>,
}

/// The elements popped by one owner over one table, and what they pin.
pub(super) struct Epoch {
    pub(super) count: EpochCount,
    queue: Arc<Queue>,
    _table: Arc<RegionTable>,
}

/// The owner's half. Only the thread that owns the queue reaches it.
struct Private {
    ring: Option<SplitRing>,
    pool: Option<SlotPool>,
    table: Option<Arc<RegionTable>>,
    /// While the queue is held: it keeps the kick descriptor open.
    setup: Option<Setup>,
    /// The ring that `pool` belongs to; 0 for none.
    incarnation: u64,
    /// The current epoch; counted by `popped - completed` until it is folded.
    epoch: *const Epoch,
    popped: u64,
    completed: u64,
    staged: Staged,
    /// `kick` is on the stack.
    in_kick: bool,
    /// Readiness that came while it was.
    remembered: bool,
    context: Option<Arc<ContextCore>>,
}

/// What an owner finds when it looks at its ring.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Empty,
    Work,
    Broken,
    /// The calling thread is not the owner, or `kick` is on the stack.
    Busy,
}

/// A queue. Its address is what a C program knows as `vu_vq`.
pub(crate) struct Queue {
    pub(crate) index: u32,
    pub(crate) server: Arc<Shared>,
    pub(crate) owner: OwnerWord,
    /// The thread that may touch `private`; 0 while no context holds the queue.
    owner_thread: AtomicUsize,
    /// The thread with this queue's `kick` on its stack; 0 when there is none.
    kicking: AtomicUsize,
    private: UnsafeCell<Private>,
    publication: Mutex<Publication>,
    /// Generation of the table that the used ring lies in; 0 without one.
    pinned: AtomicU64,
    setup: Mutex<Option<Setup>>,
    incarnations: AtomicU64,
    pub(crate) bracket: Bracket,
    pub(crate) gate: Gate,
    /// The program's own increments among what the gate counts.
    explicit: AtomicU64,
    pub(crate) call: SignalFd,
    pub(crate) err: SignalFd,
    enabled: AtomicBool,
    /// Where the next pop begins, as of the last hand-over.
    last_avail: AtomicU32,
    stop_reason: AtomicU32,
    failure: Mutex<Option<Error>>,
    broken: AtomicBool,
    orphaned: AtomicBool,
    counters: OwnerCounters,
    publications: PublicationCounters,
    dropped: Counter,
    breaks: Counter,
    data: AtomicPtr<libc::c_void>,
}

// SAFETY: `private` is reached through `with_private` (and the hot paths that make the same check) only by the
// thread whose identity stands in `owner_thread`; the owner word's AcqRel exchanges order one owner's
// accesses before the next one's. Everything else is Sync by itself.
unsafe impl Send for Queue {}
unsafe impl Sync for Queue {}

impl Queue {
    pub(crate) fn new(index: u32, server: Arc<Shared>) -> Arc<Self> {
        let stage_max = server.config.stage_max;
        Arc::new(Queue {
            index,
            server,
            owner: OwnerWord::new(),
            owner_thread: AtomicUsize::new(0),
            kicking: AtomicUsize::new(0),
            private: UnsafeCell::new(Private {
                ring: None,
                pool: None,
                table: None,
                setup: None,
                incarnation: 0,
                epoch: std::ptr::null(),
                popped: 0,
                completed: 0,
                staged: Staged::new(stage_max),
                in_kick: false,
                remembered: false,
                context: None,
            }),
            publication: Mutex::new(Publication::default()),
            pinned: AtomicU64::new(0),
            setup: Mutex::new(None),
            incarnations: AtomicU64::new(0),
            bracket: Bracket::default(),
            gate: Gate::new(),
            explicit: AtomicU64::new(0),
            call: SignalFd::new(),
            err: SignalFd::new(),
            enabled: AtomicBool::new(false),
            last_avail: AtomicU32::new(0),
            stop_reason: AtomicU32::new(StopReason::Reconfigured as u32),
            failure: Mutex::new(None),
            broken: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            counters: OwnerCounters::default(),
            publications: PublicationCounters::default(),
            dropped: Counter::default(),
            breaks: Counter::default(),
            data: AtomicPtr::new(std::ptr::null_mut()),
        })
    }

    // ---- any thread -------------------------------------------------------------------------------------

    /// The calling thread owns the queue.
    #[inline(always)]
    pub(crate) fn is_mine(&self) -> bool {
        // Relaxed: a thread that stored its own identity sees it; any other value is not this thread's.
        self.owner_thread.load(Ordering::Relaxed) == thread_id()
    }

    /// The calling thread may complete an element in the owner's half.
    ///
    /// Staging is the owner's to do. A plain completion may come from any thread at any time, also from one
    /// that owned the context until another thread began to dispatch it just now; inside `kick` nobody can
    /// take the context away.
    #[inline(always)]
    pub(super) fn completes_here(&self, stage: bool) -> bool {
        // Relaxed: as in `is_mine`.
        stage && self.is_mine() || self.kicking.load(Ordering::Relaxed) == thread_id()
    }

    pub(crate) fn set_owner_thread(&self, thread: usize) {
        self.owner_thread.store(thread, Ordering::Relaxed);
    }

    /// Enabled by the front-end. Acquire/Release pair up: who sees the flag sees what came before it.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Why the ring broke, once.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.failure.lock().take()
    }

    fn fail(&self, error: Error) {
        let mut failure = self.failure.lock();
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.breaks.add_shared(1);
            *failure = Some(error);
            self.server.hint_broken();
        }
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    pub(crate) fn data(&self) -> *mut libc::c_void {
        self.data.load(Ordering::Acquire)
    }

    pub(crate) fn set_data(&self, data: *mut libc::c_void) {
        self.data.store(data, Ordering::Release);
    }

    pub(crate) fn size(&self) -> u32 {
        self.setup
            .lock()
            .as_ref()
            .map_or(0, |setup| u32::from(setup.size))
    }

    pub(crate) fn stats(&self) -> VqStats {
        let completions = self.publications.completions.get();
        let pops = self
            .counters
            .pops
            .get()
            .wrapping_sub(self.counters.unpops.get());
        VqStats {
            pops,
            completions,
            bytes_out: self.publications.bytes_out.get(),
            bytes_in: self.publications.bytes_in.get(),
            kicks: self.counters.kicks.get(),
            notifications: self.publications.notifications.get(),
            notifications_suppressed: self.publications.suppressed.get(),
            inflight: pops.saturating_sub(completions),
            dropped: self.dropped.get(),
            breaks: self.breaks.get(),
        }
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.add_shared(1);
    }

    /// Something is in flight: an element, or an explicit count. Exact once the queue has no owner; before
    /// that, what the owner is just doing may or may not be in it.
    pub(crate) fn has_inflight(&self) -> bool {
        let epochs = self.gate.count();
        // The owner's own epoch counts in the gate even when nothing was popped.
        let own = u64::from(self.owner_thread.load(Ordering::Relaxed) != 0);
        epochs > own || self.stats().inflight > 0
    }

    /// One more thing that the library cannot see keeps the queue's memory.
    pub(crate) fn inflight_inc(&self) -> Result<()> {
        self.gate.inc().map_err(|_| {
            Error::new(
                libc::ESHUTDOWN,
                format!("queue {}: already drained", self.index),
            )
        })?;
        // Relaxed: the gate does the ordering, this only keeps the program from taking an epoch's count.
        self.explicit.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn inflight_dec(&self) -> Result<()> {
        let taken = self
            .explicit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                count.checked_sub(1)
            });
        if taken.is_err() {
            return Err(Error::invalid(format!(
                "queue {}: inflight_dec without inflight_inc",
                self.index
            )));
        }
        if self.gate.dec() == Ok(true) {
            self.server.became_idle();
        }
        Ok(())
    }

    // ---- the internal thread ----------------------------------------------------------------------------

    /// A fresh ring that begins at `base`, or with `None` a new kick descriptor for the same one. The queue is
    /// INTERNAL.
    pub(crate) fn prepare(&self, mut setup: Setup, base: Option<u16>) {
        let mut place = self.setup.lock();
        setup.incarnation = place.as_ref().map_or(0, |before| before.incarnation);
        if let Some(base) = base {
            setup.incarnation = self.incarnations.fetch_add(1, Ordering::Relaxed) + 1;
            self.broken.store(false, Ordering::Release);
            *self.failure.lock() = None;
            self.last_avail.store(u32::from(base), Ordering::Release);
            self.publication.lock().revive();
            self.gate.reopen();
        }
        *place = Some(setup);
    }

    /// The ring is no more: nothing in flight, or the connection is gone. Completions that are still to come
    /// do not touch guest memory.
    pub(crate) fn retire(&self) {
        // Two statements: what is unmapped here is unmapped outside of the lock.
        let table = self.publication.lock().retire();
        self.pinned.store(0, Ordering::Relaxed);
        drop(table);
    }

    /// The ring is no more, and what was wrong with it neither.
    pub(crate) fn forget_setup(&self) {
        *self.setup.lock() = None;
        self.broken.store(false, Ordering::Release);
        *self.failure.lock() = None;
    }

    /// The used ring lies in an older table than that of `generation`.
    pub(crate) fn is_behind(&self, generation: u64) -> bool {
        // Relaxed: whoever asks has waited for the bracket in which the owner stored it.
        let pinned = self.pinned.load(Ordering::Relaxed);
        pinned != 0 && pinned < generation
    }

    /// The queue is INTERNAL: its used ring moves to the current table, or dies if it is not in there.
    pub(crate) fn rebase(&self, table: &Arc<RegionTable>) {
        let Some(setup) = self.setup.lock().clone() else {
            return;
        };
        self.pinned.store(table.generation(), Ordering::Relaxed);
        let mut publication = self.publication.lock();
        match resolve(&setup, table, self.index) {
            Ok(areas) => publication.rebase(areas, setup.features.event_idx, table.clone()),
            Err(error) => {
                let table = publication.retire();
                drop(publication);
                drop(table);
                self.fail(error);
            }
        }
    }

    /// Where the driver's next buffer is; exact while the queue is INTERNAL.
    pub(crate) fn last_avail(&self) -> u16 {
        self.last_avail.load(Ordering::Acquire) as u16
    }

    pub(crate) fn set_stop_reason(&self, reason: StopReason) {
        self.stop_reason.store(reason as u32, Ordering::Release);
    }

    /// A recalled queue is in nobody's hands and has nothing in flight. The gate is closed only when the owner
    /// has let go: one that is just arriving must find it open.
    pub(crate) fn is_drained(&self) -> bool {
        self.owner.load().state == State::Internal && self.gate.close()
    }

    /// The drain is given up: from here on this queue lives on what is in flight.
    pub(crate) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Release);
    }

    // ---- the owner --------------------------------------------------------------------------------------

    /// Runs `f` on the private half if the calling thread owns the queue. `f` must not call back into the
    /// application or into this queue.
    fn with_private<R>(&self, f: impl FnOnce(&mut Private) -> R) -> Option<R> {
        // SAFETY: this thread owns the queue (see the Sync impl), and `f` does not come back here.
        self.is_mine()
            .then(|| f(unsafe { &mut *self.private.get() }))
    }

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
            }
            private.setup = Some(setup.clone());
            self.place(private, &setup, table, self.last_avail())
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
    fn enter_current_table(&self) -> Arc<RegionTable> {
        loop {
            let table = self.server.table.current();
            self.bracket.enter(&self.server.table, table.generation());
            if self.server.table.generation() == table.generation() {
                return table;
            }
        }
    }

    /// Resolves the ring over `table` and begins an epoch.
    fn place(
        self: &Arc<Self>,
        private: &mut Private,
        setup: &Setup,
        table: Arc<RegionTable>,
        last_avail: u16,
    ) -> Result<()> {
        let areas = resolve(setup, &table, self.index)?;
        let Some(pool) = private.pool.as_ref() else {
            return Err(Error::invalid("a queue without slots"));
        };
        // The areas are good as long as `table`, which `private.table` keeps.
        let ring = SplitRing::new(areas, setup.features, last_avail);
        self.publication.lock().place(
            areas,
            setup.features.event_idx,
            table.clone(),
            pool.returns().clone(),
        );
        self.pinned.store(table.generation(), Ordering::Relaxed);
        private.ring = Some(ring);
        private.table = Some(table.clone());
        self.gate
            .inc()
            .map_err(|_| Error::new(libc::ESHUTDOWN, "the queue is being drained"))?;
        private.epoch = Box::into_raw(Box::new(Epoch {
            count: EpochCount::new(),
            queue: self.clone(),
            _table: table,
        }));
        private.popped = 0;
        private.completed = 0;
        Ok(())
    }

    /// Ends the current epoch: from here on its elements count themselves.
    fn fold(&self, private: &mut Private) {
        let epoch = std::mem::replace(&mut private.epoch, std::ptr::null());
        if epoch.is_null() {
            return;
        }
        let balance = private.popped - private.completed;
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
                self.last_avail
                    .store(u32::from(ring.last_avail()), Ordering::Release);
            }
            self.fold(private);
            private.table = None;
            private.setup = None;
            private.context = None;
            private.in_kick = false;
        });
        self.owner_thread.store(0, Ordering::Relaxed);
    }

    /// Moves to the current table if there is a newer one than the ring was resolved with.
    fn renew(&self, private: &mut Private) -> Result<()> {
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
        let last_avail = ring.last_avail();
        self.last_avail
            .store(u32::from(last_avail), Ordering::Release);
        // The epoch holds the strong reference that a new one is made from.
        let Some(this) = self.this(private) else {
            return Ok(());
        };
        // The next epoch begins before the old one ends, so the gate does not pass through zero.
        let old = (private.epoch, private.popped - private.completed);
        let placed = this.place(private, &setup, table.clone(), last_avail);
        let new = (private.epoch, private.popped, private.completed);
        if placed.is_err() {
            self.retire();
        } else {
            private.epoch = old.0;
            private.popped = old.1;
            private.completed = 0;
            self.fold(private);
            (private.epoch, private.popped, private.completed) = new;
        }
        self.bracket.renew(table.generation());
        placed
    }

    fn this(&self, private: &Private) -> Option<Arc<Queue>> {
        // SAFETY: the current epoch lives until it is folded.
        unsafe { private.epoch.as_ref() }.map(|epoch| epoch.queue.clone())
    }

    /// Renews the table and looks whether there is something to pop.
    pub(crate) fn look(&self) -> Look {
        let Some(look) = self.with_private(|private| {
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
        }) else {
            return Look::Busy;
        };
        look
    }

    fn look_bracketed(&self, private: &mut Private, generation: u64) -> Look {
        if self.server.table.generation() != generation
            && let Err(error) = self.renew(private)
        {
            self.fail(error);
            return Look::Broken;
        }
        match private.ring.as_mut().map(SplitRing::fetch) {
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
            !private.in_kick && private.ring.as_ref().is_some_and(SplitRing::has_new)
        })
        .unwrap_or(false)
    }

    pub(crate) fn disable_notifications(&self) {
        self.with_private(|private| private.ring.as_mut().map(SplitRing::disable_notifications));
    }

    /// Turns guest notifications on. True if something came in the meantime (also a readiness that was
    /// remembered while `kick` was on the stack).
    pub(crate) fn rearm(&self) -> bool {
        self.with_private(|private| {
            let remembered = std::mem::take(&mut private.remembered);
            private.ring.as_mut().is_some_and(SplitRing::rearm) || remembered
        })
        .unwrap_or(false)
    }

    /// `kick` is on this thread's stack.
    pub(crate) fn is_in_kick(&self) -> bool {
        self.with_private(|private| private.in_kick)
            .unwrap_or(false)
    }

    /// The kick descriptor does not work.
    pub(crate) fn fail_kick(&self, why: &str) {
        self.fail(Error::new(
            libc::EBADMSG,
            format!("queue {}: {why}", self.index),
        ));
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

    /// Publishes what is staged.
    pub(crate) fn flush(&self) -> Result<()> {
        self.with_private(|private| self.flush_private(private))
            .ok_or_else(|| Error::new(libc::EXDEV, "not the owner of the queue"))
    }

    fn flush_private(&self, private: &mut Private) {
        let n = private.staged.len() as u64;
        if n == 0 {
            return;
        }
        let notify = {
            let mut publication = self.publication.lock();
            self.publications.completions.add(n);
            self.publications.bytes_in.add(private.staged.bytes_in());
            self.publications.bytes_out.add(private.staged.bytes_out);
            self.count_decision(publication.publish(private.staged.batch()))
        };
        private.staged.clear();
        if notify {
            self.notify();
        }
        // Last: whoever waits for what is in flight finds it published.
        private.completed += n;
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
        if let Err(errno) = self.call.signal() {
            self.server.logger.warning(format_args!(
                "queue {}: call descriptor: {}",
                self.index,
                errno.desc()
            ));
        }
    }

    /// Tells the front-end that the ring is broken.
    pub(crate) fn signal_error(&self) {
        if let Err(errno) = self.err.signal() {
            self.server.logger.warning(format_args!(
                "queue {}: err descriptor: {}",
                self.index,
                errno.desc()
            ));
        }
    }

    // ---- the data path ----------------------------------------------------------------------------------

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
        let held = private.table.as_ref().map_or(0, |table| table.generation());
        if !matches!(error, RingError::Unmapped { .. }) || self.server.table.generation() == held {
            return Err(ring_error(self.index, &error));
        }
        self.renew(private)?;
        self.pop_once(private, out)
            .map_err(|e| ring_error(self.index, &e))
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

    /// Stages the completion of an element of the running epoch. False, with nothing done, if it is of one that
    /// has ended.
    ///
    /// # Safety
    /// `slot` is a live element of this queue, and [`completes_here`](Self::completes_here) said that the
    /// calling thread owns the queue.
    #[inline(always)]
    pub(super) unsafe fn stage(&self, slot: *mut Slot, written: u32) -> bool {
        // SAFETY: this thread owns the queue, and nothing below comes back to it.
        let private = unsafe { &mut *self.private.get() };
        // SAFETY: the slot is live until it is released below.
        let (head, epoch, out_len) =
            unsafe { ((*slot).head(), (*slot).epoch.cast(), (*slot).elem.out_len) };
        if epoch != private.epoch {
            return false;
        }
        let Some(pool) = &mut private.pool else {
            return false;
        };
        // SAFETY: the slot is this pool's and nobody uses it any more.
        unsafe { pool.release(slot) };
        if private.staged.push(UsedElem::new(head, written), out_len) {
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
    pub(super) unsafe fn finish(&self, slot: *mut Slot, written: u32) {
        // SAFETY: the caller's promise; the slot stays valid until it is given back below.
        let (head, epoch, out_len) = unsafe {
            (
                (*slot).head(),
                (*slot).epoch.cast::<Epoch>(),
                (*slot).elem.out_len,
            )
        };
        let elem = UsedElem::new(head, written);
        let notify = {
            let mut publication = self.publication.lock();
            // SAFETY: the slot is of this queue's pool and nobody uses it after this.
            unsafe { publication.give_back(slot) };
            self.publications.completions.add(1);
            self.publications.bytes_in.add(u64::from(elem.len()));
            self.publications.bytes_out.add(u64::from(out_len));
            self.count_decision(publication.publish(&[elem]))
        };
        if notify {
            self.notify();
        }
        // SAFETY: the element kept its epoch alive until here; neither it nor `self` is used afterwards.
        unsafe { complete_in(epoch) };
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "queue {} {:?}", self.index, self.owner.load())
    }
}

/// One element of an epoch is done.
///
/// # Safety
/// The element counts in `epoch`, which therefore lives; it does not afterwards.
unsafe fn complete_in(epoch: *const Epoch) {
    // SAFETY: the caller's promise.
    if unsafe { (*epoch).count.complete(1) } {
        // SAFETY: this was the last one.
        unsafe { release_epoch(epoch) };
    }
}

/// # Safety
/// `epoch` came from `Box::into_raw`, and this is the one call after its count said "last".
unsafe fn release_epoch(epoch: *const Epoch) {
    // SAFETY: the caller's promise.
    let Epoch { queue, _table, .. } = *unsafe { Box::from_raw(epoch.cast_mut()) };
    // The mapping goes before the gate says so.
    drop(_table);
    if queue.gate.dec() == Ok(true) {
        queue.server.became_idle();
    }
}

fn ring_error(index: u32, error: &RingError) -> Error {
    Error::new(error.errno(), format!("queue {index}: {error}"))
}

/// Host pointers of the three areas, each in full length inside one region.
pub(crate) fn resolve(setup: &Setup, table: &RegionTable, index: u32) -> Result<SplitAreas> {
    let layout = SplitLayout::new(setup.size, setup.features.event_idx);
    let area = |name: &str, address: u64, len: usize| {
        table.translate_user(address, len as u64).ok_or_else(|| {
            Error::new(
                libc::EFAULT,
                format!(
                    "queue {index}: {name} ring at {address:#x}, {len} bytes: not in one region"
                ),
            )
        })
    };
    let desc = area("descriptor", setup.desc, layout.desc)?;
    let avail = area("available", setup.avail, layout.avail)?;
    let used = area("used", setup.used, layout.used)?;
    // SAFETY: each area is translated in its full length, and who keeps the result keeps `table`.
    unsafe { SplitAreas::new(desc, avail, used, setup.size) }.map_err(|e| ring_error(index, &e))
}

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

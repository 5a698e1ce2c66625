//! A virtqueue: its owner's private half, the shared half, and what each side does with them.
//!
//! * [`set_up`] the internal thread's side; [`owned`] the owner's
//! * [`pop`], [`publish`] the data path; [`epoch`] what is in flight and what it pins; [`dirty`] what it wrote; [`recover`] what a predecessor left;
//!   [`translation`] what an IOMMU has not told yet
//! * [`lent`] the queue as a Rust device sees it

mod dirty;
mod epoch;
mod lent;
mod owned;
mod pop;
mod publish;
mod recover;
mod set_up;
mod translation;

use std::cell::UnsafeCell;

use crate::context::ContextCore;
use crate::context::owner::OwnerWord;
use crate::device::StopReason;
use crate::error::{Error, Result};
use crate::memory::{Bracket, RegionTable};
use crate::shared::Shared;
use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering, thread_id,
};

use super::inflight::Gate;
use super::inflight_area::InflightRegion;
use super::kick::KickSource;
use super::place::Base;
use super::publication::Publication;
use super::ring::{Ring, RingFeatures};
use super::signal::SignalFd;
use super::slot::SlotPool;
use super::split::RecoveredHeads;
use super::staged::Staged;
use super::stats::{Counter, OwnerCounters, PublicationCounters, VqStats};
use epoch::Epoch;

#[cfg(feature = "rust-vmm")]
pub(in crate::virtqueue) use epoch::regions_of;
pub use lent::Virtqueue;
pub(crate) use set_up::resolve;

/// What the internal thread prepares before it offers a ring.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Changes with every start, so that an owner knows a fresh ring from one that merely moved.
    pub(crate) incarnation: u64,
    pub(crate) size: u16,
    pub(crate) packed: bool,
    /// Front-end addresses of the three areas.
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) features: RingFeatures,
    /// Where what is in flight is marked, if the front-end wants that.
    pub(crate) inflight: Option<InflightRegion>,
    pub(crate) kick: Arc<KickSource>,
}
/// The owner's half. Only the thread that owns the queue reaches it.
struct Private {
    ring: Option<Ring>,
    pool: Option<SlotPool>,
    table: Option<Arc<RegionTable>>,
    /// While the queue is held: it keeps the kick descriptor open.
    setup: Option<Setup>,
    /// The ring that `pool` belongs to; 0 for none.
    incarnation: u64,
    /// The generation of the table over which completions have nothing to mark; 0 while a dirty log is on.
    unlogged: u64,
    /// The generation of the table that has no translation for the next chain; 0 while nothing is missing.
    paused: u64,
    /// What is popped is marked in the in-flight area.
    tracked: bool,
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

/// No address: a ring that ended there would wrap.
const NOT_LOGGED: u64 = u64::MAX;

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
///
/// Whatever is written for each batch, here and in the other types with this alignment, has cache lines to itself (two,
/// because processors fetch them in pairs): else it would share one with whatever the allocator put beside it, and
/// threads that have nothing to do with each other would take the line from each other.
#[repr(align(128))]
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
    /// What the publication does not know yet: the ring is dead.
    condemned: AtomicBool,
    /// Generation of the table that the used ring lies in; 0 without one.
    pinned: AtomicU64,
    setup: Mutex<Option<Setup>>,
    /// Where the dirty log has the used ring's first byte; [`NOT_LOGGED`] if writes to it are not logged.
    used_log_base: AtomicU64,
    incarnations: AtomicU64,
    pub(crate) bracket: Bracket,
    pub(crate) gate: Gate,
    /// The program's own increments among what the gate counts.
    explicit: AtomicU64,
    pub(crate) call: SignalFd,
    pub(crate) err: SignalFd,
    enabled: AtomicBool,
    /// How many chains were popped, as of the last hand-over: the low 16 bits are the position in the available ring. Of a
    /// packed ring, how many descriptors.
    popped: AtomicU64,
    /// What a predecessor had in flight.
    recovered: Mutex<Option<Arc<RecoveredHeads>>>,
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
                unlogged: 0,
                paused: 0,
                tracked: false,
                epoch: std::ptr::null(),
                popped: 0,
                completed: 0,
                staged: Staged::new(stage_max),
                in_kick: false,
                remembered: false,
                context: None,
            }),
            publication: Mutex::new(Publication::default()),
            condemned: AtomicBool::new(false),
            pinned: AtomicU64::new(0),
            setup: Mutex::new(None),
            used_log_base: AtomicU64::new(NOT_LOGGED),
            incarnations: AtomicU64::new(0),
            bracket: Bracket::default(),
            gate: Gate::new(),
            explicit: AtomicU64::new(0),
            call: SignalFd::new(),
            err: SignalFd::new(),
            enabled: AtomicBool::new(false),
            popped: AtomicU64::new(0),
            recovered: Mutex::new(None),
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
    pub(in crate::virtqueue) fn completes_here(&self, stage: bool) -> bool {
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

    /// The rings of a legacy device's big-endian guest; what the elements hold has that order, too.
    pub(crate) fn is_big_endian(&self) -> bool {
        self.setup
            .lock()
            .as_ref()
            .is_some_and(|setup| setup.features.big_endian)
    }

    pub(crate) fn stats(&self) -> VqStats {
        let completions = self.publications.completions.get();
        let suspended = self.publications.suspended.get();
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
            inflight: pops.saturating_sub(completions + suspended),
            dropped: self.dropped.get(),
            breaks: self.breaks.get(),
            suspended,
        }
    }

    pub(in crate::virtqueue) fn count_dropped(&self) {
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

    /// Runs `f` on the private half if the calling thread owns the queue. `f` must not call back into the
    /// application or into this queue.
    fn with_private<R>(&self, f: impl FnOnce(&mut Private) -> R) -> Option<R> {
        // SAFETY: this thread owns the queue (see the Sync impl), and `f` does not come back here.
        self.is_mine()
            .then(|| f(unsafe { &mut *self.private.get() }))
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "queue {} {:?}", self.index, self.owner.load())
    }
}

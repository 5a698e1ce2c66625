//! What the threads of one server share: its configuration, its device and its state.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::callback;
use crate::config_space::ConfigSpace;
use crate::device::{Capabilities, Device};
use crate::error::{Error, Result};
use crate::lifecycle::Lifecycle;
use crate::log::Logger;
use crate::memory::{Access, TableCell};
use crate::misses::Misses;
use crate::outbox::{Finished, Outbox, Reply};
use crate::protocol::messages::{Iotlb, IotlbKind, VringState};
use crate::protocol::requests::backend_id;
use crate::stats::ServerCounters;
use crate::stream::Stream;
use crate::sync::{Arc, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Mutex, Ordering, fence};
use crate::virtqueue::Queue;
use crate::virtqueue::inflight::Gate;
use crate::virtqueue::signal::SignalFd;

/// What [`ServerBuilder`](crate::ServerBuilder) collected; never changes afterwards.
pub(crate) struct Config {
    pub(crate) name: String,
    /// Virtio features offered to the driver.
    pub(crate) features: u64,
    pub(crate) num_queues: u32,
    pub(crate) max_queue_size: u16,
    pub(crate) elem_priv_size: u32,
    pub(crate) stage_max: usize,
    /// `None`: no limit.
    pub(crate) drain_timeout: Option<Duration>,
    pub(crate) disconnect_on_broken_ring: bool,
    pub(crate) run_disabled_queues: bool,
    pub(crate) require_sealed_memory: bool,
    /// Front-ends may keep an area of what is in flight.
    pub(crate) inflight_area: bool,
    /// The device can let go of what is in flight when a ring stops.
    pub(crate) suspends: bool,
    pub(crate) in_band_notifications: bool,
    /// Requests that the device sees first.
    pub(crate) intercepted: Vec<u32>,
    /// How long a request to the front-end may take; `None`: no limit.
    pub(crate) reply_timeout: Option<Duration>,
    /// Sizes of the device's shared memory regions, by their ID.
    pub(crate) shmem_regions: Vec<u64>,
    pub(crate) wake: Option<Box<dyn Fn() + Send + Sync>>,
}

/// `None` is no limit.
pub(crate) fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    timeout.map_or(PollTimeout::NONE, |timeout| {
        // Rounded up, or the last part of a millisecond would be spent spinning.
        let ms = timeout.as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
    })
}

/// An eventfd that wakes a thread which polls it.
#[derive(Debug)]
pub(crate) struct Doorbell(EventFd);

impl Doorbell {
    pub(crate) fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Doorbell(EventFd::from_flags(flags)?))
    }

    /// Any thread; async-signal-safe.
    pub(crate) fn ring(&self) {
        // A full counter is a doorbell that rings already.
        let _ = self.0.write(1);
    }

    pub(crate) fn silence(&self) {
        let _ = self.0.read();
    }

    /// Sleeps until it rings, `also` is readable, or the time is over; `None` is no limit.
    pub(crate) fn wait(&self, also: Option<BorrowedFd<'_>>, timeout: Option<Duration>) {
        let mut fds = vec![PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        fds.extend(also.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Who waits here has every signal blocked, and looks at everything again.
        let _ = poll(&mut fds, poll_timeout(timeout));
        self.silence();
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Read by every queue for each batch. Aligned as a queue is, so that no neighbour's writes disturb that.
#[repr(align(128))]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) logger: Logger,
    device: Box<dyn Device>,
    /// What the device said when the server was built.
    pub(crate) capabilities: Capabilities,
    /// The handle is gone: the internal thread frees the server when it is down.
    abandoned: AtomicBool,
    /// Set when the server is freed: no callback after it.
    destroyed: AtomicBool,
    /// Threads that are about to call `wake`, or inside it.
    waking: AtomicUsize,
    /// A thread is about to call `stopped`, or inside it.
    telling: AtomicBool,
    /// A callback panicked.
    poisoned: AtomicBool,
    /// A ring has broken and has not been reported: spares the internal thread the look at every queue.
    broken_hint: AtomicBool,
    pub(crate) table: TableCell,
    /// Signalled after something was marked in the dirty log (SET_LOG_FD).
    pub(crate) log_signal: SignalFd,
    /// Wakes the internal thread.
    pub(crate) internal: Doorbell,
    queues: Mutex<Vec<Arc<Queue>>>,
    /// Queues that a drain time-out cut off. A program may still hold their pointers, so they stay until the
    /// server is freed.
    retired: Mutex<Vec<Arc<Queue>>>,
    pub(crate) stream: Stream,
    /// Work of the whole device that the library cannot see.
    pub(crate) gate: Gate,
    acked_features: AtomicU64,
    /// The front-end takes rings over with requests in flight.
    suspends_inflight: AtomicBool,
    pub(crate) config_space: Mutex<ConfigSpace>,
    /// What the front-end shall be told on the back-end channel.
    pub(crate) outbox: Outbox,
    /// Translations that the front-end has been asked for.
    pub(crate) misses: Misses,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) counters: ServerCounters,
    /// What the other door knows this server as; null if it was not made there.
    pub(crate) handle: AtomicPtr<()>,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        logger: Logger,
        config_space: ConfigSpace,
        device: Box<dyn Device>,
        internal: Doorbell,
    ) -> Arc<Self> {
        let capabilities = device.capabilities();
        let outbox = Outbox::new(config.num_queues);
        let shared = Arc::new(Shared {
            config,
            logger,
            capabilities,
            device,
            abandoned: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
            waking: AtomicUsize::new(0),
            telling: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            broken_hint: AtomicBool::new(false),
            table: TableCell::new(),
            log_signal: SignalFd::new(),
            internal,
            queues: Mutex::new(Vec::new()),
            retired: Mutex::new(Vec::new()),
            stream: Stream::new(),
            gate: Gate::new(),
            acked_features: AtomicU64::new(0),
            suspends_inflight: AtomicBool::new(false),
            config_space: Mutex::new(config_space),
            outbox,
            misses: Misses::default(),
            lifecycle: Lifecycle::new(),
            counters: ServerCounters::default(),
            handle: AtomicPtr::new(std::ptr::null_mut()),
        });
        let queues = (0..shared.config.num_queues)
            .map(|index| Queue::new(index, shared.clone()))
            .collect();
        *shared.queues.lock() = queues;
        shared
    }

    /// Identifies the server among the callbacks on a stack.
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    // ---- the device -------------------------------------------------------------------------------------

    /// Runs a callback. `None` if the device is gone or poisoned, or panicked just now.
    pub(crate) fn call<R>(&self, f: impl FnOnce(&dyn Device) -> R) -> Option<R> {
        if self.is_poisoned() || self.destroyed.load(Ordering::Acquire) {
            return None;
        }
        let result = callback::run(self.id(), || f(&*self.device));
        if result.is_none() {
            self.poison();
        }
        result
    }

    /// Tells that the stop is complete: also a poisoned device, which may have nothing else to learn it from.
    pub(crate) fn call_stopped(&self) {
        // SeqCst: either `destroy` sees this thread and waits for it, or this thread sees that it is too late.
        self.telling.store(true, Ordering::SeqCst);
        if !self.destroyed.load(Ordering::SeqCst)
            && callback::run_last(self.id(), || self.device.stopped()).is_none()
        {
            self.poison();
        }
        self.telling.store(false, Ordering::Release);
    }

    /// Any thread: the front-end wants a message where others want a call descriptor signalled. Without a
    /// channel there is nobody to tell; when there is one, it is told of every ring.
    pub(crate) fn call_in_band(&self, index: u32) {
        let state = VringState { index, num: 0 }.encode();
        let _ = self.notify_front_end(backend_id::VRING_CALL, &state, Reply::Ack);
    }

    /// As [`call_in_band`](Self::call_in_band), in place of an err descriptor.
    pub(crate) fn error_in_band(&self, index: u32) {
        let state = VringState { index, num: 0 }.encode();
        let _ = self.notify_front_end(backend_id::VRING_ERR, &state, Reply::Ack);
    }

    /// Tells what has become of a request to the front-end. The program is owed that also when the device is
    /// poisoned.
    pub(crate) fn tell(&self, finished: Finished) {
        if callback::run(self.id(), || finished.tell()).is_none() {
            self.poison();
        }
    }

    /// The server may be freed now and here.
    pub(crate) fn check_free(&self) -> Result<()> {
        if callback::keeps(self.id()) {
            return Err(Error::new(
                libc::EDEADLK,
                "free inside a callback of the same server",
            ));
        }
        self.lifecycle.check_idle()
    }

    /// Before the stop that follows is asked for.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        self.logger.error(format_args!(
            "a callback of the device panicked; the server can only be stopped and freed"
        ));
        self.internal.ring();
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        if self.is_poisoned() {
            return Err(Error::new(
                libc::ENOTRECOVERABLE,
                "a callback of the device panicked",
            ));
        }
        Ok(())
    }

    /// The server is being freed: tells the device, once, and lets go of the queues.
    pub(crate) fn destroy(&self) {
        // SeqCst: pairs with `wake` and `call_stopped`.
        if self.destroyed.swap(true, Ordering::SeqCst) {
            return;
        }
        // What `wake` refers to is the program's to free after this. It only wakes a loop, so it is soon over.
        while self.waking.load(Ordering::SeqCst) != 0 && !callback::keeps(self.id()) {
            std::thread::yield_now();
        }
        // The program may free a server that is stopped while another thread's loop tells so.
        while self.telling.load(Ordering::SeqCst) && !callback::is_in_last(self.id()) {
            std::thread::yield_now();
        }
        // What no context was there to hear.
        for finished in self.stream.take_finished() {
            self.tell(finished);
        }
        callback::run(self.id(), || self.device.destroy());
        let queues = std::mem::take(&mut *self.queues.lock());
        let retired = std::mem::take(&mut *self.retired.lock());
        drop((queues, retired));
    }

    // ---- queues -----------------------------------------------------------------------------------------

    pub(crate) fn queue(&self, index: u32) -> Option<Arc<Queue>> {
        self.queues.lock().get(index as usize).cloned()
    }

    /// A copy of the list, so that no lock is held while something is done with each.
    pub(crate) fn queues(&self) -> Vec<Arc<Queue>> {
        self.queues.lock().clone()
    }

    /// Cuts a queue off after a drain time-out; a new one takes its place. Its target moves along.
    pub(crate) fn replace_queue(self: &Arc<Self>, orphan: &Arc<Queue>) -> Option<Arc<Queue>> {
        let fresh = Queue::new(orphan.index, self.clone());
        fresh.set_data(orphan.data());
        let mut queues = self.queues.lock();
        let place = queues.get_mut(orphan.index as usize)?;
        if !Arc::ptr_eq(place, orphan) {
            return None;
        }
        self.retired
            .lock()
            .push(std::mem::replace(place, fresh.clone()));
        Some(fresh)
    }

    /// After the queue's own flag: who takes the hint finds that.
    pub(crate) fn hint_broken(&self) {
        self.broken_hint.store(true, Ordering::Release);
    }

    pub(crate) fn take_broken_hint(&self) -> bool {
        self.broken_hint.load(Ordering::Relaxed) && self.broken_hint.swap(false, Ordering::AcqRel)
    }

    // ---- quiescence -------------------------------------------------------------------------------------

    /// No context holds anything of this server or is offered anything.
    pub(crate) fn is_quiesced(&self) -> bool {
        use crate::context::owner::State;
        self.stream.owner.load().state == State::Internal
            && self
                .queues
                .lock()
                .iter()
                .all(|queue| queue.owner.load().state == State::Internal)
    }

    pub(crate) fn has_inflight(&self) -> bool {
        !self.gate.is_idle() || self.queues.lock().iter().any(|queue| queue.has_inflight())
    }

    /// One explicit count less. Legal as long as there is one, also when the server is freed.
    pub(crate) fn inflight_dec(&self) -> Result<()> {
        match self.gate.dec() {
            Ok(idle) => {
                if idle {
                    self.became_idle();
                }
                Ok(())
            }
            Err(_) => Err(Error::invalid("inflight_dec without inflight_inc")),
        }
    }

    /// Something that somebody may wait for has become zero.
    pub(crate) fn became_idle(&self) {
        self.internal.ring();
        self.wake();
    }

    /// The application's own wake-up; any thread.
    pub(crate) fn wake(&self) {
        let Some(wake) = &self.config.wake else {
            return;
        };
        // SeqCst: either `destroy` sees this thread and waits for it, or this thread sees that it is too late.
        self.waking.fetch_add(1, Ordering::SeqCst);
        if !self.destroyed.load(Ordering::SeqCst) && callback::run(self.id(), wake).is_none() {
            self.poison();
        }
        self.waking.fetch_sub(1, Ordering::Release);
    }

    /// A queue or the stream was handed back.
    pub(crate) fn handed_back(&self) {
        self.internal.ring();
        // Pairs with itself: of two threads that hand the last two back, the later one finds the other's done.
        fence(Ordering::SeqCst);
        if self.stream.owner.load().target.is_none() && self.is_quiesced() {
            self.wake();
        }
    }

    /// Tells the front-end that its dirty log has changed, if it wants to hear of that.
    pub(crate) fn signal_log(&self) {
        if let Err(errno) = self.log_signal.signal() {
            self.logger
                .warning(format_args!("log descriptor: {}", errno.desc()));
        }
    }

    // ---- addresses behind an IOMMU ----------------------------------------------------------------------

    /// Any thread: asks the front-end for a translation, once. Without a channel it comes by itself, or is asked for when
    /// there is one.
    pub(crate) fn ask_for_translation(&self, iova: u64, access: Access) {
        if self.misses.add(iova, access.permission())
            && self.send_iotlb(IotlbKind::Miss, iova, access).is_err()
        {
            self.misses.answered(iova, iova);
        }
    }

    /// Any thread: tells the front-end that the guest has asked for what its IOMMU forbids.
    pub(crate) fn tell_denied(&self, iova: u64, access: Access) {
        let _ = self.send_iotlb(IotlbKind::AccessFail, iova, access);
    }

    fn send_iotlb(&self, kind: IotlbKind, iova: u64, access: Access) -> Result<()> {
        let message = Iotlb {
            iova,
            size: 0,
            user_address: 0,
            permissions: access.permission(),
            kind,
        };
        self.notify_front_end(backend_id::IOTLB_MSG, &message.encode(), Reply::Nothing)
    }

    // ---- features and config space ----------------------------------------------------------------------

    pub(crate) fn acked_features(&self) -> u64 {
        self.acked_features.load(Ordering::Acquire)
    }

    pub(crate) fn set_acked_features(&self, features: u64) {
        self.acked_features.store(features, Ordering::Release);
    }

    /// The front-end takes rings over with requests in flight. Acquire and Release pair up.
    pub(crate) fn suspends_inflight(&self) -> bool {
        self.suspends_inflight.load(Ordering::Acquire)
    }

    pub(crate) fn set_suspends_inflight(&self, yes: bool) {
        self.suspends_inflight.store(yes, Ordering::Release);
    }

    /// The application changes the config space; the internal thread tells the front-end.
    pub(crate) fn change_config(&self, offset: u32, bytes: &[u8]) -> Result<()> {
        if self.config_space.lock().set(offset, bytes)? {
            // Without a channel there is nobody to tell; the front-end reads the config space when it starts.
            let _ = self.notify_front_end(backend_id::CONFIG_CHANGE_MSG, &[], Reply::Nothing);
        }
        Ok(())
    }

    /// Any thread: queues a request to the front-end of which nobody hears the end. An equal one that has not
    /// been sent yet is enough.
    pub(crate) fn notify_front_end(&self, id: u32, body: &[u8], reply: Reply) -> Result<()> {
        self.outbox.notice(id, body, reply)?;
        self.internal.ring();
        Ok(())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server {}", self.config.name)
    }
}

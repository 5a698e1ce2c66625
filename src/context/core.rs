//! A context: who owns it, and what it means to be inside one of its dispatches.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Weak;

use crate::error::{Error, Result};
use crate::shared::{Doorbell, Shared};
use crate::sync::{
    Arc, AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering, thread_id, thread_serial,
};
use crate::virtqueue::Queue;

use super::busy::BusyPoll;
use super::event_loop::Kind;
use super::mailbox::Mailbox;
use super::owner::CtxId;
use super::registry;
use super::serve::Scope;
use super::watch::{Target, Watch, WatchSlot};

/// "Look at this one's owner word."
#[derive(Clone, Debug)]
pub(crate) enum Mail {
    Queue(Arc<Queue>),
    Stream(Arc<Shared>),
}

impl PartialEq for Mail {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Mail::Queue(a), Mail::Queue(b)) => Arc::ptr_eq(a, b),
            (Mail::Stream(a), Mail::Stream(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A queue that the context owns, and the watch of its kick descriptor.
pub(super) struct Held {
    pub(super) queue: Arc<Queue>,
    pub(super) slot: Option<Arc<WatchSlot>>,
}

/// Locked for single steps, never across a callback.
#[derive(Default)]
pub(super) struct Inner {
    pub(super) held: Vec<Held>,
    /// Queues that want to be served again.
    pub(super) again: VecDeque<Arc<Queue>>,
    /// Queues with staged completions.
    pub(super) unflushed: Vec<Arc<Queue>>,
    /// Queues whose notifications are off while the context busy-polls.
    pub(super) unarmed: VecDeque<Arc<Queue>>,
    /// Every slot that was ever handed to the loop.
    slots: Vec<Arc<WatchSlot>>,
}

/// Aligned as a queue is: it is locked in each dispatch.
#[repr(align(128))]
pub(crate) struct ContextCore {
    this: Weak<ContextCore>,
    pub(crate) id: CtxId,
    pub(super) kind: Kind,
    pub(super) mailbox: Mailbox<Mail>,
    /// A polled context has none: it asks its mailbox.
    pub(super) doorbell: Option<Doorbell>,
    owner_thread: AtomicUsize,
    /// The same thread, also told from one that was started after its end.
    owner_serial: AtomicU64,
    /// The thread inside a dispatch; 0 when there is none.
    dispatcher: AtomicUsize,
    /// Nested dispatches; written by the dispatcher only.
    depth: AtomicU32,
    pub(super) inner: Mutex<Inner>,
    pub(super) quit: AtomicBool,
    pub(super) busy: BusyPoll,
    freed: AtomicBool,
}

impl ContextCore {
    pub(super) fn new(kind: Kind) -> Result<Arc<Self>> {
        let doorbell = match kind {
            Kind::Polled => None,
            _ => Some(Doorbell::new()?),
        };
        let context = registry::insert(|id, this| ContextCore {
            this: this.clone(),
            id,
            kind,
            mailbox: Mailbox::new(),
            doorbell,
            owner_thread: AtomicUsize::new(thread_id()),
            owner_serial: AtomicU64::new(thread_serial()),
            dispatcher: AtomicUsize::new(0),
            depth: AtomicU32::new(0),
            inner: Mutex::new(Inner::default()),
            quit: AtomicBool::new(false),
            busy: BusyPoll::new(),
            freed: AtomicBool::new(false),
        })?;
        if let Some(doorbell) = &context.doorbell {
            let fd = doorbell.as_fd().as_raw_fd();
            if let Err(error) = context.watch(fd, libc::POLLIN as u32, Target::Doorbell) {
                registry::remove(context.id);
                return Err(error);
            }
        }
        Ok(context)
    }

    pub(super) fn arc(&self) -> Option<Arc<ContextCore>> {
        self.this.upgrade()
    }

    // ---- ownership --------------------------------------------------------------------------------------

    /// The calling thread is the owner.
    pub(crate) fn is_owned_here(&self) -> bool {
        // Relaxed: a thread that stored its own number sees it; any other value is not this thread's.
        self.owner_serial.load(Ordering::Relaxed) == thread_serial()
    }

    /// As [`is_owned_here`](Self::is_owned_here), for the data path: a thread may be taken for one that has ended,
    /// which nobody else is.
    fn may_be_owned_by(&self, thread: usize) -> bool {
        self.owner_thread.load(Ordering::Relaxed) == thread
    }

    /// The calling thread is inside a dispatch of this context.
    pub(crate) fn is_dispatching_here(&self) -> bool {
        self.dispatcher.load(Ordering::Relaxed) == thread_id()
    }

    fn change_owner(&self, thread: usize) {
        self.owner_serial.store(thread_serial(), Ordering::Relaxed);
        if self.owner_thread.swap(thread, Ordering::Relaxed) != thread {
            for held in &self.inner.lock().held {
                held.queue.set_owner_thread(thread);
            }
        }
    }

    /// The calling thread becomes the owner.
    pub(super) fn adopt(&self) -> Result<()> {
        // As a dispatch of no length: it excludes one that is going on elsewhere.
        self.enter_briefly().map(drop)
    }

    /// As [`enter`](Self::enter), for a call that is no dispatch: what waits for one is left to it.
    pub(crate) fn enter_briefly(&self) -> Result<Dispatch<'_>> {
        let mut dispatch = self.enter()?;
        dispatch.reads_mail = false;
        Ok(dispatch)
    }

    /// Keeps other threads from dispatching while the owner uses outside of a dispatch what only the owner may
    /// use. `None` if the calling thread is not the owner (any more).
    pub(crate) fn hold(&self) -> Option<Hold<'_>> {
        if self.is_dispatching_here() {
            return Some(Hold(None));
        }
        let me = thread_id();
        if !self.may_be_owned_by(me) {
            return None;
        }
        // Acquire: as in `enter`.
        self.dispatcher
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        let hold = Hold(Some(&self.dispatcher));
        // Another thread may have dispatched in between.
        self.may_be_owned_by(me).then_some(hold)
    }

    /// Begins a dispatch; dispatches nest on one thread. `EBUSY` while another thread is in one.
    pub(crate) fn enter(&self) -> Result<Dispatch<'_>> {
        let me = thread_id();
        // Acquire pairs with the Release in `leave`: what the previous dispatcher did is visible.
        match self
            .dispatcher
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => {
                self.change_owner(me);
                if self.doorbell.is_some() {
                    self.mailbox.wake_up();
                }
            }
            Err(dispatcher) if dispatcher == me => {
                if self.doorbell.is_some() {
                    self.mailbox.wake_up();
                }
            }
            Err(_) => {
                return Err(Error::new(
                    libc::EBUSY,
                    "another thread is dispatching the context",
                ));
            }
        }
        self.depth
            .store(self.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Ok(Dispatch {
            context: self,
            reads_mail: true,
        })
    }

    fn leave(&self, reads_mail: bool) {
        let depth = self.depth.load(Ordering::Relaxed) - 1;
        if depth == 0 && reads_mail {
            self.settle();
        } else {
            self.lie_down();
        }
        self.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            self.dispatcher.store(0, Ordering::Release);
        }
    }

    /// Before the loop gets the thread back: everything staged is published, and no mail waits behind a
    /// silent doorbell.
    fn settle(&self) {
        const ROUNDS: u32 = 16;
        for _ in 0..ROUNDS {
            self.flush();
            if self.doorbell.is_none() {
                return;
            }
            if !self.mailbox.sleep() {
                if self.is_restless() {
                    self.ring();
                }
                return;
            }
            self.mailbox.wake_up();
            if let Some(this) = self.arc() {
                this.read_mail(Scope::All);
            }
        }
        self.flush();
        let _ = self.mailbox.sleep();
        self.ring();
    }

    /// As [`settle`](Self::settle) where no callback may run: at the end of a nested dispatch, which returns to a
    /// callback that may go on in a loop of its own, and of a call that is no dispatch. What waits rings.
    fn lie_down(&self) {
        self.flush();
        if self.doorbell.is_some() && (self.mailbox.sleep() || self.is_restless()) {
            self.ring();
        }
    }

    /// Something wants another dispatch soon: a queue that asked for it, or one whose notifications are off.
    fn is_restless(&self) -> bool {
        let inner = self.inner.lock();
        !inner.again.is_empty() || !inner.unarmed.is_empty()
    }

    /// Runs a callback: asleep meanwhile, so that senders ring the doorbell, which a nested loop hears.
    pub(super) fn call_out<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.doorbell.is_some() && self.mailbox.sleep() {
            self.ring();
        }
        let result = f();
        if self.doorbell.is_some() {
            self.mailbox.wake_up();
        }
        result
    }

    // ---- mail -------------------------------------------------------------------------------------------

    /// Any thread.
    pub(crate) fn post(&self, mail: Mail) {
        if self.mailbox.push(mail) {
            self.ring();
        }
    }

    /// Any thread.
    pub(crate) fn ring(&self) {
        if let Some(doorbell) = &self.doorbell {
            doorbell.ring();
        }
    }

    /// The owner, inside or outside of a dispatch: `queue` has staged completions.
    pub(crate) fn will_flush(&self, queue: Arc<Queue>) {
        self.inner.lock().unflushed.push(queue);
        // Inside of a dispatch, and not merely holding the context.
        if !(self.is_dispatching_here() && self.depth.load(Ordering::Relaxed) > 0) {
            self.ring();
        }
    }

    /// Publishes what is staged in this context.
    pub(crate) fn flush(&self) {
        let queues = std::mem::take(&mut self.inner.lock().unflushed);
        for queue in queues {
            // A queue that has left the context meanwhile was flushed then.
            let _ = queue.flush();
        }
    }

    /// For a doorbell that a loop polls by itself.
    pub(super) fn has_pending_work(&self) -> bool {
        let inner = self.inner.lock();
        !inner.again.is_empty() || !inner.unflushed.is_empty() || !self.mailbox.is_empty()
    }

    // ---- watches ----------------------------------------------------------------------------------------

    /// A free slot, for a new watch.
    fn slot(&self) -> Arc<WatchSlot> {
        let mut inner = self.inner.lock();
        if let Some(slot) = inner.slots.iter().find(|slot| slot.is_free()) {
            return slot.clone();
        }
        let slot = WatchSlot::new(self.this.clone());
        inner.slots.push(slot.clone());
        slot
    }

    pub(super) fn watch(&self, fd: RawFd, events: u32, target: Target) -> Result<Arc<WatchSlot>> {
        let slot = self.slot();
        *slot.target.lock() = target;
        match self.kind.set_watch(fd, events, Watch(slot.clone())) {
            Ok(()) => Ok(slot),
            Err(error) => {
                *slot.target.lock() = Target::Nothing;
                Err(error)
            }
        }
    }

    pub(super) fn unwatch(&self, fd: RawFd, slot: &WatchSlot) {
        self.kind.remove_watch(fd);
        // Taken out first: what it holds may close descriptors.
        let target = std::mem::take(&mut *slot.target.lock());
        drop(target);
    }

    /// The slot of a watch of the program's own.
    pub(super) fn user_slot(&self, fd: RawFd) -> Option<Arc<WatchSlot>> {
        let inner = self.inner.lock();
        inner
            .slots
            .iter()
            .find(|slot| matches!(&*slot.target.lock(), Target::User(watched, _) if *watched == fd))
            .cloned()
    }

    // ---- the end ----------------------------------------------------------------------------------------

    /// Frees the context: `EBUSY` while anything is attached to it or it is being dispatched.
    pub(crate) fn free(&self) -> Result<()> {
        if self.dispatcher.load(Ordering::Acquire) != 0 {
            return Err(Error::new(libc::EBUSY, "the context is being dispatched"));
        }
        {
            let _dispatch = self.enter_briefly()?;
            self.let_orphans_go();
        }
        if !registry::remove(self.id) {
            return Err(Error::new(
                libc::EBUSY,
                "a server is attached to the context",
            ));
        }
        self.freed.store(true, Ordering::Release);
        let slots = std::mem::take(&mut self.inner.lock().slots);
        for slot in slots {
            let fd = match slot.target() {
                Target::Doorbell => self.doorbell.as_ref().map(|d| d.as_fd().as_raw_fd()),
                Target::User(fd, _) => Some(fd),
                _ => None,
            };
            if let Some(fd) = fd {
                self.unwatch(fd, &slot);
            }
        }
        if let Kind::Foreign(event_loop) = &self.kind {
            event_loop.destroy();
        }
        Ok(())
    }

    pub(crate) fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for ContextCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "context {}", self.id.get())
    }
}

/// The calling thread is inside a dispatch until this is dropped.
pub(crate) struct Dispatch<'a> {
    context: &'a ContextCore,
    reads_mail: bool,
}

impl Drop for Dispatch<'_> {
    fn drop(&mut self) {
        self.context.leave(self.reads_mail);
    }
}

/// No other thread can dispatch the context until this is dropped.
pub(crate) struct Hold<'a>(Option<&'a AtomicUsize>);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Some(dispatcher) = self.0 {
            // Release: as in `leave`.
            dispatcher.store(0, Ordering::Release);
        }
    }
}

//! The server: starting, stopping, and moving it between event loops.

mod builder;
mod front_end;
mod stop;
mod thread;

use std::thread::JoinHandle;

use crate::callback;
use crate::context::hand_over::{claim_stream, set_queue_target, set_stream_target};
use crate::context::owner::{CtxId, Ownership, State};
use crate::context::{Context, registry};
use crate::error::{Error, Result};
use crate::listener::{Address, Listener};
use crate::shared::Shared;
use crate::stats::ServerStats;
use crate::sync::{Arc, Mutex};
use crate::virtqueue::{Queue, VqStats};

pub use builder::ServerBuilder;
pub use front_end::ShmemMapping;

/// A virtio device that front-ends can connect to.
///
/// All methods may be called from any thread unless they say otherwise. Dropping a running server stops it; where
/// that cannot wait (see [`stop`](Self::stop)), it asks for the stop, and the server is freed when that is done.
pub struct Server {
    shared: Arc<Shared>,
    /// The internal thread of the newest run, and the run's number.
    thread: Mutex<Option<(u64, JoinHandle<()>)>>,
}

impl Server {
    /// Begins to describe a server.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    fn from_shared(shared: Arc<Shared>) -> Self {
        Server {
            shared,
            thread: Mutex::new(None),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Starts serving at `address`, with every queue and the device's events in `context`, or detached.
    ///
    /// # Errors
    /// `EBUSY` unless new or stopped; `EADDRINUSE` and whatever else keeps the socket from being opened,
    /// with the address in the message; `ENOTRECOVERABLE`; `EDEADLK` inside a callback of this server.
    pub fn start(&self, address: Address, context: Option<&Context>) -> Result<()> {
        self.shared.check_poison()?;
        self.check_not_in_callback("start")?;
        self.shared.lifecycle.check_idle()?;
        let listener = Listener::open(address).map_err(|e| Error::new(e.errno(), e.to_string()))?;
        // A stop that comes before the thread is there waits here for its handle.
        let mut thread = self.thread.lock();
        let run = self.shared.lifecycle.begin()?;
        join_thread(thread.take());
        self.shared.stream.clear();
        self.set_all_targets(context.map_or(CtxId::NONE, |c| c.core().id));
        match thread::spawn(self.shared.clone(), listener) {
            Ok(handle) => {
                *thread = Some((run, handle));
                Ok(())
            }
            Err(error) => {
                self.set_all_targets(CtxId::NONE);
                self.shared.lifecycle.end();
                Err(error)
            }
        }
    }

    fn check_not_in_callback(&self, what: &str) -> Result<()> {
        if callback::is_running_for(self.shared.id()) {
            return Err(Error::new(
                libc::EDEADLK,
                format!("{what} inside a callback of the same server"),
            ));
        }
        Ok(())
    }

    // ---- contexts ---------------------------------------------------------------------------------------

    /// Offers everything to `context`, and cancels a detach that is under way.
    ///
    /// # Errors
    /// `EBUSY` while attached; `ESHUTDOWN` unless running; `ENOTRECOVERABLE`.
    pub fn attach(&self, context: &Context) -> Result<()> {
        self.shared.check_poison()?;
        let id = context.core().id;
        self.shared.lifecycle.while_running(|| {
            // Of two that attach at the same time one is first, here.
            if !claim_stream(&self.shared, id) {
                return Err(Error::new(libc::EBUSY, "attached already"));
            }
            self.set_queue_targets(id);
            Ok(())
        })?;
        self.shared.internal.ring();
        Ok(())
    }

    /// Moves one queue to `context`, or detaches it. The last target wins; takes effect at the next
    /// dispatch of the context that holds the queue, after its own `kick` if that is running.
    ///
    /// # Errors
    /// `EINVAL` for a queue that there is not; `ESHUTDOWN` unless running; `ENOTRECOVERABLE`.
    pub fn attach_queue(&self, index: u32, context: Option<&Context>) -> Result<()> {
        self.shared.check_poison()?;
        let target = context.map_or(CtxId::NONE, |c| c.core().id);
        self.shared.lifecycle.while_running(|| {
            let queue = self.queue(index)?;
            set_queue_target(&queue, target);
            Ok(())
        })?;
        self.shared.internal.ring();
        Ok(())
    }

    /// Takes everything out of its contexts. After it, no callback runs and no watch of this server exists.
    /// Requests in flight stay valid and may be completed from anywhere.
    ///
    /// # Errors
    /// `EBUSY`, with nothing changed, unless the calling thread owns every context that holds something;
    /// `EDEADLK` inside a callback of this server; `ESHUTDOWN` unless running.
    pub fn detach(&self) -> Result<()> {
        self.check_not_in_callback("detach")?;
        let queues = self.shared.queues();
        let (home, before) = self.shared.lifecycle.while_running(|| {
            let targets: Vec<CtxId> = queues
                .iter()
                .map(|queue| queue.owner.load().target)
                .collect();
            let home = self.shared.stream.owner.load().target;
            self.check_holders(&queues)?;
            self.set_all_targets(CtxId::NONE);
            Ok((home, targets))
        })?;
        // A context may have taken an offer since the check, or another thread a context.
        if let Err(error) = self
            .check_holders(&queues)
            .and_then(|()| self.give_up_here(&queues))
        {
            // A stop that has begun meanwhile needs nothing back.
            let _ = self.shared.lifecycle.while_running(|| {
                for (queue, target) in queues.iter().zip(before) {
                    set_queue_target(queue, target);
                }
                set_stream_target(&self.shared, home);
                Ok(())
            });
            self.shared.internal.ring();
            return Err(error);
        }
        self.shared.handed_back();
        Ok(())
    }

    /// Everything that is held is held by a context of the calling thread's.
    fn check_holders(&self, queues: &[Arc<Queue>]) -> Result<()> {
        let words = queues
            .iter()
            .map(|queue| &queue.owner)
            .chain([&self.shared.stream.owner]);
        for ownership in words.map(|word| word.load()) {
            if is_held(ownership)
                && registry::get(ownership.context).is_some_and(|c| !c.is_owned_here())
            {
                return Err(Error::new(
                    libc::EBUSY,
                    "a context of the server belongs to another thread",
                ));
            }
        }
        Ok(())
    }

    fn give_up_here(&self, queues: &[Arc<Queue>]) -> Result<()> {
        for queue in queues {
            let ownership = queue.owner.load();
            if is_held(ownership)
                && let Some(context) = registry::get(ownership.context)
            {
                let _dispatch = context.enter_briefly()?;
                context.give_up(queue);
            }
        }
        let ownership = self.shared.stream.owner.load();
        if is_held(ownership)
            && let Some(context) = registry::get(ownership.context)
        {
            let _dispatch = context.enter_briefly()?;
            context.hand_back_stream(&self.shared);
        }
        Ok(())
    }

    /// As [`detach`](Self::detach), without waiting: each context gives up its queues at its next dispatch.
    /// [`is_quiesced`](Self::is_quiesced) and the builder's `wake` tell when that is done.
    ///
    /// # Errors
    /// `ESHUTDOWN` unless running.
    pub fn request_detach(&self) -> Result<()> {
        self.shared.lifecycle.while_running(|| {
            self.set_all_targets(CtxId::NONE);
            Ok(())
        })?;
        self.shared.handed_back();
        Ok(())
    }

    fn set_all_targets(&self, target: CtxId) {
        // The stream first: a queue is only offered after the events before its start.
        set_stream_target(&self.shared, target);
        self.set_queue_targets(target);
    }

    fn set_queue_targets(&self, target: CtxId) {
        for queue in self.shared.queues() {
            set_queue_target(&queue, target);
        }
    }

    /// No context holds anything of this server or is offered anything.
    pub fn is_quiesced(&self) -> bool {
        self.shared.is_quiesced()
    }

    /// A request or an explicit count is in flight. Exact once the server is quiesced.
    pub fn has_inflight(&self) -> bool {
        self.shared.has_inflight()
    }

    /// Keeps the server's memory for work that the library cannot see.
    ///
    /// # Errors
    /// `ESHUTDOWN` when the connection has been drained.
    pub fn inflight_inc(&self) -> Result<()> {
        self.shared
            .gate
            .inc()
            .map_err(|_| Error::new(libc::ESHUTDOWN, "the connection has been drained"))
    }

    /// Ends what [`inflight_inc`](Self::inflight_inc) began.
    ///
    /// # Errors
    /// `EINVAL` without one.
    pub fn inflight_dec(&self) -> Result<()> {
        self.shared.inflight_dec()
    }

    // ---- data -------------------------------------------------------------------------------------------

    pub(crate) fn queue(&self, index: u32) -> Result<Arc<Queue>> {
        self.shared.queue(index).ok_or_else(|| {
            Error::invalid(format!(
                "queue {index}: the device has {}",
                self.shared.config.num_queues
            ))
        })
    }

    /// Changes the configuration space and tells the driver.
    ///
    /// # Errors
    /// `EINVAL` for a range outside of it.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.shared.change_config(offset, bytes)
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// `EINVAL` for a range outside of it.
    pub fn config(&self, offset: u32, buffer: &mut [u8]) -> Result<()> {
        let space = self.shared.config_space.lock();
        buffer.copy_from_slice(space.get(offset, buffer.len())?);
        Ok(())
    }

    /// The features that the driver acknowledged; 0 without a connection.
    pub fn features(&self) -> u64 {
        self.shared.acked_features()
    }

    /// The guest's memory, as it is mapped now; empty without a connection.
    #[cfg(feature = "rust-vmm")]
    pub fn guest_memory(&self) -> crate::rust_vmm::MappedMemory {
        crate::rust_vmm::MappedMemory::new(self.shared.table.current().regions().clone())
    }

    /// Statistics of the server.
    pub fn stats(&self) -> ServerStats {
        self.shared.counters.read()
    }

    /// Statistics of a queue.
    ///
    /// # Errors
    /// `EINVAL` for a queue that there is not.
    pub fn queue_stats(&self, index: u32) -> Result<VqStats> {
        Ok(self.queue(index)?.stats())
    }

    /// New or stopped.
    pub fn is_stopped(&self) -> bool {
        self.shared.lifecycle.is_idle()
    }

    // ---- the end ----------------------------------------------------------------------------------------

    /// Waits for the internal thread of a run that is over; that of a later one is none of the caller's business.
    fn join(&self, run: u64) {
        let mut thread = self.thread.lock();
        join_thread(thread.take_if(|(newest, _)| *newest <= run));
    }

    /// Frees the server. Legal inside [`Device::stopped`](crate::Device::stopped); while another thread is in
    /// there, it waits for that to return.
    ///
    /// # Errors
    /// With the server: `EDEADLK` inside any other callback of it; `EBUSY` unless new or stopped.
    pub fn free(self) -> std::result::Result<(), (Error, Self)> {
        match self.shared.check_free() {
            Ok(()) => Ok(()),
            Err(error) => Err((error, self)),
        }
    }
}

fn join_thread(thread: Option<(u64, JoinHandle<()>)>) {
    if let Some((_, thread)) = thread {
        // The internal thread catches what its handlers throw; there is nothing in its result.
        let _ = thread.join();
    }
}

fn is_held(ownership: Ownership) -> bool {
    matches!(ownership.state, State::Owned | State::Recalled)
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.is_stopped() && self.stop().is_err() {
            // Inside a callback, or where a stop cannot wait: the internal thread finishes on its own.
            self.shared.abandon();
            let _ = self.request_stop();
            if !self.is_stopped() {
                return;
            }
            // Just now, and the internal thread may have been too early to see that it is left alone with it.
        }
        self.join(u64::MAX);
        self.set_all_targets(CtxId::NONE);
        self.shared.destroy();
    }
}

/// Name and state, and who has what: for a log line, or a report about a server that does not get on.
impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Server({}, {:?}, events {}",
            self.shared.config.name,
            self.shared.lifecycle.state(),
            self.shared.stream.owner.load()
        )?;
        for queue in self.shared.queues() {
            write!(f, ", queue {} {}", queue.index, queue.owner.load())?;
        }
        f.write_str(")")
    }
}

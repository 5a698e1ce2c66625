//! What a loop watches: slots that outlive their watches, so that a late call does no harm.

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Weak;

use crate::sync::{Arc, Mutex};
use crate::virtqueue::Queue;
use crate::virtqueue::kick::KickSource;

use super::ContextCore;

/// A program's own callback behind a descriptor.
pub(crate) type UserWatch = Arc<dyn Fn(u32) + Send + Sync>;

#[derive(Clone, Default)]
pub(crate) enum Target {
    /// Removed; a late call finds this.
    #[default]
    Nothing,
    Doorbell,
    /// Keeps the descriptor open until the watch is gone.
    Kick(Arc<Queue>, Arc<KickSource>),
    User(RawFd, UserWatch),
}

/// Aligned as a queue is: it is locked for each readiness.
#[repr(align(128))]
pub(crate) struct WatchSlot {
    pub(super) context: Weak<ContextCore>,
    pub(super) target: Mutex<Target>,
}

impl WatchSlot {
    pub(super) fn new(context: Weak<ContextCore>) -> Arc<Self> {
        Arc::new(WatchSlot {
            context,
            target: Mutex::new(Target::Nothing),
        })
    }

    pub(super) fn target(&self) -> Target {
        self.target.lock().clone()
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(*self.target.lock(), Target::Nothing)
    }

    /// The loop says that the descriptor is ready. On another thread than the one that is dispatching the
    /// context, nothing happens; level-triggered readiness comes again.
    pub(crate) fn ready(self: &Arc<Self>, revents: u32) {
        if let Some(context) = self.context.upgrade() {
            context.dispatch_slot(self, revents);
        }
    }

    /// Is there work behind this watch? Does not block.
    pub(crate) fn has_work(&self) -> bool {
        let Some(context) = self.context.upgrade() else {
            return false;
        };
        let Some(_held) = context.hold() else {
            return false;
        };
        match self.target() {
            Target::Nothing => false,
            Target::Doorbell => context.has_pending_work(),
            Target::Kick(queue, kick) => queue.peek() || kick.is_ready(),
            Target::User(..) => false,
        }
    }
}

/// What a loop is given along with a descriptor to watch.
///
/// It stays valid when the watch is removed; a call that comes late does nothing.
#[derive(Clone)]
pub struct Watch(pub(crate) Arc<WatchSlot>);

impl Watch {
    /// To be called on the loop's thread when the descriptor is ready; `revents` as from `poll(2)`. Spurious
    /// calls are harmless.
    pub fn ready(&self, revents: u32) {
        self.0.ready(revents);
    }

    /// For loops that poll by themselves: is there work behind this watch? Does not block. On the loop's
    /// thread.
    pub fn has_work(&self) -> bool {
        self.0.has_work()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

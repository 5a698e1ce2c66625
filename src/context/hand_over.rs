//! Changing who an owner word names, and telling the context that must act on it.

use crate::shared::Shared;
use crate::sync::Arc;
use crate::virtqueue::Queue;

use super::core::Mail;
use super::owner::{CtxId, State, Transition};
use super::registry;

/// Tells the context that must act.
pub(crate) fn tell(transition: &Transition, mail: impl FnOnce() -> Mail) {
    if matches!(transition.after.state, State::Recalled | State::Offered)
        && let Some(context) = registry::get(transition.after.context)
    {
        context.post(mail());
    }
}

/// Any thread: where the queue shall live.
pub(crate) fn set_queue_target(queue: &Arc<Queue>, target: CtxId) {
    if let Some(transition) = registry::change(|| queue.owner.set_target(target)) {
        tell(&transition, || Mail::Queue(queue.clone()));
    }
}

/// Any thread: where the events shall be delivered.
pub(crate) fn set_stream_target(shared: &Arc<Shared>, target: CtxId) {
    if let Some(transition) = registry::change(|| shared.stream.owner.set_target(target)) {
        tell(&transition, || Mail::Stream(shared.clone()));
    }
}

/// Any thread: where the events of a detached server shall be delivered. False if it is attached.
pub(crate) fn claim_stream(shared: &Arc<Shared>, target: CtxId) -> bool {
    match registry::change(|| shared.stream.owner.claim(target)) {
        Some(transition) => {
            tell(&transition, || Mail::Stream(shared.clone()));
            true
        }
        None => false,
    }
}

/// Offers the pending events to the home context.
pub(crate) fn offer_stream(shared: &Arc<Shared>) {
    if shared.stream.is_empty() {
        return;
    }
    match registry::change(|| shared.stream.owner.offer()) {
        Some(transition) => tell(&transition, || Mail::Stream(shared.clone())),
        None => {
            // It may be there already, and about to be handed back: a letter makes it look once more.
            let ownership = shared.stream.owner.load();
            if ownership.state != State::Internal
                && let Some(context) = registry::get(ownership.context)
            {
                context.post(Mail::Stream(shared.clone()));
            }
        }
    }
}

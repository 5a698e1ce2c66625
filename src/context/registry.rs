//! The contexts that exist in this process.
//!
//! An owner word names a context by a small number, and a thread that stops a server must find every context
//! that it owns, also those of other servers. This is the one piece of process-wide state of the library; it
//! is used when ownership changes, never per request.

use std::sync::Weak;

use crate::error::{Error, Result};
use crate::sync::{Arc, Mutex};

use super::ContextCore;
use super::owner::{CtxId, Transition};

struct Entry {
    context: Weak<ContextCore>,
    /// Owner words that name the context. Two threads may account for two changes of a word in the other order,
    /// so it can be negative for a moment.
    attached: isize,
}

static CONTEXTS: Mutex<Vec<Option<Entry>>> = Mutex::new(Vec::new());

/// Makes a context with the first free number.
pub(super) fn insert(
    make: impl FnOnce(CtxId, &Weak<ContextCore>) -> ContextCore,
) -> Result<Arc<ContextCore>> {
    let mut contexts = CONTEXTS.lock();
    let index = match contexts.iter().position(Option::is_none) {
        Some(index) => index,
        None if contexts.len() < CtxId::MAX as usize => {
            contexts.push(None);
            contexts.len() - 1
        }
        None => return Err(Error::new(libc::EMFILE, "too many contexts")),
    };
    let context = Arc::new_cyclic(|weak| make(CtxId::new(index as u32 + 1), weak));
    contexts[index] = Some(Entry {
        context: Arc::downgrade(&context),
        attached: 0,
    });
    Ok(context)
}

fn index(id: CtxId) -> usize {
    id.get() as usize - 1
}

/// The context leaves, unless an owner word still names it.
pub(super) fn remove(id: CtxId) -> bool {
    let mut contexts = CONTEXTS.lock();
    match contexts.get_mut(index(id)) {
        Some(Some(entry)) if entry.attached != 0 => false,
        Some(entry) => {
            *entry = None;
            true
        }
        None => true,
    }
}

pub(crate) fn get(id: CtxId) -> Option<Arc<ContextCore>> {
    if id.is_none() {
        return None;
    }
    let contexts = CONTEXTS.lock();
    contexts.get(index(id))?.as_ref()?.context.upgrade()
}

/// Keeps the books after an owner word changed.
pub(crate) fn account(transition: &Transition) {
    let named = |ownership: super::owner::Ownership| {
        let second = (ownership.target != ownership.context).then_some(ownership.target);
        [Some(ownership.context), second]
            .into_iter()
            .flatten()
            .filter(|id| !id.is_none())
    };
    let mut contexts = CONTEXTS.lock();
    for id in named(transition.after) {
        if let Some(Some(entry)) = contexts.get_mut(index(id)) {
            entry.attached += 1;
        }
    }
    for id in named(transition.before) {
        if let Some(Some(entry)) = contexts.get_mut(index(id)) {
            entry.attached -= 1;
        }
    }
}

/// The contexts whose owner is `thread`.
pub(crate) fn owned_by(thread: usize) -> Vec<Arc<ContextCore>> {
    // Two statements: a context whose last reference this is must not be dropped under the lock.
    let mut contexts: Vec<_> = {
        let contexts = CONTEXTS.lock();
        contexts
            .iter()
            .flatten()
            .filter_map(|entry| entry.context.upgrade())
            .collect()
    };
    contexts.retain(|context| context.is_owned_by(thread));
    contexts
}

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
    /// Owner words that name the context.
    attached: usize,
}

static CONTEXTS: Mutex<Vec<Option<Entry>>> = Mutex::new(Vec::new());

/// Makes a context with the first free number.
pub(super) fn insert(
    make: impl FnOnce(CtxId, &Weak<ContextCore>) -> ContextCore,
) -> Result<Arc<ContextCore>> {
    let mut contexts = CONTEXTS.lock();
    // A context that was dropped while words named it left its place when the last of them did not any more.
    let is_free = |entry: &Option<Entry>| {
        entry
            .as_ref()
            .is_none_or(|entry| entry.attached == 0 && entry.context.strong_count() == 0)
    };
    let index = match contexts.iter().position(is_free) {
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

/// Changes an owner word and keeps the books in one step: what a word names can never be freed, in whatever order
/// threads change words.
pub(crate) fn change(change: impl FnOnce() -> Option<Transition>) -> Option<Transition> {
    let mut contexts = CONTEXTS.lock();
    let transition = change()?;
    let named = |ownership: super::owner::Ownership| {
        let second = (ownership.target != ownership.context).then_some(ownership.target);
        [Some(ownership.context), second]
            .into_iter()
            .flatten()
            .filter(|id| !id.is_none())
    };
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
    Some(transition)
}

/// The contexts whose owner is the calling thread.
pub(crate) fn owned_here() -> Vec<Arc<ContextCore>> {
    // Two statements: a context whose last reference this is must not be dropped under the lock.
    let mut contexts: Vec<_> = {
        let contexts = CONTEXTS.lock();
        contexts
            .iter()
            .flatten()
            .filter_map(|entry| entry.context.upgrade())
            .collect()
    };
    contexts.retain(|context| context.is_owned_here());
    contexts
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::context::Context;
    use crate::context::owner::OwnerWord;

    #[test]
    fn a_context_that_a_word_names_cannot_leave_whatever_happens_to_another_word() {
        let context = Context::polled().unwrap();
        let id = context.core().id;
        let (fixed, moving) = (OwnerWord::new(), OwnerWord::new());
        change(|| fixed.set_target(id));
        thread::scope(|scope| {
            let movers = [id, CtxId::NONE, id, CtxId::NONE].map(|target| {
                let moving = &moving;
                scope.spawn(move || {
                    for _ in 0..300_000 {
                        change(|| moving.set_target(target));
                    }
                })
            });
            while !movers.iter().all(|mover| mover.is_finished()) {
                assert!(!remove(id), "an owner word names it");
            }
        });
        change(|| fixed.set_target(CtxId::NONE));
        change(|| moving.set_target(CtxId::NONE));
        context.free().map_err(|(error, _)| error).unwrap();
    }

    #[test]
    fn a_context_that_was_dropped_in_use_gives_its_number_back() {
        let word = OwnerWord::new();
        let context = Context::polled().unwrap();
        let id = context.core().id;
        change(|| word.set_target(id));
        drop(context);
        assert!(get(id).is_none() && !remove(id));
        change(|| word.set_target(CtxId::NONE));
        // Other tests take numbers, too.
        let mut others = Vec::new();
        while others.iter().all(|other: &Context| other.core().id != id) {
            assert!(others.len() < 10_000, "{id:?} never came back");
            others.push(Context::polled().unwrap());
        }
    }
}

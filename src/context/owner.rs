//! The owner word: who may touch a queue (or a server's event stream) right now.
//!
//! One 64-bit word holds `(state, context, target, generation)` and changes by compare-and-swap only.
//! Ownership moves, it is never shared:
//!
//! ```text
//!            offer (internal thread)        take (context)
//! INTERNAL ───────────────────────▶ OFFERED ─────────────▶ OWNED
//!    ▲  ▲        take back / new target │                    │ recall (internal thread),
//!    │  └───────────────────────────────┘                    ▼ new target (any thread)
//!    └────────────────────────────────────────────────── RECALLED
//!                      give back (context)
//! ```
//!
//! * `context` is who holds it or is offered it; 0 while INTERNAL.
//! * `target` is where it shall live: 0 means detached. Anybody may change the target; only the internal
//!   thread offers, and only to the target it read in the same compare-and-swap.
//! * `generation` changes with every change of hands, so that a stale hint is recognised.
//!
//! Every successful exchange is AcqRel: whoever gains the queue sees all that the one who gave it up wrote.

use std::fmt;

use crate::sync::{AtomicU64, Ordering};

/// Identifies a context inside the process; [`CtxId::NONE`] means "nobody" or "detached".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CtxId(u32);

impl CtxId {
    pub(crate) const NONE: CtxId = CtxId(0);
    /// The number of contexts that can exist at one time.
    pub(crate) const MAX: u32 = (1 << CTX_BITS) - 1;

    /// `id` is in `1..=MAX`.
    pub(crate) fn new(id: u32) -> Self {
        debug_assert!(id > 0 && id <= Self::MAX);
        CtxId(id)
    }

    pub(crate) fn get(self) -> u32 {
        self.0
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The internal thread's (or nobody's while the server is not running).
    Internal = 0,
    /// Waiting for its context to take it.
    Offered = 1,
    /// The context's.
    Owned = 2,
    /// The context's, which is asked to give it back.
    Recalled = 3,
}

const CTX_BITS: u32 = 20;
const GENERATION_BITS: u32 = 64 - 2 - 2 * CTX_BITS;
const CTX_SHIFT: u32 = 2;
const TARGET_SHIFT: u32 = CTX_SHIFT + CTX_BITS;
const GENERATION_SHIFT: u32 = TARGET_SHIFT + CTX_BITS;
const CTX_MASK: u64 = (1 << CTX_BITS) - 1;

/// A reading of the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) state: State,
    pub(crate) context: CtxId,
    pub(crate) target: CtxId,
    pub(crate) generation: u32,
}

impl Ownership {
    fn decode(word: u64) -> Self {
        Ownership {
            state: match word & 3 {
                0 => State::Internal,
                1 => State::Offered,
                2 => State::Owned,
                _ => State::Recalled,
            },
            context: CtxId((word >> CTX_SHIFT & CTX_MASK) as u32),
            target: CtxId((word >> TARGET_SHIFT & CTX_MASK) as u32),
            generation: (word >> GENERATION_SHIFT) as u32,
        }
    }

    fn encode(self) -> u64 {
        self.state as u64
            | u64::from(self.context.0) << CTX_SHIFT
            | u64::from(self.target.0) << TARGET_SHIFT
            | u64::from(self.generation) << GENERATION_SHIFT
    }

    fn next_generation(self) -> u32 {
        (self.generation + 1) & ((1 << GENERATION_BITS) - 1)
    }

    fn internal(self) -> Self {
        Ownership {
            state: State::Internal,
            context: CtxId::NONE,
            target: self.target,
            generation: self.next_generation(),
        }
    }

    /// Held by `context`, asked back or not.
    pub(crate) fn held_by(self, context: CtxId) -> bool {
        self.context == context && matches!(self.state, State::Owned | State::Recalled)
    }
}

/// For people: contexts by their numbers, 0 for none.
impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (context, target) = (self.context.get(), self.target.get());
        write!(f, "{:?} context {context} target {target}", self.state)
    }
}

/// A change that was made: the word before and after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transition {
    pub(crate) before: Ownership,
    pub(crate) after: Ownership,
}

#[derive(Debug)]
pub(crate) struct OwnerWord(AtomicU64);

impl OwnerWord {
    /// INTERNAL and detached.
    pub(crate) fn new() -> Self {
        OwnerWord(AtomicU64::new(0))
    }

    /// Acquire: pairs with the AcqRel exchange that handed the queue over.
    pub(crate) fn load(&self) -> Ownership {
        Ownership::decode(self.0.load(Ordering::Acquire))
    }

    /// For the owner itself, which only asks whether somebody wants the queue back: one plain load.
    #[inline(always)]
    pub(crate) fn is_recalled_relaxed(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 3 != State::Owned as u64
    }

    fn update(&self, change: impl Fn(Ownership) -> Option<Ownership>) -> Option<Transition> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let before = Ownership::decode(word);
            let after = change(before)?;
            // AcqRel pairs with every other exchange of this word: see the module's comment.
            match self.0.compare_exchange_weak(
                word,
                after.encode(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(Transition { before, after }),
                Err(seen) => word = seen,
            }
        }
    }

    /// Any thread: as [`set_target`](Self::set_target), if it is detached. `None` if it is not.
    pub(crate) fn claim(&self, target: CtxId) -> Option<Transition> {
        self.update(|now| now.target.is_none().then_some(Ownership { target, ..now }))
    }

    /// Any thread: says where the queue shall live. An owner elsewhere is asked to give it back, an offer
    /// elsewhere is void at once. `None` when nothing changes.
    pub(crate) fn set_target(&self, target: CtxId) -> Option<Transition> {
        self.update(|now| {
            let mut next = Ownership { target, ..now };
            match now.state {
                State::Offered if now.context != target => next = next.internal(),
                State::Owned if now.context != target => next.state = State::Recalled,
                _ => {}
            }
            (next != now).then_some(next)
        })
    }

    /// Internal thread: offers an INTERNAL queue to its target. `None` if it is detached or not INTERNAL.
    pub(crate) fn offer(&self) -> Option<Transition> {
        self.update(|now| {
            (now.state == State::Internal && !now.target.is_none()).then(|| Ownership {
                state: State::Offered,
                context: now.target,
                target: now.target,
                generation: now.next_generation(),
            })
        })
    }

    /// The context: accepts what is offered to it.
    pub(crate) fn take(&self, context: CtxId) -> Option<Transition> {
        self.update(|now| {
            (now.state == State::Offered && now.context == context).then_some(Ownership {
                state: State::Owned,
                ..now
            })
        })
    }

    /// Internal thread: wants the queue back. An offer is void at once, an owner is asked. `None` when it
    /// is INTERNAL or asked already.
    pub(crate) fn recall(&self) -> Option<Transition> {
        self.update(|now| match now.state {
            State::Internal | State::Recalled => None,
            State::Offered => Some(now.internal()),
            State::Owned => Some(Ownership {
                state: State::Recalled,
                ..now
            }),
        })
    }

    /// The owner: hands the queue back, asked or not. `None` if `context` does not hold it.
    pub(crate) fn give_back(&self, context: CtxId) -> Option<Transition> {
        self.update(|now| now.held_by(context).then(|| now.internal()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ctx(id: u32) -> CtxId {
        CtxId::new(id)
    }

    #[test]
    fn encoding_round_trips_at_the_limits() {
        for state in [
            State::Internal,
            State::Offered,
            State::Owned,
            State::Recalled,
        ] {
            let ownership = Ownership {
                state,
                context: ctx(CtxId::MAX),
                target: ctx(1),
                generation: (1 << GENERATION_BITS) - 1,
            };
            assert_eq!(Ownership::decode(ownership.encode()), ownership);
            assert_eq!(ownership.next_generation(), 0);
        }
    }

    #[test]
    fn a_detached_queue_is_not_offered() {
        let word = OwnerWord::new();
        assert!(word.offer().is_none());
        word.set_target(ctx(3));
        assert_eq!(word.offer().map(|t| t.after.context), Some(ctx(3)));
        assert!(word.offer().is_none(), "offered twice");
    }

    #[test]
    fn a_stale_offer_cannot_be_taken() {
        let word = OwnerWord::new();
        word.set_target(ctx(1));
        word.offer();
        word.set_target(ctx(2));
        assert!(word.take(ctx(1)).is_none());
        assert_eq!(word.load().state, State::Internal);
    }

    #[test]
    fn moving_an_owned_queue_recalls_it_and_gives_it_back_once() {
        let word = OwnerWord::new();
        word.set_target(ctx(1));
        word.offer();
        assert!(word.take(ctx(1)).is_some());
        assert!(word.recall().is_some());
        assert!(word.recall().is_none(), "asked already");
        word.set_target(ctx(2));
        assert_eq!(word.load().state, State::Recalled);
        assert!(word.give_back(ctx(2)).is_none(), "not the holder");
        assert_eq!(word.give_back(ctx(1)).map(|t| t.after.target), Some(ctx(2)));
        assert!(word.give_back(ctx(1)).is_none());
    }

    #[test]
    fn setting_the_same_target_changes_nothing() {
        let word = OwnerWord::new();
        assert!(word.set_target(CtxId::NONE).is_none());
        word.set_target(ctx(1));
        word.offer();
        word.take(ctx(1));
        assert!(word.set_target(ctx(1)).is_none());
        assert!(!word.is_recalled_relaxed());
    }
}

#[cfg(all(test, loom))]
#[allow(unsafe_code)]
mod models {
    use super::*;
    use crate::sync::Arc;
    use loom::cell::UnsafeCell;
    use loom::thread;

    /// The internal thread, a context and a mover race. Whoever holds the word writes the queue's private
    /// part; loom reports two holders at once as a causality violation of the cell.
    #[test]
    fn ownership_is_exclusive() {
        loom::model(|| {
            let shared = Arc::new((OwnerWord::new(), UnsafeCell::new(0u32)));
            shared.0.set_target(CtxId::new(1));

            let context = {
                let shared = shared.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        if shared.0.take(CtxId::new(1)).is_some() {
                            shared.1.with_mut(|p| unsafe { *p += 1 });
                            assert!(shared.0.give_back(CtxId::new(1)).is_some());
                        }
                    }
                })
            };
            let mover = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.0.set_target(CtxId::NONE);
                })
            };

            for _ in 0..2 {
                if shared.0.load().state == State::Internal {
                    shared.1.with_mut(|p| unsafe { *p += 1 });
                    shared.0.offer();
                }
            }
            shared.0.recall();
            if shared.0.load().state == State::Internal {
                shared.1.with_mut(|p| unsafe { *p += 1 });
            }
            context.join().unwrap();
            mover.join().unwrap();
            assert_eq!(shared.0.load().target, CtxId::NONE);
        });
    }
}

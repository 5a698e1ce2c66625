//! A dispatch inside a callback: as a device does that waits for something in its own event loop.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use vu_server::Context;

use crate::move_loops::{Kind, Looper, Watches};

/// The loop of a thread, for the callbacks that run on it.
enum Loop {
    Foreign(Arc<Watches>),
    Context(Weak<Context>, Kind),
}

thread_local! {
    static HERE: RefCell<Option<Loop>> = const { RefCell::new(None) };
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Which loop the calling thread runs.
pub fn number() -> u64 {
    NUMBER.get()
}

/// The calling thread runs the loop with this number from now on.
pub fn adopt(number: u64) {
    NUMBER.set(number);
}

/// Callbacks on the looper's thread can nest from now on. The number of its loop.
pub fn enable(looper: &Looper, kind: Kind) -> u64 {
    let here = match &looper.watches {
        Some(watches) => Loop::Foreign(watches.clone()),
        None => Loop::Context(Arc::downgrade(&looper.ctx), kind),
    };
    // Relaxed: the number only has to be unique.
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    looper.on(move || {
        HERE.set(Some(here));
        adopt(number);
    });
    number
}

/// One round of the calling thread's loop, if it has one.
pub fn dispatch() {
    // Taken out, so that callbacks in there find it empty: one level is enough.
    let Some(here) = HERE.take() else {
        return;
    };
    match &here {
        Loop::Foreign(watches) => watches.iterate(None, 0),
        Loop::Context(ctx, kind) => {
            if let Some(ctx) = ctx.upgrade() {
                match kind {
                    Kind::Polled => ctx.poll().map(drop).unwrap(),
                    _ => ctx.dispatch(Some(Duration::ZERO)).map(drop).unwrap(),
                }
            }
        }
    }
    HERE.set(Some(here));
}

//! Running the application's code: which callbacks are on this thread's stack, and what a panic means.
//!
//! The stack of frames lives in the frames themselves; the thread-local is one plain pointer without a
//! destructor, so that the library can be unloaded while threads that used it live on.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

thread_local! {
    static TOP: Cell<*const Frame> = const { Cell::new(ptr::null()) };
}

struct Frame {
    /// Identifies the server whose callback this is; 0 for a watch of the program's own.
    server: usize,
    /// The last callback but `destroy`: the server may be freed in there.
    last: bool,
    below: *const Frame,
}

/// Pops its frame also when the callback unwinds.
struct Pop(*const Frame);

impl Drop for Pop {
    fn drop(&mut self) {
        TOP.with(|top| top.set(self.0));
    }
}

/// Runs `f` as a callback of `server`. `None` if it panicked.
pub(crate) fn run<R>(server: usize, f: impl FnOnce() -> R) -> Option<R> {
    run_frame(server, false, f)
}

/// As [`run`], for the callback that may free its server.
pub(crate) fn run_last<R>(server: usize, f: impl FnOnce() -> R) -> Option<R> {
    run_frame(server, true, f)
}

fn run_frame<R>(server: usize, last: bool, f: impl FnOnce() -> R) -> Option<R> {
    let below = TOP.with(Cell::get);
    let frame = Frame {
        server,
        last,
        below,
    };
    TOP.with(|top| top.set(&raw const frame));
    let _pop = Pop(below);
    catch_unwind(AssertUnwindSafe(f)).ok()
}

/// Any callback is on this thread's stack.
pub(crate) fn is_running() -> bool {
    !TOP.with(Cell::get).is_null()
}

/// A callback of `server` is on this thread's stack.
pub(crate) fn is_running_for(server: usize) -> bool {
    any_frame(|frame| frame.server == server)
}

/// A callback of `server` is on this thread's stack that forbids to free it.
pub(crate) fn keeps(server: usize) -> bool {
    any_frame(|frame| frame.server == server && !frame.last)
}

/// The last callback of `server` is on this thread's stack.
pub(crate) fn is_in_last(server: usize) -> bool {
    any_frame(|frame| frame.server == server && frame.last)
}

#[allow(unsafe_code)]
fn any_frame(mut is_it: impl FnMut(&Frame) -> bool) -> bool {
    let mut frame = TOP.with(Cell::get);
    // SAFETY: a frame is on the list exactly while `run` is on this thread's stack, so each pointer is that
    // of a live local variable further down the same stack.
    while let Some(current) = unsafe { frame.as_ref() } {
        if is_it(current) {
            return true;
        }
        frame = current.below;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_nest_and_survive_a_panic() {
        assert!(!is_running());
        run(1, || {
            assert!(is_running_for(1));
            run(2, || assert!(is_running_for(1) && is_running_for(2)));
            assert!(!is_running_for(2));
            assert_eq!(run(3, || -> u32 { panic!("the device's bug") }), None);
            assert!(is_running_for(1) && !is_running_for(3));
        });
        run_last(1, || {
            assert!(is_running_for(1) && !keeps(1) && is_in_last(1));
            run(1, || assert!(keeps(1) && is_in_last(1) && !is_in_last(2)));
        });
        assert!(!is_running());
    }
}

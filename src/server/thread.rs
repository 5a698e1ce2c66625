//! The internal thread: accepts one front-end after the other until the server is stopped.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::context::hand_over::{offer_stream, set_queue_target, set_stream_target};
use crate::context::owner::{CtxId, State};
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::session;
use crate::session::LAST_WORDS;
use crate::shared::Shared;
use crate::stats::count;
use crate::stream::Event;
use crate::sync::Arc;

/// Starts the thread with every signal blocked.
pub(super) fn spawn(shared: Arc<Shared>, listener: Listener) -> Result<JoinHandle<()>> {
    let name = format!("vu-{}", shared.config.name);
    // A new thread inherits the mask, so there is no moment in which it could take a signal.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let spawned = std::thread::Builder::new()
        .name(name)
        .spawn(move || run(&shared, listener));
    before.thread_set_mask()?;
    spawned.map_err(|e| {
        Error::new(
            e.raw_os_error().unwrap_or(libc::EAGAIN),
            format!("internal thread: {e}"),
        )
    })
}

fn run(shared: &Arc<Shared>, mut listener: Listener) {
    while !shared.lifecycle.is_stopping() {
        let Some(connection) = accept(shared, &mut listener) else {
            break;
        };
        count(&shared.counters.connections);
        let served = catch_unwind(AssertUnwindSafe(|| session::serve(shared, connection)));
        if served.is_err() {
            // A bug of the library's own: the process lives on, the server says so and waits for its stop.
            shared
                .logger
                .error(format_args!("internal error while serving a front-end"));
            wait_for_stop(shared);
        }
    }
    // The socket file goes before anybody learns that the server is down.
    drop(listener);
    finish(shared);
}

/// The next connection; `None` when the server is to stop.
fn accept(shared: &Arc<Shared>, listener: &mut Listener) -> Option<OwnedFd> {
    loop {
        offer_stream(shared);
        if shared.lifecycle.is_stopping() {
            return None;
        }
        if shared.is_poisoned() || listener.is_exhausted() {
            shared.internal.wait(None, None);
            continue;
        }
        match listener.try_accept(Instant::now()) {
            Ok(Some(connection)) => return Some(connection),
            Ok(None) => {}
            Err(error) => shared.logger.warning(format_args!("{error}")),
        }
        shared
            .internal
            .wait(listener.poll_fd(), listener.timeout(Instant::now()));
    }
}

fn wait_for_stop(shared: &Arc<Shared>) {
    while !shared.lifecycle.is_stopping() {
        shared.internal.wait(None, None);
    }
}

/// Whoever has delivered the last event is about to hand the stream back. One who still delivers an event may be hung:
/// the end of the connection has waited as long as it may.
fn wait_for_stream(shared: &Shared) {
    let stream = &shared.stream;
    let deadline = Instant::now() + LAST_WORDS;
    while stream.owner.load().state != State::Internal {
        if stream.is_delivering() && Instant::now() >= deadline {
            return;
        }
        // Rung when the stream is handed back; a callback that hangs rings nobody.
        shared.internal.wait(None, Some(LAST_WORDS));
    }
}

/// The last act: takes the queues off their contexts, owes `stopped`, and lets go.
fn finish(shared: &Arc<Shared>) {
    for queue in shared.queues() {
        set_queue_target(&queue, CtxId::NONE);
    }
    shared.stream.clear();
    if shared.lifecycle.owes_stopped() && !shared.stream.owner.load().target.is_none() {
        // In one step: a context that has just delivered something else neither delivers `stopped` early nor
        // lets the stream go before it has it.
        shared.lifecycle.end_with(|| {
            shared.stream.push(Event::Stopped);
        });
        offer_stream(shared);
    } else {
        set_stream_target(shared, CtxId::NONE);
        wait_for_stream(shared);
        shared.lifecycle.end();
    }
    shared.wake();
    if shared.is_abandoned() {
        set_stream_target(shared, CtxId::NONE);
        shared.destroy();
    }
}

//! Stopping from any thread, also from one that must itself serve what the stop waits for.

use std::time::Duration;

use crate::callback;
use crate::context::{ContextCore, registry};
use crate::error::{Error, Result};
use crate::sync::Arc;

use super::Server;

/// How long one iteration of a loop may wait; the end of the stop rings it.
const ITERATION: Duration = Duration::from_millis(100);
/// How long to wait between two rounds over loops that nothing but looking at them serves.
const BETWEEN_ROUNDS: Duration = Duration::from_micros(200);

impl Server {
    /// Begins to stop. [`Device::stopped`](crate::Device::stopped) tells when it is done, unless a
    /// [`stop`](Self::stop) was there first (or the builder's `wake` while detached). Legal everywhere.
    ///
    /// # Errors
    /// None; nothing happens unless the server is running.
    pub fn request_stop(&self) -> Result<()> {
        self.shared.lifecycle.begin_stop(true);
        self.shared.internal.ring();
        Ok(())
    }

    /// Stops, and returns when everything is down: queues given back, requests drained (or cut off by the
    /// drain time-out), guest memory unmapped, the socket closed and its file removed.
    ///
    /// Meanwhile it serves every context that the calling thread owns: by running its loop if it can, else by
    /// giving back what is recalled. A second stop joins the first.
    ///
    /// # Errors
    /// `EDEADLK`, with nothing changed, inside any callback, and on a thread that owns one of the server's
    /// contexts while that is a foreign loop without `poll`.
    pub fn stop(&self) -> Result<()> {
        if callback::is_running() {
            return Err(Error::new(libc::EDEADLK, "stop inside a callback"));
        }
        if registry::owned_here()
            .iter()
            .any(|context| context.is_foreign() && !context.can_poll() && self.lives_in(context))
        {
            return Err(Error::new(
                libc::EDEADLK,
                "stop on the thread of a foreign loop that cannot poll",
            ));
        }
        let run = self.shared.lifecycle.begin_stop(false);
        self.shared.internal.ring();
        while !self.shared.lifecycle.is_over(run) {
            self.wait_and_serve(run);
        }
        self.join(run);
        Ok(())
    }

    fn lives_in(&self, context: &Arc<ContextCore>) -> bool {
        let stream = self.shared.stream.owner.load();
        let queues = self.shared.queues();
        queues
            .iter()
            .map(|queue| queue.owner.load())
            .chain([stream])
            .any(|word| word.context == context.id || word.target == context.id)
    }

    /// One round, which may end early.
    fn wait_and_serve(&self, run: u64) {
        let (running, passive): (Vec<_>, Vec<_>) = registry::owned_here()
            .into_iter()
            .partition(|context| context.can_poll());
        for context in &passive {
            // Another thread may have taken it over just now, and then serves it.
            let _ = context.serve_stop();
        }
        let lifecycle = &self.shared.lifecycle;
        match &running[..] {
            [only] if passive.is_empty() && only.can_wait() => {
                if lifecycle.ring_when_stopped(run, only) && only.iterate(ITERATION).is_err() {
                    lifecycle.wait(run, BETWEEN_ROUNDS);
                }
            }
            [] if passive.is_empty() => {
                lifecycle.wait(run, ITERATION);
            }
            _ => {
                for context in &running {
                    // As above.
                    let _ = context.iterate(Duration::ZERO);
                }
                lifecycle.wait(run, BETWEEN_ROUNDS);
            }
        }
    }
}

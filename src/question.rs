//! Questions to the device: what only it can compute, asked by the internal thread.
//!
//! A question travels in the event stream, so the device hears it in its home context and in order. Who asked
//! may give up meanwhile (the connection ends, the server stops): then an answer that comes late is dropped,
//! and the descriptors in it are closed.

use crate::device::Device;
use crate::shared::Shared;
use crate::sync::Arc;
use crate::sync::channel::{Receiver, bounded};

type Ask = dyn FnOnce(&dyn Device) + Send;

/// Asks the device, passes the answer on, and wakes the internal thread.
pub(crate) struct Question(Box<Ask>);

/// Where the answer will be.
pub(crate) struct Answer<T>(Receiver<T>);

impl Question {
    pub(crate) fn new<T: Send + 'static>(
        shared: &Arc<Shared>,
        ask: impl FnOnce(&dyn Device) -> T + Send + 'static,
    ) -> (Self, Answer<T>) {
        let (answer, awaited) = bounded(1);
        let shared = Arc::downgrade(shared);
        let question = Question(Box::new(move |device| {
            // Nobody waits for it any more: dropped, with what is in it.
            let _ = answer.try_send(ask(device));
            if let Some(shared) = shared.upgrade() {
                shared.internal.ring();
            }
        }));
        (question, Answer(awaited))
    }

    /// The owner of the home context, inside a callback.
    pub(crate) fn put(self, device: &dyn Device) {
        (self.0)(device);
    }
}

impl<T> Answer<T> {
    /// `None` while the device has not answered.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Question")
    }
}

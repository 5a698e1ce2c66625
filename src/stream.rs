//! The ordered stream of events that a server owes its home context.
//!
//! One of each kind (and queue) is pending at a time, and config writes are merged, so a home context that
//! never dispatches costs bounded memory. The stream has an owner word like a queue's.

use std::collections::VecDeque;

use crate::context::owner::OwnerWord;
use crate::outbox::Finished;
use crate::question::Question;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

#[derive(Debug)]
pub(crate) enum Event {
    Connected,
    FeaturesAcked {
        features: u64,
        protocol_features: u64,
    },
    ConfigWritten {
        offset: u32,
        size: u32,
    },
    Reset,
    StatusSet {
        status: u8,
    },
    /// Two at a time at most: one that the internal thread waits for, and one of a transfer of the device's state.
    Asked(Question),
    /// A request to the front-end has come to its end. There are no more of them than may be awaited, and none
    /// is lost: who asked is told.
    Completed(Finished),
    QueueStopped {
        index: u32,
    },
    RingBroken {
        index: u32,
        errno: i32,
        reason: String,
    },
    Orphaned {
        index: u32,
    },
    Disconnected {
        errno: i32,
        reason: String,
    },
    Stopped,
}

impl Event {
    /// Both may not be pending: the later one says it all.
    fn replaces(&self, earlier: &Event) -> bool {
        match (self, earlier) {
            (Event::QueueStopped { index: a }, Event::QueueStopped { index: b })
            | (Event::RingBroken { index: a, .. }, Event::RingBroken { index: b, .. })
            | (Event::Orphaned { index: a }, Event::Orphaned { index: b }) => a == b,
            (Event::ConfigWritten { .. }, Event::ConfigWritten { .. })
            | (Event::Completed(_), Event::Completed(_))
            | (Event::Asked(_), Event::Asked(_)) => false,
            _ => std::mem::discriminant(self) == std::mem::discriminant(earlier),
        }
    }
}

#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<(u64, Event)>,
    /// The number of the newest event ever pushed.
    pushed: u64,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) owner: OwnerWord,
    pending: Mutex<Pending>,
    /// Every event up to this number has been delivered (or dropped).
    delivered: AtomicU64,
    /// An event is being delivered: a nested dispatch must not deliver the next one.
    delivering: AtomicBool,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Stream {
            owner: OwnerWord::new(),
            pending: Mutex::new(Pending::default()),
            delivered: AtomicU64::new(0),
            delivering: AtomicBool::new(false),
        }
    }

    /// The internal thread. The number of the event, to wait for with [`has_delivered`](Self::has_delivered).
    pub(crate) fn push(&self, event: Event) -> u64 {
        let mut pending = self.pending.lock();
        if let Event::ConfigWritten { offset, size } = event
            && let Some((number, Event::ConfigWritten { offset: o, size: s })) = pending
                .events
                .iter_mut()
                .find(|(_, e)| matches!(e, Event::ConfigWritten { .. }))
        {
            let end = (offset + size).max(*o + *s);
            *o = offset.min(*o);
            *s = end - *o;
            return *number;
        }
        pending
            .events
            .retain(|(_, earlier)| !event.replaces(earlier));
        pending.pushed += 1;
        let number = pending.pushed;
        pending.events.push_back((number, event));
        number
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.lock().events.is_empty()
    }

    /// The number of the newest event; a queue that starts now is offered when it has been delivered.
    pub(crate) fn newest(&self) -> u64 {
        self.pending.lock().pushed
    }

    /// Acquire pairs with `finished`: what the callbacks did is visible.
    pub(crate) fn has_delivered(&self, number: u64) -> bool {
        self.delivered.load(Ordering::Acquire) >= number
    }

    /// The owner: the next event. `None` also while one is being delivered further down the stack.
    pub(crate) fn next(&self) -> Option<(u64, Event)> {
        if self.delivering.load(Ordering::Relaxed) {
            return None;
        }
        let mut pending = self.pending.lock();
        let next = pending.events.pop_front();
        if next.is_some() {
            // Under the lock: who finds the stream empty also finds that it is not through yet.
            self.delivering.store(true, Ordering::Relaxed);
        }
        next
    }

    /// The owner: the event was delivered.
    pub(crate) fn finished(&self, number: u64) {
        self.delivering.store(false, Ordering::Relaxed);
        // An event that a newer one replaced left no number behind, so an empty stream has delivered all.
        let pending = self.pending.lock();
        let upto = if pending.events.is_empty() {
            pending.pushed
        } else {
            number
        };
        // Not backwards: everything may have been dropped meanwhile.
        self.delivered.fetch_max(upto, Ordering::Release);
    }

    /// The internal thread: nobody waits for the answer to this question any more.
    pub(crate) fn withdraw(&self, number: u64) {
        let mut pending = self.pending.lock();
        pending.events.retain(|(other, _)| *other != number);
        if pending.events.is_empty() && !self.delivering.load(Ordering::Relaxed) {
            self.delivered.fetch_max(pending.pushed, Ordering::Release);
        }
    }

    pub(crate) fn is_delivering(&self) -> bool {
        self.delivering.load(Ordering::Relaxed)
    }

    /// The connection came and went unnoticed: nobody need hear of it.
    pub(crate) fn drop_if_connection_unseen(&self) -> bool {
        let mut pending = self.pending.lock();
        let unseen = pending
            .events
            .iter()
            .any(|(_, event)| matches!(event, Event::Connected));
        if unseen {
            self.drop_all(&mut pending);
        }
        unseen
    }

    /// The server is down: what is undelivered is dropped, but for what becomes of requests to the front-end:
    /// that waits for the next start, or the end.
    pub(crate) fn clear(&self) {
        let mut pending = self.pending.lock();
        self.drop_all(&mut pending);
    }

    /// The server is being freed.
    pub(crate) fn take_finished(&self) -> Vec<Finished> {
        let events = std::mem::take(&mut self.pending.lock().events);
        events
            .into_iter()
            .filter_map(|(_, event)| match event {
                Event::Completed(finished) => Some(finished),
                _ => None,
            })
            .collect()
    }

    fn drop_all(&self, pending: &mut Pending) {
        pending
            .events
            .retain(|(_, event)| matches!(event, Event::Completed(_)));
        self.delivered.store(pending.pushed, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_kind_is_pending_and_config_writes_merge() {
        let stream = Stream::new();
        stream.push(Event::Connected);
        for offset in [8, 2] {
            stream.push(Event::ConfigWritten { offset, size: 2 });
        }
        for features in [1, 2] {
            stream.push(Event::FeaturesAcked {
                features,
                protocol_features: 0,
            });
        }
        for index in [0, 1, 0] {
            stream.push(Event::QueueStopped { index });
        }
        let mut seen = Vec::new();
        while let Some((number, event)) = stream.next() {
            assert!(stream.next().is_none(), "one at a time");
            stream.finished(number);
            seen.push(event);
        }
        assert!(
            matches!(
                seen[..],
                [
                    Event::Connected,
                    Event::ConfigWritten { offset: 2, size: 8 },
                    Event::FeaturesAcked { features: 2, .. },
                    Event::QueueStopped { index: 1 },
                    Event::QueueStopped { index: 0 },
                ]
            ),
            "{seen:?}"
        );
        assert!(stream.has_delivered(stream.newest()));
    }

    #[test]
    fn an_unseen_connection_leaves_nothing() {
        let stream = Stream::new();
        stream.push(Event::Connected);
        let last = stream.push(Event::Reset);
        assert!(!stream.has_delivered(last));
        assert!(stream.drop_if_connection_unseen());
        assert!(stream.is_empty() && stream.has_delivered(last));
        stream.push(Event::Reset);
        assert!(!stream.drop_if_connection_unseen());
    }
}

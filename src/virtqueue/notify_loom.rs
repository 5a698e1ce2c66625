//! Models of both notification protocols: no kick and no interrupt is lost, whatever the interleaving. The same models
//! without the fence must find a lost one.

use loom::sync::atomic::AtomicU16;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::passes;
use crate::sync::Ordering;
use crate::virtqueue::order::Little;

type StoreThenLoad = fn(&AtomicU16, u16, &AtomicU16) -> u16;

/// What `store_then_load` would be if it forgot the fence.
fn without_fence(own: &AtomicU16, value: u16, other: &AtomicU16) -> u16 {
    own.store(value, Ordering::Release);
    other.load(Ordering::Relaxed)
}

/// An eventfd: a waiter that comes late finds what was signalled.
#[derive(Default)]
struct Event {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn signal(&self) {
        *self.signalled.lock().expect("lock") = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut signalled = self.signalled.lock().expect("lock");
        while !*signalled {
            signalled = self.changed.wait(signalled).expect("lock");
        }
        *signalled = false;
    }
}

/// One direction: a producer with an index, a consumer with the event it waits for, and how the one wakes the other.
/// For kicks the driver produces and the device consumes; for interrupts it is the other way round.
struct Direction {
    index: AtomicU16,
    event: AtomicU16,
    wake: Event,
}

const ENTRIES: u16 = 2;

/// With events. A lost notification is a consumer that waits for ever, which loom reports as a deadlock.
fn with_events(produce: StoreThenLoad, rearm: StoreThenLoad) {
    loom::model(move || {
        let shared = Arc::new(Direction {
            index: AtomicU16::new(0),
            // Far away: the consumer is at work.
            event: AtomicU16::new(1000),
            wake: Event::default(),
        });
        let producer = thread::spawn({
            let shared = shared.clone();
            move || {
                for old in 0..ENTRIES {
                    let event = produce(&shared.index, old + 1, &shared.event);
                    if passes(event, old + 1, old) {
                        shared.wake.signal();
                    }
                }
            }
        });
        let mut seen = shared.index.load(Ordering::Acquire);
        while seen != ENTRIES {
            let index = rearm(&shared.event, seen, &shared.index);
            if index == seen {
                shared.wake.wait();
            }
            seen = shared.index.load(Ordering::Acquire);
        }
        producer.join().expect("producer");
    });
}

/// With a flag: 1 means that no notification is wanted.
fn with_flags(produce: StoreThenLoad, rearm: StoreThenLoad) {
    loom::model(move || {
        let shared = Arc::new(Direction {
            index: AtomicU16::new(0),
            event: AtomicU16::new(1),
            wake: Event::default(),
        });
        let producer = thread::spawn({
            let shared = shared.clone();
            move || {
                for old in 0..ENTRIES {
                    if produce(&shared.index, old + 1, &shared.event) & 1 == 0 {
                        shared.wake.signal();
                    }
                }
            }
        });
        let mut seen = shared.index.load(Ordering::Acquire);
        while seen != ENTRIES {
            let index = rearm(&shared.event, 0, &shared.index);
            if index == seen {
                shared.wake.wait();
                shared.event.store(1, Ordering::Relaxed);
            }
            seen = shared.index.load(Ordering::Acquire);
        }
        producer.join().expect("producer");
    });
}

#[test]
fn nothing_is_lost_with_events() {
    with_events(
        super::store_then_load::<Little>,
        super::store_then_load::<Little>,
    );
}

#[test]
fn nothing_is_lost_with_flags() {
    with_flags(
        super::store_then_load::<Little>,
        super::store_then_load::<Little>,
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_producer_without_the_fence_loses_one() {
    with_events(without_fence, super::store_then_load::<Little>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_consumer_without_the_fence_loses_one() {
    with_events(super::store_then_load::<Little>, without_fence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_producer_without_the_fence_loses_one_with_flags() {
    with_flags(without_fence, super::store_then_load::<Little>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_consumer_without_the_fence_loses_one_with_flags() {
    with_flags(super::store_then_load::<Little>, without_fence);
}

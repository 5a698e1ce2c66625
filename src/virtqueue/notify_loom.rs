//! Models of both notification protocols: no kick and no interrupt is lost, whatever the interleaving. The same models
//! without the fence must find a lost one.

use loom::sync::atomic::{AtomicU16, AtomicU32};
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

type InOrder = fn(&mut dyn FnMut(), &dyn Fn() -> u32) -> u32;

/// As a packed ring does it: neither side has an index.
fn by_the_book(store: &mut dyn FnMut(), load: &dyn Fn() -> u32) -> u32 {
    super::in_order(store, load)
}

fn without_order(store: &mut dyn FnMut(), load: &dyn Fn() -> u32) -> u32 {
    store();
    load()
}

/// In a packed ring: the producer marks its entries, and the event is one word with what it is about. `DISABLE` is no
/// entry's number, so that an event is for one entry or for none.
fn in_a_packed_ring(produce: InOrder, rearm: InOrder) {
    const DISABLE: u32 = 1000;
    loom::model(move || {
        let shared = Arc::new((
            [AtomicU32::new(0), AtomicU32::new(0)],
            AtomicU32::new(DISABLE),
            Event::default(),
        ));
        let producer = thread::spawn({
            let shared = shared.clone();
            move || {
                let (marks, event, wake) = &*shared;
                for (entry, mark) in (0..).zip(marks) {
                    let mut make = || mark.store(1, Ordering::Release);
                    if produce(&mut make, &|| event.load(Ordering::Relaxed)) == entry {
                        wake.signal();
                    }
                }
            }
        });
        let (marks, event, wake) = &*shared;
        for (entry, mark) in (0..).zip(marks) {
            while mark.load(Ordering::Acquire) == 0 {
                let mut ask = || event.store(entry, Ordering::Release);
                if rearm(&mut ask, &|| mark.load(Ordering::Relaxed)) == 0 {
                    wake.wait();
                }
                event.store(DISABLE, Ordering::Relaxed);
            }
        }
        producer.join().expect("producer");
    });
}

#[test]
fn nothing_is_lost_in_a_packed_ring() {
    in_a_packed_ring(by_the_book, by_the_book);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_producer_without_the_fence_loses_one_in_a_packed_ring() {
    in_a_packed_ring(without_order, by_the_book);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_consumer_without_the_fence_loses_one_in_a_packed_ring() {
    in_a_packed_ring(by_the_book, without_order);
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

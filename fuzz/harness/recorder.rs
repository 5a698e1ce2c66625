//! The device under the fuzzer: it checks every element, keeps it or answers it, and counts what it hears.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vu_server::{Device, Element, GuestSlice, Kick, Virtqueue};

/// Most bytes copied of one element: a chain of gigabytes is legal, and says nothing new.
const COPY: usize = 4096;

#[derive(Default)]
pub struct Recorder {
    pub connected: AtomicU64,
    pub disconnected: AtomicU64,
    pub started: AtomicU64,
    pub stopped: AtomicU64,
    pub broken: AtomicU64,
    pub resets: AtomicU64,
    /// Elements are kept until somebody takes them.
    pub holding: AtomicBool,
    /// The device wants to be called again, until it has completed what it keeps.
    pub again: AtomicBool,
    /// The next call completes what is kept.
    pub completing: AtomicBool,
    held: Mutex<Vec<Element>>,
}

impl Recorder {
    pub fn get(counter: &AtomicU64) -> u64 {
        // Relaxed: the counters are written on the thread that reads them.
        counter.load(Ordering::Relaxed)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Element>> {
        self.held
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    pub fn held_count(&self) -> usize {
        self.held().len()
    }

    pub fn take_held(&self) -> Vec<Element> {
        std::mem::take(&mut *self.held())
    }

    pub fn keep(&self, elements: Vec<Element>) {
        self.held().extend(elements);
    }

    /// Completes what is kept, each with another length.
    pub fn complete_in_order(&self) {
        for (position, element) in (0..).zip(self.take_held()) {
            complete_at(position, element);
        }
    }

    /// What an element says about itself must agree, and its bytes must be there.
    fn check(element: &Element) {
        let sum = |slices: &mut dyn Iterator<Item = GuestSlice<'_>>| {
            slices.map(|slice| slice.len() as u64).sum::<u64>()
        };
        assert_eq!(
            sum(&mut element.readable()),
            u64::from(element.readable_len())
        );
        assert_eq!(
            sum(&mut element.writable()),
            u64::from(element.writable_len())
        );
    }
}

/// Answers an element with the beginning of its own bytes.
pub fn answer(element: Element) {
    let mut bytes = [0; COPY];
    let count = element.read(0, &mut bytes);
    let written = element.write(0, &bytes[..count]);
    element
        .complete(written as u32)
        .expect("as much as was written");
}

/// Completes the element at a position, which says how long it is. Returns the length.
pub fn complete_at(position: u32, element: Element) -> u32 {
    let written = element.writable_len().min(position);
    element.complete(written).expect("no more than there is");
    written
}

pub struct Recording(pub Arc<Recorder>);

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Device for Recording {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        if self.0.completing.swap(false, Ordering::Relaxed) {
            self.0.complete_in_order();
            self.0.again.store(false, Ordering::Relaxed);
        }
        let mut batch: [Option<Element>; 8] = Default::default();
        while let Ok(popped @ 1..) = vq.pop(&mut batch) {
            for element in batch[..popped].iter_mut().filter_map(Option::take) {
                Recorder::check(&element);
                if self.0.holding.load(Ordering::Relaxed) {
                    self.0.held().push(element);
                } else {
                    answer(element);
                }
            }
        }
        if self.0.again.load(Ordering::Relaxed) {
            Kick::Again
        } else {
            Kick::Done
        }
    }

    fn queue_started(&self, _: &mut Virtqueue<'_>) {
        count(&self.0.started);
    }

    fn queue_stopped(&self, _: u32) {
        count(&self.0.stopped);
    }

    fn connected(&self) {
        count(&self.0.connected);
    }

    fn disconnected(&self, _: i32, _: &str) {
        count(&self.0.disconnected);
    }

    fn reset(&self) {
        count(&self.0.resets);
    }

    fn ring_broken(&self, _: u32, _: i32, _: &str) {
        count(&self.0.broken);
    }
}

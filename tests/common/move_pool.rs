//! Threads that take requests in random order, and the random numbers for that.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use vu_server::Element;

/// Numbers that differ between seeds and are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Element>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Finishes elements on threads of its own, none of which owns a context.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn start(threads: u64, finish: impl Fn(Element) + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let finish = Arc::new(finish);
        let threads = (0..threads)
            .map(|seed| {
                let (shared, finish) = (shared.clone(), finish.clone());
                thread::spawn(move || shared.work(&*finish, Random::new(seed)))
            })
            .collect();
        Pool { shared, threads }
    }

    pub fn push(&self, element: Element) {
        self.shared.queue.lock().unwrap().waiting.push(element);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn work(&self, finish: &dyn Fn(Element), mut random: Random) {
        let mut queue = self.queue.lock().unwrap();
        loop {
            let count = queue.waiting.len();
            if count > 0 {
                let element = queue
                    .waiting
                    .swap_remove(random.below(count as u64) as usize);
                drop(queue);
                finish(element);
                queue = self.queue.lock().unwrap();
            } else if queue.closed {
                return;
            } else {
                queue = self.changed.wait(queue).unwrap();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there was reported by the thread; what it left undone fails the test.
            let _ = thread.join();
        }
    }
}

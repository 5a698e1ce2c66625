//! A device that answers on whatever thread and in whatever order, unpops, nests dispatches, and watches that
//! its callbacks come as promised.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vu_server::{Device, Element, Kick, StopReason, Virtqueue};

use crate::move_pool::{Pool, Random};
use crate::nest;
use crate::request::{answer, wants_hold};

pub const QUEUES: usize = 4;
const BATCH: usize = 32;
/// How long a request may take to reach the device.
const LIMIT: Duration = Duration::from_secs(60);

struct Place {
    /// The loop that has the queue; `None` while no context has it.
    home: Option<u64>,
    random: Random,
    /// Kept from one kick to the next.
    parked: Vec<Element>,
}

/// What the test sees of the device.
pub struct Inverter {
    places: [Mutex<Place>; QUEUES],
    pool: Pool,
    /// Until the test lets them go.
    held: Mutex<Vec<Element>>,
    changed: Condvar,
    /// To be staged by the test on the thread of a loop.
    later: Mutex<Vec<Element>>,
    /// The test no longer asks for those.
    closing: AtomicBool,
    pub arrivals: AtomicU64,
    pub config_writes: AtomicU64,
    violations: Mutex<Vec<String>>,
}

/// What the server has of it.
pub struct InverterDevice(pub Arc<Inverter>);

impl Inverter {
    pub fn new(seed: u64) -> Self {
        let mut number = seed;
        Inverter {
            places: [(); QUEUES].map(|()| {
                number = number.wrapping_add(1);
                Mutex::new(Place {
                    home: None,
                    random: Random::new(number),
                    parked: Vec::new(),
                })
            }),
            pool: Pool::start(3, answer_now),
            held: Mutex::default(),
            changed: Condvar::new(),
            later: Mutex::default(),
            closing: AtomicBool::new(false),
            arrivals: AtomicU64::new(0),
            config_writes: AtomicU64::new(0),
            violations: Mutex::default(),
        }
    }

    /// Waits until the device holds a request that asked for it.
    #[track_caller]
    pub fn wait_held(&self) -> Element {
        let held = self.held.lock().unwrap();
        let (mut held, waited) = self
            .changed
            .wait_timeout_while(held, LIMIT, |held| held.is_empty())
            .unwrap();
        assert!(!waited.timed_out(), "no request was held within {LIMIT:?}");
        held.pop().expect("one is there")
    }

    /// Answers on a thread of the pool.
    pub fn answer_elsewhere(&self, element: Element) {
        self.pool.push(element);
    }

    pub fn take_later(&self) -> Vec<Element> {
        std::mem::take(&mut *self.later.lock().unwrap())
    }

    /// From now on nothing is left for [`take_later`](Self::take_later).
    pub fn close(&self) {
        let later = self.later.lock().unwrap();
        // Relaxed: the lock orders it.
        self.closing.store(true, Ordering::Relaxed);
        drop(later);
        for element in self.take_later() {
            self.pool.push(element);
        }
    }

    pub fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations.lock().unwrap().clone();
        assert!(violations.is_empty(), "{violations:?}");
    }

    /// Where the requests are, for a message about a hang.
    pub fn describe(&self) -> String {
        let parked: Vec<_> = self
            .places
            .iter()
            .map(|place| place.try_lock().map_or(usize::MAX, |p| p.parked.len()))
            .collect();
        let count = |list: &Mutex<Vec<Element>>| list.try_lock().map_or(usize::MAX, |l| l.len());
        format!(
            "held {}, later {}, parked {parked:?}, violations {:?}",
            count(&self.held),
            count(&self.later),
            self.violations.try_lock()
        )
    }

    fn roll(&self, index: u32, below: u64) -> u64 {
        self.place(index).random.below(below)
    }

    fn place(&self, index: u32) -> std::sync::MutexGuard<'_, Place> {
        self.places[index as usize].lock().unwrap()
    }

    fn check_place(&self, what: &str, index: u32) {
        let (here, home) = (nest::number(), self.place(index).home);
        if home != Some(here) {
            self.violation(format!("{what}({index}) on {here}, lives on {home:?}"));
        }
    }

    /// False when there was nothing.
    fn pop_batch(&self, vq: &mut Virtqueue<'_>) -> bool {
        let mut batch: [Option<Element>; BATCH] = [const { None }; BATCH];
        let want = 1 + self.roll(vq.index(), BATCH as u64) as usize;
        let popped = match vq.pop(&mut batch[..want]) {
            Ok(popped) => popped,
            Err(error) if error.errno() == libc::ESHUTDOWN => 0,
            Err(error) => {
                self.violation(format!("pop: {error}"));
                0
            }
        };
        for element in batch.into_iter().flatten() {
            self.deal_with(vq, element);
        }
        popped > 0
    }

    fn deal_with(&self, vq: &mut Virtqueue<'_>, element: Element) {
        if wants_hold(&element) {
            self.held.lock().unwrap().push(element);
            self.changed.notify_all();
            return;
        }
        match self.roll(vq.index(), 64) {
            0..20 => answer_now(element),
            20..44 => stage(vq, element),
            44..62 => self.pool.push(element),
            62 => self.place(vq.index()).parked.push(element),
            _ => {
                let mut later = self.later.lock().unwrap();
                if self.closing.load(Ordering::Relaxed) {
                    self.pool.push(element);
                } else {
                    later.push(element);
                }
            }
        }
    }

    /// Pops one and puts it back.
    fn pop_and_unpop(&self, vq: &mut Virtqueue<'_>) {
        if let Ok(Some(element)) = vq.pop_one()
            && let Err((error, element)) = vq.unpop(element)
        {
            self.violation(format!("unpop: {error}"));
            answer_now(element);
        }
    }

    fn unpark(&self, vq: &mut Virtqueue<'_>) {
        let parked = std::mem::take(&mut self.place(vq.index()).parked);
        for element in parked {
            match self.roll(vq.index(), 3) {
                0 => answer_now(element),
                1 => stage(vq, element),
                _ => self.pool.push(element),
            }
        }
    }
}

impl Device for InverterDevice {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let index = vq.index();
        self.0.check_place("kick", index);
        self.0.unpark(vq);
        if self.0.roll(index, 16) == 0 {
            self.0.pop_and_unpop(vq);
        }
        while self.0.pop_batch(vq) {
            match self.0.roll(index, 64) {
                0 => nest::dispatch(),
                1 => return Kick::Again,
                2 => vq.flush(),
                _ => {}
            }
        }
        if self.0.place(index).parked.is_empty() {
            Kick::Done
        } else {
            Kick::Again
        }
    }

    fn queue_started(&self, vq: &mut Virtqueue<'_>) {
        let before = self.0.place(vq.index()).home.replace(nest::number());
        if before.is_some() {
            self.0
                .violation(format!("queue_started({}) twice", vq.index()));
        }
        // Relaxed: a figure.
        self.0.arrivals.fetch_add(1, Ordering::Relaxed);
        if self.0.roll(vq.index(), 64) == 0 {
            nest::dispatch();
        }
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, _reason: StopReason) {
        self.0.check_place("queue_stopping", vq.index());
        match vq.pop_one() {
            Err(error) if error.errno() == libc::ESHUTDOWN => {}
            other => self.0.violation(format!(
                "pop of queue {}, which leaves: {other:?}",
                vq.index()
            )),
        }
        self.0.unpark(vq);
        if self.0.roll(vq.index(), 64) == 0 {
            nest::dispatch();
        }
        self.0.place(vq.index()).home = None;
    }

    fn config_written(&self, _offset: u32, _size: u32) {
        // Relaxed: a figure.
        self.0.config_writes.fetch_add(1, Ordering::Relaxed);
    }

    fn disconnected(&self, errno: i32, reason: &str) {
        if errno != 0 {
            self.0.violation(format!("disconnected: {errno}, {reason}"));
        }
    }

    fn ring_broken(&self, index: u32, errno: i32, reason: &str) {
        self.0
            .violation(format!("ring_broken({index}): {errno}, {reason}"));
    }

    fn orphaned(&self, index: u32) {
        self.0.violation(format!("orphaned({index})"));
    }
}

fn stage(vq: &mut Virtqueue<'_>, element: Element) {
    let written = answer(&element);
    vq.stage(element, written).expect("an answer fits");
}

pub fn answer_now(element: Element) {
    let written = answer(&element);
    element.complete(written).expect("an answer fits");
}

//! An echo device that answers in many ways and keeps books of its callbacks.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use vu_server::{Device, Element, Kick, StopReason, Virtqueue};

use super::move_pool::{Pool, Random};

/// How long anything may take that nothing should delay.
const LIMIT: Duration = Duration::from_secs(10);
const QUEUES: usize = 8;

/// When a popped element is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Completed inside the kick.
    Inline,
    /// Staged inside the kick.
    Stage,
    /// Completed by other threads, in random order.
    Pool,
    /// Kept until the test takes it.
    Hold,
    /// Inline, staged or by the pool, as it comes.
    Mixed,
}

impl Answer {
    fn from_u8(value: u8) -> Self {
        [
            Answer::Inline,
            Answer::Stage,
            Answer::Pool,
            Answer::Hold,
            Answer::Mixed,
        ][value as usize]
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Started(u32, ThreadId),
    Stopping(u32, StopReason),
    Stopped(u32),
    Broken(u32, i32),
    Orphaned(u32),
    Connected,
    Disconnected(i32),
    Reset,
}

#[derive(Default)]
struct Place {
    /// The thread on which the queue started; `None` while no context has it.
    owner: Option<ThreadId>,
}

/// What tests see of the device.
pub struct Echo {
    answer: AtomicU8,
    /// Queues whose kick pops one batch at most and asks to be called again; a bit each.
    pub again: AtomicU64,
    /// What is held is staged as its queue leaves, instead of being kept.
    pub stage_at_stopping: AtomicBool,
    /// Callbacks of all kinds so far.
    callbacks: AtomicU64,
    /// Kicks, by queue.
    pub kicks: [AtomicU64; QUEUES],
    places: Mutex<[Place; QUEUES]>,
    held: Mutex<Vec<(u32, Element)>>,
    log: Mutex<Vec<Event>>,
    changed: Condvar,
    violations: Mutex<Vec<String>>,
    pool: Pool,
    /// What `is_enabled` said at the last kick, by queue.
    pub enabled: [AtomicU8; QUEUES],
}

pub struct EchoDevice(pub Arc<Echo>);

impl Echo {
    pub fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Echo {
            answer: AtomicU8::new(answer as u8),
            again: AtomicU64::new(0),
            stage_at_stopping: AtomicBool::new(false),
            callbacks: AtomicU64::new(0),
            kicks: Default::default(),
            places: Mutex::default(),
            held: Mutex::default(),
            log: Mutex::default(),
            changed: Condvar::new(),
            violations: Mutex::default(),
            pool: Pool::start(2, |element| {
                let _ = answer_now(element);
            }),
            enabled: Default::default(),
        })
    }

    pub fn set_answer(&self, answer: Answer) {
        // Relaxed: the next kick sees it or the one after.
        self.answer.store(answer as u8, Ordering::Relaxed);
    }

    pub fn callbacks(&self) -> u64 {
        self.callbacks.load(Ordering::Acquire)
    }

    pub fn log(&self) -> Vec<Event> {
        self.log.lock().unwrap().clone()
    }

    pub fn count(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|event| what(event))
            .count()
    }

    /// Waits until the log satisfies `done`.
    #[track_caller]
    pub fn wait_log(&self, what: &str, done: impl Fn(&[Event]) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut log = self.log.lock().unwrap();
        while !done(&log) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what}: not within {LIMIT:?}; last events {:?}",
                tail(&log)
            );
            log = self.changed.wait_timeout(log, left).unwrap().0;
        }
    }

    #[track_caller]
    pub fn wait_event(&self, event: Event) {
        self.wait_log(&format!("{event:?}"), |log| log.contains(&event));
    }

    /// Waits until `count` elements are held.
    #[track_caller]
    pub fn wait_held(&self, count: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.held.lock().unwrap().len() < count {
            assert!(
                Instant::now() < deadline,
                "{count} held elements: not within {LIMIT:?}"
            );
            thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Takes what is held of queue `index`.
    pub fn take_held(&self, index: u32) -> Vec<Element> {
        let mut held = self.held.lock().unwrap();
        let (taken, kept) = std::mem::take(&mut *held)
            .into_iter()
            .partition(|(i, _)| *i == index);
        *held = kept;
        let taken: Vec<(u32, Element)> = taken;
        taken.into_iter().map(|(_, element)| element).collect()
    }

    /// Answers what is held of queue `index`, on this thread.
    pub fn answer_held(&self, index: u32) -> usize {
        let held = self.take_held(index);
        let count = held.len();
        for element in held {
            answer_now(element).unwrap();
        }
        count
    }

    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations.lock().unwrap();
        assert!(violations.is_empty(), "{violations:?}");
    }

    fn note(&self, event: Event) {
        self.callback();
        self.log.lock().unwrap().push(event);
        self.changed.notify_all();
    }

    fn callback(&self) {
        // Release: who sees the number sees what came before the callback.
        self.callbacks.fetch_add(1, Ordering::Release);
    }

    fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    fn check_place(&self, what: &str, index: u32) {
        let owner = self.places.lock().unwrap()[index as usize].owner;
        if owner != Some(thread::current().id()) {
            self.violation(format!(
                "{what} of queue {index} on {:?}, started on {owner:?}",
                thread::current().id()
            ));
        }
    }

    fn pop_batch(&self, vq: &mut Virtqueue<'_>, random: &mut Random) -> bool {
        let mut batch: [Option<Element>; 32] = Default::default();
        let n = match vq.pop(&mut batch) {
            Ok(n) => n,
            Err(_) => return false,
        };
        let mode = Answer::from_u8(self.answer.load(Ordering::Relaxed));
        for element in batch.into_iter().flatten() {
            let mode = match mode {
                Answer::Mixed => {
                    [Answer::Inline, Answer::Stage, Answer::Pool][random.below(3) as usize]
                }
                other => other,
            };
            match mode {
                Answer::Hold => self.held.lock().unwrap().push((vq.index(), element)),
                Answer::Pool => self.pool.push(element),
                Answer::Stage => {
                    let written = echo(&element);
                    vq.stage(element, written).unwrap();
                }
                Answer::Inline | Answer::Mixed => answer_now(element).unwrap(),
            }
        }
        n > 0
    }
}

fn tail(log: &[Event]) -> &[Event] {
    &log[log.len().saturating_sub(8)..]
}

impl Device for EchoDevice {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let (echo, index) = (&self.0, vq.index());
        echo.callback();
        echo.check_place("kick", index);
        let kicks = echo.kicks[index as usize].fetch_add(1, Ordering::Relaxed);
        echo.enabled[index as usize].store(1 + u8::from(vq.is_enabled()), Ordering::Relaxed);
        let mut random = Random::new(kicks);
        if echo.again.load(Ordering::Relaxed) & 1 << index != 0 {
            echo.pop_batch(vq, &mut random);
            return Kick::Again;
        }
        while echo.pop_batch(vq, &mut random) {}
        Kick::Done
    }

    fn queue_started(&self, vq: &mut Virtqueue<'_>) {
        let here = thread::current().id();
        let before = self.0.places.lock().unwrap()[vq.index() as usize]
            .owner
            .replace(here);
        if before.is_some() {
            self.0
                .violation(format!("queue {} started twice", vq.index()));
        }
        self.0.note(Event::Started(vq.index(), here));
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, reason: StopReason) {
        self.0.check_place("queue_stopping", vq.index());
        self.0.places.lock().unwrap()[vq.index() as usize].owner = None;
        if self.0.stage_at_stopping.load(Ordering::Relaxed) {
            for element in self.0.take_held(vq.index()) {
                let written = echo(&element);
                vq.stage(element, written).unwrap();
            }
        }
        self.0.note(Event::Stopping(vq.index(), reason));
    }

    fn queue_stopped(&self, index: u32) {
        self.0.note(Event::Stopped(index));
    }

    fn connected(&self) {
        self.0.note(Event::Connected);
    }

    fn disconnected(&self, errno: i32, _reason: &str) {
        self.0.note(Event::Disconnected(errno));
    }

    fn reset(&self) {
        self.0.note(Event::Reset);
    }

    fn ring_broken(&self, index: u32, errno: i32, _reason: &str) {
        self.0.note(Event::Broken(index, errno));
    }

    fn orphaned(&self, index: u32) {
        self.0.note(Event::Orphaned(index));
    }
}

/// Copies the readable bytes to the writable ones; how many.
pub fn echo(element: &Element) -> u32 {
    let mut bytes = vec![0; element.readable_len() as usize];
    let read = element.read(0, &mut bytes);
    element.write(0, &bytes[..read]) as u32
}

/// Echoes and completes.
pub fn answer_now(element: Element) -> vu_server::Result<()> {
    let written = echo(&element);
    element.complete(written)
}

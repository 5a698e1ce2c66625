//! The convention between tests and their echo devices: a chain is one
//! readable and one writable buffer, and the device copies from the first to
//! the second as much as fits and reports that length as written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::deadline::Deadline;
use super::driver::{Seg, SplitDriver, Used};
use super::frontend::TIMEOUT;
use super::memory::GuestMemory;
use super::queue::Driver;

/// What the writable buffer holds before the device writes it.
const UNTOUCHED: u8 = 0xa5;

pub struct EchoRequest {
    memory: Arc<GuestMemory>,
    readable: Seg,
    writable: Seg,
    sent: Vec<u8>,
}

impl EchoRequest {
    #[track_caller]
    pub fn new(memory: &Arc<GuestMemory>, out_len: u32, in_len: u32) -> Self {
        let alloc = |len: u32| memory.alloc(len.into(), 8).unwrap();
        EchoRequest {
            memory: Arc::clone(memory),
            readable: Seg::readable(alloc(out_len), out_len),
            writable: Seg::writable(alloc(in_len), in_len),
            sent: Vec::new(),
        }
    }

    /// Fills the buffers with something that only `seed` gives.
    #[track_caller]
    pub fn prepare(&mut self, seed: u64) {
        self.send(&pattern(seed, self.readable.len as usize));
    }

    /// Puts `bytes` into the readable buffer, whose size they have.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.readable.len as usize, "echo payload");
        self.sent = bytes.to_vec();
        self.memory.write(self.readable.gpa, bytes).unwrap();
        let in_len = self.writable.len as usize;
        self.memory
            .fill(self.writable.gpa, in_len, UNTOUCHED)
            .unwrap();
    }

    pub fn segs(&self) -> [Seg; 2] {
        [self.readable, self.writable]
    }

    /// The device copied what it could, wrote nothing else and said so.
    #[track_caller]
    pub fn check(&self, used: Used) {
        let in_len = self.writable.len as usize;
        let copied = self.sent.len().min(in_len);
        assert_eq!(used.len as usize, copied, "length in used entry {used:?}");
        let got = self.memory.read(self.writable.gpa, in_len).unwrap();
        if let Some(at) = (0..copied).find(|&at| got[at] != self.sent[at]) {
            panic!(
                "echo of {used:?} differs at byte {at} of {copied}: {:#04x}, want {:#04x}",
                got[at], self.sent[at]
            );
        }
        if let Some(at) = (copied..in_len).find(|&at| got[at] != UNTOUCHED) {
            panic!("echo of {used:?} wrote byte {at}, beyond its {copied}");
        }
    }
}

/// One request there and back.
#[track_caller]
pub fn round_trip<D: Driver>(driver: &mut D, bytes: &[u8]) {
    let len = bytes.len() as u32;
    let mut request = EchoRequest::new(driver.memory(), len, len);
    request.send(bytes);
    let head = driver.submit(&request.segs()).unwrap();
    let used = driver.wait_used(Deadline::after(TIMEOUT)).unwrap();
    assert_eq!(used.head, head, "head in used entry");
    request.check(used);
}

/// Keeps a number of requests in flight and checks every answer.
pub struct EchoLoad<'a, D = SplitDriver> {
    pub driver: &'a mut D,
    pub completed: u64,
    pub submitted: u64,
    /// How long any one completion may take.
    pub timeout: std::time::Duration,
    indirect: bool,
    idle: Vec<EchoRequest>,
    busy: HashMap<u16, EchoRequest>,
}

impl<'a, D: Driver> EchoLoad<'a, D> {
    #[track_caller]
    pub fn new(driver: &'a mut D, depth: usize, len: u32) -> Self {
        let memory = Arc::clone(driver.memory());
        let request = |_| EchoRequest::new(&memory, len, len);
        EchoLoad {
            driver,
            completed: 0,
            submitted: 0,
            timeout: TIMEOUT,
            indirect: false,
            idle: (0..depth).map(request).collect(),
            busy: HashMap::new(),
        }
    }

    /// Puts the chains into indirect tables.
    pub fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }

    pub fn in_flight(&self) -> usize {
        self.busy.len()
    }

    /// Submits whatever is idle, with one publication and at most one kick.
    #[track_caller]
    pub fn fill(&mut self) {
        self.fill_up_to(self.idle.len());
    }

    #[track_caller]
    pub fn fill_up_to(&mut self, count: usize) {
        let count = count.min(self.idle.len());
        for mut request in self.idle.drain(self.idle.len() - count..) {
            self.submitted += 1;
            request.prepare(self.submitted);
            let head = if self.indirect {
                self.driver.add_indirect(&request.segs())
            } else {
                self.driver.add(&request.segs())
            };
            self.busy.insert(head.unwrap(), request);
        }
        if count > 0 {
            self.driver.publish().unwrap();
            self.driver.kick().unwrap();
        }
    }

    /// Waits for one completion, checks it and takes all that are there.
    #[track_caller]
    pub fn reap(&mut self) {
        let used = self.driver.wait_used(Deadline::after(self.timeout));
        let mut next = Some(used.unwrap());
        while let Some(used) = next {
            self.finish(used);
            next = self.driver.poll_used().unwrap();
        }
    }

    #[track_caller]
    fn finish(&mut self, used: Used) {
        let request = self.busy.remove(&used.head);
        let request = request.unwrap_or_else(|| panic!("{used:?} is not of this load"));
        request.check(used);
        self.idle.push(request);
        self.completed += 1;
    }

    /// Waits for everything in flight.
    #[track_caller]
    pub fn drain(&mut self) {
        while !self.busy.is_empty() {
            self.reap();
        }
    }

    /// Completes `count` more requests and leaves none in flight.
    #[track_caller]
    pub fn run(&mut self, count: u64) {
        let last = self.submitted + count;
        while self.submitted < last {
            let left = usize::try_from(last - self.submitted).unwrap_or(usize::MAX);
            self.fill_up_to(left);
            self.reap();
        }
        self.drain();
    }

    /// Runs until `stop` is set and leaves nothing in flight.
    #[track_caller]
    pub fn run_until(&mut self, stop: &AtomicBool) {
        // Relaxed: the flag carries no data with it.
        while !stop.load(Ordering::Relaxed) {
            self.fill();
            self.reap();
        }
        self.drain();
    }
}

/// Bytes that differ between seeds and between positions.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

//! A request: a header and bytes that only its seed gives; the answer is their complement.

use std::sync::Arc;

use vu_server::Element;

use crate::move_pool::Random;
use crate::sim::echo::pattern;
use crate::sim::{Region, Seg, Used};

/// Seed, then what the device shall do.
const HEADER: usize = 9;
/// The device keeps the request until it is told to answer.
const HOLD: u8 = 1;
/// What no answer writes behind its end.
const UNTOUCHED: u8 = 0xa5;
const GUARD: u32 = 16;
const LEN_MAX: u32 = 1024;

pub struct Request {
    region: Arc<Region>,
    out: u64,
    back: u64,
    sent: Vec<u8>,
    segs: Vec<Seg>,
    indirect: bool,
}

impl Request {
    #[track_caller]
    pub fn new(region: &Arc<Region>) -> Self {
        Request {
            region: region.clone(),
            out: region.alloc(LEN_MAX.into(), 8).unwrap(),
            back: region.alloc((LEN_MAX + GUARD).into(), 8).unwrap(),
            sent: Vec::new(),
            segs: Vec::new(),
            indirect: false,
        }
    }

    /// Fills the buffers and cuts them.
    pub fn prepare(&mut self, seed: u64, hold: bool, random: &mut Random) {
        let len = HEADER as u32 + random.below(u64::from(LEN_MAX) - HEADER as u64) as u32;
        self.sent = pattern(seed, len as usize);
        self.sent[..8].copy_from_slice(&seed.to_le_bytes());
        self.sent[8] = if hold { HOLD } else { 0 };
        self.region.write(self.out, &self.sent).unwrap();
        let room = len + GUARD;
        let blank = vec![UNTOUCHED; room as usize];
        self.region.write(self.back, &blank).unwrap();
        self.segs = cut(self.out, len, random, Seg::readable);
        self.segs
            .extend(cut(self.back, room, random, Seg::writable));
        self.indirect = random.below(2) == 0;
    }

    pub fn is_indirect(&self) -> bool {
        self.indirect
    }

    /// The chain to submit.
    pub fn segs(&self) -> &[Seg] {
        &self.segs
    }

    #[track_caller]
    pub fn check(&self, used: Used) {
        let len = self.sent.len();
        assert_eq!(used.len as usize, len, "length in {used:?}");
        let mut got = vec![0; len + GUARD as usize];
        self.region.read_into(self.back, &mut got).unwrap();
        let (answer, guard) = got.split_at(len);
        let wrong = answer.iter().zip(&self.sent).position(|(a, s)| *a != !s);
        assert_eq!(wrong, None, "first wrong byte of {len} in {used:?}");
        assert!(guard.iter().all(|&b| b == UNTOUCHED), "{used:?} overran");
    }
}

/// One to three buffers in a row.
fn cut(gpa: u64, len: u32, random: &mut Random, seg: fn(u64, u32) -> Seg) -> Vec<Seg> {
    let mut segs = Vec::new();
    let mut done = 0;
    for _ in 0..random.below(3) {
        let left = u64::from(len - done);
        if left > 1 {
            let part = 1 + random.below(left - 1) as u32;
            segs.push(seg(gpa + u64::from(done), part));
            done += part;
        }
    }
    segs.push(seg(gpa + u64::from(done), len - done));
    segs
}

/// The device's side: writes the answer; its length.
pub fn answer(element: &Element) -> u32 {
    let mut bytes = vec![0; element.readable_len() as usize];
    element.read(0, &mut bytes);
    for byte in &mut bytes {
        *byte = !*byte;
    }
    element.write(0, &bytes) as u32
}

/// The device's side: it shall keep the request until it is told to answer.
pub fn wants_hold(element: &Element) -> bool {
    let mut header = [0; HEADER];
    element.read(0, &mut header) == HEADER && header[8] == HOLD
}

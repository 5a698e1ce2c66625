//! The bodies of the fuzz targets. Each runs one input against a live server over a real socket and checks
//! what must hold whatever the input is; it panics if something does not.
//!
//! `fuzz_targets/` makes libFuzzer programs of them, and `tests/fuzz_replay.rs` runs them over the seeds and
//! over every input that has ever found a bug, without libFuzzer.

// Each program compiles all of this and uses a part of it.
#![allow(dead_code)]

use arbitrary::{Arbitrary, Unstructured};

pub mod fds;
pub mod inflight;
pub mod iotlb;
pub mod message_stream;
pub mod packed_ring;
pub mod peer;
pub mod recorder;
pub mod sequence;
pub mod split_ring;
pub mod world;

#[path = "../../tests/sim/mod.rs"]
pub mod sim;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 6] = [
    ("inflight", inflight::run),
    ("iotlb", iotlb::run),
    ("message_stream", message_stream::run),
    ("packed_ring", packed_ring::run),
    ("sequence", sequence::run),
    ("split_ring", split_ring::run),
];

/// One of several, chosen by a byte.
pub fn pick<T: Copy>(choice: u8, from: &[T]) -> T {
    from[usize::from(choice) % from.len()]
}

/// A list whose length comes first, so that long ones are as likely as short ones.
#[derive(Debug)]
pub struct Many<T>(pub Vec<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Many<T> {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let count = u8::arbitrary(input)? % 64;
        let mut list = Vec::new();
        while list.len() < count.into() && !input.is_empty() {
            list.push(T::arbitrary(input)?);
        }
        Ok(Many(list))
    }
}

impl<T> std::ops::Deref for Many<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

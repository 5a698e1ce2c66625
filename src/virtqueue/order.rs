//! The byte order of a ring.
//!
//! A ring of a modern device is little-endian. A legacy device has its guest's order, which can be the other one; such a
//! ring is read and written by code of its own, so that the others pay nothing for it.

use std::fmt::Debug;

/// Between the machine's order and the ring's: the same conversion in both directions.
pub(crate) trait Order: Copy + Debug + Default + 'static {
    fn u16(value: u16) -> u16;
    fn u32(value: u32) -> u32;
    fn u64(value: u64) -> u64;

    /// The second word of a descriptor as its fields are from the low bits up: length, flags, next.
    fn desc_rest(word: u64) -> u64;
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Little;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Big;

impl Order for Little {
    #[inline(always)]
    fn u16(value: u16) -> u16 {
        value.to_le()
    }

    #[inline(always)]
    fn u32(value: u32) -> u32 {
        value.to_le()
    }

    #[inline(always)]
    fn u64(value: u64) -> u64 {
        value.to_le()
    }
    #[inline(always)]
    fn desc_rest(word: u64) -> u64 {
        word.to_le()
    }
}

impl Order for Big {
    #[inline(always)]
    fn u16(value: u16) -> u16 {
        value.to_be()
    }

    #[inline(always)]
    fn u32(value: u32) -> u32 {
        value.to_be()
    }

    #[inline(always)]
    fn u64(value: u64) -> u64 {
        value.to_be()
    }

    #[inline(always)]
    fn desc_rest(word: u64) -> u64 {
        // The length comes first, so that it is at the top of what is now a number.
        let word = word.to_be();
        word >> 32 | (word >> 16 & 0xffff) << 32 | word << 48
    }
}

//! Where one side of a packed ring is.

/// A descriptor of a packed ring, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Descriptors since the first one at which the wrap counter was 1: tells one round of the ring from another.
    pub(super) count: u64,
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Place {
    /// The place in a ring of this size, which is not zero.
    pub(super) fn at(count: u64, size: u16) -> Place {
        let size = u64::from(size.max(1));
        Place {
            count,
            index: (count % size) as u16,
            wrap: (count / size).is_multiple_of(2),
        }
    }

    /// The place `descs` descriptors on; no more of them than the ring has.
    #[inline(always)]
    pub(super) fn step(self, descs: u16, size: u16) -> Place {
        debug_assert!(descs <= size && self.index < size);
        let index = self.index + descs;
        Place {
            count: self.count + u64::from(descs),
            index: if index < size { index } else { index - size },
            wrap: self.wrap ^ (index >= size),
        }
    }

    /// Index and wrap counter in one word, as event suppression structures and the front-end have it.
    #[inline(always)]
    pub(super) fn word(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// The place `descs` descriptors before.
    pub(super) fn back(self, descs: u16, size: u16) -> Place {
        // Two rounds on is the same place.
        let count = self.count + 2 * u64::from(size);
        Place::at(count.saturating_sub(descs.into()), size)
    }

    /// What a word says, unless its index is beyond the ring.
    pub(super) fn from_word(word: u16, size: u16) -> Option<Place> {
        Place::new(word & 0x7fff, word >> 15 == 1, size)
    }

    /// The place with this index and wrap counter, unless the index is beyond the ring.
    pub(super) fn new(index: u16, wrap: bool, size: u16) -> Option<Place> {
        (index < size).then(|| Place {
            count: u64::from(index) + if wrap { 0 } else { size.into() },
            index,
            wrap,
        })
    }
}

/// Where a ring starts, or has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base {
    /// The next chain: chains of a split ring, descriptors of a packed one.
    pub(crate) avail: u64,
    /// The next used descriptor of a packed ring; a split one has that in guest memory.
    pub(crate) used: u64,
}

impl Base {
    /// As in SET_VRING_BASE of a split ring, whose index has 16 bits; what front-ends put above them has no meaning.
    pub(crate) fn split(num: u32) -> Base {
        Base {
            avail: u64::from(num as u16),
            used: 0,
        }
    }

    /// As in SET_VRING_BASE of a packed ring; `None` if one of the indexes is beyond the ring.
    pub(crate) fn packed(num: u32, size: u16) -> Option<Base> {
        Some(Base {
            avail: Place::from_word(num as u16, size)?.count,
            used: Place::from_word((num >> 16) as u16, size)?.count,
        })
    }

    /// As GET_VRING_BASE has it for a split ring.
    pub(crate) fn split_word(self) -> u32 {
        u32::from(self.avail as u16)
    }

    /// As GET_VRING_BASE has it for a packed ring.
    pub(crate) fn packed_word(self, size: u16) -> u32 {
        let word = |count| u32::from(Place::at(count, size).word());
        word(self.avail) | word(self.used) << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrap_counter_changes_at_the_rings_end() {
        let mut place = Place::at(0, 3);
        let mut words = Vec::new();
        for count in 0..7 {
            assert_eq!(place, Place::at(count, 3));
            words.push(place.word());
            place = place.step(1, 3);
        }
        let wrapped = [0x8000, 0x8001, 0x8002, 0, 1, 2, 0x8000];
        assert_eq!(words, wrapped);
        assert_eq!(Place::at(2, 3).step(3, 3), Place::at(5, 3));
        assert_eq!(
            Place::at(32767, 32768).step(32768, 32768),
            Place::at(65535, 32768)
        );
    }

    #[test]
    fn a_base_is_what_it_was_made_from() {
        for (word, size) in [
            (0x8000_8000, 1),
            (0, 5),
            (0x0003_8002, 5),
            (0x8004_0004, 5),
            (0xffff_7fff, 32768),
        ] {
            let base = Base::packed(word, size).expect("inside");
            assert_eq!(base.packed_word(size), word);
        }
        for word in [5, 0x8005, 0x0005_0000, 0x8005_8000, 0xffff_ffff] {
            assert_eq!(Base::packed(word, 5), None, "{word:#x}");
        }
        assert_eq!(Base::default().packed_word(7), 0x8000_8000);
        assert_eq!(Base::split(0xffff_1234).split_word(), 0x1234);
    }
}

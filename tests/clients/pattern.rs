//! A disk content in which every block says where it belongs and who wrote it.

/// Bytes in a block of the pattern.
pub const BLOCK: usize = 4096;

/// Each 8-byte word of a block depends on the seed, the block's index and the word's place, so a
/// block at the wrong place, an old one, or a torn one is seen.
#[derive(Clone, Copy)]
pub struct Pattern {
    pub seed: u64,
}

impl Pattern {
    pub fn block(&self, index: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut word = self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for bytes in block.chunks_exact_mut(8) {
            bytes.copy_from_slice(&word.to_le_bytes());
            word = word.wrapping_add(0x0001_0001_0001_0001);
        }
        block
    }

    /// Panics when `bytes` is not block `index` of this pattern.
    #[track_caller]
    pub fn verify(&self, index: u64, bytes: &[u8]) {
        let expected = self.block(index);
        if bytes == expected {
            return;
        }
        let at = expected.iter().zip(bytes).position(|(a, b)| a != b);
        panic!(
            "block {index}, seed {:#x}: differs from byte {at:?} on, {} bytes compared",
            self.seed,
            bytes.len()
        );
    }
}

/// The numbers below `count`, each once, neighbours far apart. `count` is a power of two.
pub fn scattered(count: u64) -> impl Iterator<Item = u64> {
    assert!(count.is_power_of_two(), "{count} is not a power of two");
    // An odd factor is a bijection modulo a power of two.
    (0..count).map(move |i| i.wrapping_mul(0x9e37_79b1) & (count - 1))
}

//! The state of a scripted device: bytes that only their place in it gives, of any length.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use vu_server::{Error, Result};

use super::device::lock;

#[derive(Default)]
pub struct StateScript {
    /// Bytes of the whole state.
    size: AtomicU64,
    /// The device's error, from this byte on.
    fails: Mutex<Option<(u64, i32)>>,
    loaded: AtomicU64,
}

impl StateScript {
    pub fn resize(&self, size: u64) {
        // Relaxed: the test orders it before the transfer.
        self.size.store(size, Ordering::Relaxed);
    }

    pub fn fail_from(&self, offset: u64, errno: i32) {
        *lock(&self.fails) = Some((offset, errno));
    }

    /// Bytes that the newest load has brought.
    pub fn loaded(&self) -> u64 {
        self.loaded.load(Ordering::Relaxed)
    }

    fn check(&self, offset: u64) -> Result<()> {
        match *lock(&self.fails) {
            Some((from, errno)) if offset >= from => Err(Error::new(errno, "as scripted")),
            _ => Ok(()),
        }
    }

    pub(super) fn save(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.check(offset)?;
        let left = self.size.load(Ordering::Relaxed) - offset;
        let count = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        write(offset, &mut buffer[..count]);
        Ok(count)
    }

    pub(super) fn load(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset)?;
        if offset == 0 {
            self.loaded.store(0, Ordering::Relaxed);
        }
        assert_eq!(offset, self.loaded(), "offset of a piece");
        let loaded = offset + bytes.len() as u64;
        self.loaded.store(loaded, Ordering::Relaxed);
        if !is_state(offset, bytes) {
            return Err(Error::new(libc::EBADMSG, "not the state"));
        }
        if bytes.is_empty() && offset != self.size.load(Ordering::Relaxed) {
            return Err(Error::new(libc::ENODATA, "state: truncated"));
        }
        Ok(())
    }
}

/// Repeats in steps that no piece has.
fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let byte = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    TABLE.get_or_init(|| (0..65_521).map(byte).collect())
}

/// The parts of the table that the bytes from `offset` on are made of.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let mut at = (offset % table().len() as u64) as usize;
    let mut left = len;
    std::iter::from_fn(move || {
        let part = &table()[at..];
        let part = &part[..part.len().min(left)];
        at = 0;
        left -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

/// The bytes from `offset` on.
pub fn write(offset: u64, buffer: &mut [u8]) {
    let mut at = 0;
    for part in parts(offset, buffer.len()) {
        buffer[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

/// Whether these are the bytes from `offset` on.
pub fn is_state(offset: u64, bytes: &[u8]) -> bool {
    let mut at = 0;
    parts(offset, bytes.len()).all(|part| {
        let same = bytes[at..at + part.len()] == *part;
        at += part.len();
        same
    })
}

//! The log of guest pages that this back-end has written to (vhost-user specification, "Migration").

use std::os::fd::BorrowedFd;

use super::MemoryPolicy;
use super::area::SharedArea;
use crate::error::Result;
use crate::sync::{Arc, AtomicU8, AtomicU64, Ordering};

/// What one bit stands for.
const PAGE: u64 = 4096;
/// Pages in a word of the log, and bytes of it.
const WORD_PAGES: u64 = 64;
const WORD_BYTES: usize = 8;

/// One bit for each guest-physical page, in memory shared with the front-end, which takes them out while they are set.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    area: SharedArea,
    /// Counts pages written to that the log has no bit for.
    lost: Arc<AtomicU64>,
}

impl DirtyLog {
    /// # Errors
    /// As [`SharedArea::map`].
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        policy: MemoryPolicy,
        lost: Arc<AtomicU64>,
    ) -> Result<DirtyLog> {
        let area = SharedArea::map("dirty log", fd, offset, size, policy)?;
        Ok(DirtyLog { area, lost })
    }

    /// Marks the pages of `len` bytes at `gpa`, after they were written. Those behind the log's end are counted.
    pub(crate) fn mark(&self, gpa: u64, len: u64) {
        let Some(more) = len.checked_sub(1) else {
            return;
        };
        let (first, last) = (gpa / PAGE, gpa.saturating_add(more) / PAGE);
        let pages = self.area.size() as u64 * 8;
        let end = pages.min(last + 1);
        if end <= last {
            self.lost
                .fetch_add(last + 1 - end.max(first), Ordering::Relaxed);
        }
        let mut page = first;
        while page < end {
            let (word, bit) = (page / WORD_PAGES, page % WORD_PAGES);
            let count = (WORD_PAGES - bit).min(end - page);
            self.set(word as usize, (u64::MAX >> (WORD_PAGES - count)) << bit);
            page += count;
        }
    }

    /// Sets the bits of a word, which may be cut off by the log's end.
    ///
    /// Always an atomic OR, also when the bits are set already: it is the barrier between the write to the page and the
    /// front-end's look at it. Release pairs with the exchange by which the front-end takes the bits out.
    fn set(&self, word: usize, bits: u64) {
        let at = word * WORD_BYTES;
        // SAFETY: aligned to a page and more than `at` bytes long, as `mark` has checked.
        let bytes = unsafe { self.area.base().add(at) };
        if self.area.size() - at >= WORD_BYTES {
            // SAFETY: the whole word is inside.
            let word = unsafe { &*bytes.cast::<AtomicU64>() };
            word.fetch_or(bits.to_le(), Ordering::Release);
            return;
        }
        for (index, byte) in bits.to_le_bytes().into_iter().enumerate() {
            if byte != 0 {
                // SAFETY: a bit is only set for a page that the log has, and its byte is inside then.
                let place = unsafe { &*bytes.add(index).cast::<AtomicU8>() };
                place.fetch_or(byte, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsFd;

    fn log(size: u64) -> DirtyLog {
        let fd = memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, size as i64).unwrap();
        DirtyLog::map(
            fd.as_fd(),
            0,
            size,
            MemoryPolicy::default(),
            Arc::new(AtomicU64::new(0)),
        )
        .unwrap()
    }

    fn lost(log: &DirtyLog) -> u64 {
        log.lost.load(Ordering::Relaxed)
    }

    /// The pages that are marked.
    fn marked(log: &DirtyLog) -> Vec<u64> {
        (0..log.area.size() as u64 * 8)
            .filter(|page| {
                // SAFETY: inside of the log.
                let byte = unsafe { *log.area.base().add((page / 8) as usize) };
                byte >> (page % 8) & 1 == 1
            })
            .collect()
    }

    #[test]
    fn each_page_that_a_byte_lies_in_is_marked() {
        for (gpa, len, pages) in [
            (0, 0, vec![]),
            (0x1fff, 1, vec![1]),
            (0x1fff, 2, vec![1, 2]),
            (0x2000, 0x1000, vec![2]),
            (0x3f000, 0x3000, (63..66).collect()),
            (0, 200 * 0x1000, (0..200).collect()),
        ] {
            let log = log(64);
            log.mark(gpa, len);
            assert_eq!(marked(&log), pages, "{gpa:#x} {len:#x}");
            assert_eq!(lost(&log), 0);
        }
    }

    #[test]
    fn marks_add_up() {
        let log = log(8);
        log.mark(0x5000, 1);
        log.mark(0x7000, 1);
        log.mark(0x5000, 1);
        assert_eq!(marked(&log), [5, 7]);
    }

    #[test]
    fn what_is_behind_the_end_is_counted_and_touches_nothing() {
        // Eleven bytes: a whole word, and three bytes of the next.
        let log = log(11);
        log.mark(86 * PAGE, 4 * PAGE);
        assert_eq!(marked(&log), [86, 87]);
        assert_eq!(lost(&log), 2);
        log.mark(1000 * PAGE, 1);
        log.mark(u64::MAX, 2);
        assert_eq!(marked(&log), [86, 87]);
        assert_eq!(lost(&log), 4);
    }
}

//! Marking what is written to guest memory, while the front-end wants to know.
//!
//! A table says where writes are logged, and a completion marks by what the newest table says, also if its element was
//! popped over an older one. The front-end's request is acknowledged when every queue's publication knows the new log and
//! no pop or write to a used ring uses an older table. A completion in the owner's half compares generations: if it
//! finds its own still the current one, what the device wrote was there before the barrier in
//! [`TableCell::publish`](crate::memory::TableCell::publish), so before the acknowledgement.

use crate::error::{Error, Result};
use crate::memory::{DirtyLog, RegionTable, Regions};
use crate::sync::{Arc, Ordering};
use crate::virtqueue::slot::{Elem, Slot};
use crate::virtqueue::used::UsedLog;

use super::epoch::Epoch;
use super::{NOT_LOGGED, Private, Queue};

impl Queue {
    /// Where the dirty log has the first byte of the used ring, if writes to it are to be logged.
    pub(super) fn used_log_base(&self) -> Option<u64> {
        // Relaxed: a new table follows every change.
        let base = self.used_log_base.load(Ordering::Relaxed);
        (base != NOT_LOGGED).then_some(base)
    }

    /// The internal thread, before it publishes a table or offers the ring.
    pub(crate) fn set_used_log_base(&self, base: Option<u64>) {
        self.used_log_base
            .store(base.unwrap_or(NOT_LOGGED), Ordering::Relaxed);
    }

    pub(super) fn used_log(&self, table: &RegionTable) -> Option<UsedLog> {
        let (log, base) = (table.log()?.clone(), self.used_log_base()?);
        Some(UsedLog { log, base })
    }

    /// The internal thread, when no pop uses an older table than this one: completions mark in its log from here on.
    pub(crate) fn follow_log(&self, table: &RegionTable) {
        self.publication
            .lock()
            .set_log(table.log(), self.used_log_base());
    }

    /// Marks what a completion in the owner's half wrote.
    #[cold]
    #[inline(never)]
    pub(super) fn mark_staged(&self, private: &Private, elem: &Elem, written: u32) {
        let current = self.server.table.current();
        if let (Some(log), Some(table)) = (current.log(), &private.table) {
            mark(log, table.regions(), elem, 0, written as usize);
        }
    }

    /// Says that the device wrote to bytes of a live element that its completion does not cover.
    ///
    /// # Safety
    /// `slot` is live, and nobody completes it meanwhile.
    pub(crate) unsafe fn mark_dirty(
        &self,
        slot: *const Slot,
        offset: usize,
        len: usize,
    ) -> Result<()> {
        // SAFETY: the caller's promise; a live element keeps its epoch.
        let (elem, epoch) = unsafe { (&(*slot).elem, &*(*slot).epoch.cast::<Epoch>()) };
        if offset
            .checked_add(len)
            .is_none_or(|end| end > elem.in_len as usize)
        {
            let text = format!("bytes {offset}, {len}: the element has {}", elem.in_len);
            return Err(Error::new(libc::ERANGE, text));
        }
        let log = self.publication.lock().log().cloned();
        if let Some(log) = log {
            mark(&log, &epoch.regions, elem, offset, len);
            self.server.signal_log();
        }
        Ok(())
    }
}

/// Marks `len` device-writable bytes from `offset` on.
pub(super) fn mark(log: &Arc<DirtyLog>, regions: &Regions, elem: &Elem, offset: usize, len: usize) {
    elem.walk_in(offset, len, |host, len| {
        // A buffer lies in one region, or it would be several.
        if let Some(gpa) = regions.host_to_gpa(host) {
            log.mark(gpa, len as u64);
        }
    });
}

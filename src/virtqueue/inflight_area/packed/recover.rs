//! What a predecessor has left in a region.

use super::tracker::Books;
use super::{
    COUNTER_AT, ENTRIES_AT, FREE_AT, ID_AT, LAST_AT, NEXT_AT, NUM_AT, OLD_FREE_AT, OLD_USED_AT,
    OLD_WRAP_AT, PackedRegion, RecoveredChain, USED_AT, VERSION_AT, WRAP_AT,
};
use crate::virtqueue::inflight_area::VERSION;
use crate::virtqueue::packed_areas::is_available;
use crate::virtqueue::place::{Base, Place};
use crate::virtqueue::ring_error::RingError;

/// What a predecessor has left.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// In the order in which they were popped.
    pub(crate) chains: Vec<RecoveredChain>,
    /// Where the next used descriptor goes.
    pub(in crate::virtqueue) used: Place,
    /// Where the driver's next descriptor is that nobody has popped.
    pub(in crate::virtqueue) next: Place,
    /// Somebody has used the region: it is its word that counts, not the front-end's.
    pub(crate) is_used: bool,
    pub(super) books: Books,
}

/// Which entries are in the list of free ones or in a chain, each once.
struct Taken(Vec<bool>);

impl Taken {
    fn take(&mut self, entry: u16) -> bool {
        let first = self.0.get_mut(usize::from(entry));
        first.is_some_and(|taken| !std::mem::replace(taken, true))
    }
}

impl PackedRegion {
    /// Reads what a predecessor has left and makes the region this back-end's. A region that nobody has used begins with
    /// `base`, where the front-end says that the ring goes on; one that somebody has used knows better. Nothing in there is
    /// trusted but as what it says of requests of the guest's own.
    ///
    /// `flags(index)` is the flags of the ring's descriptor there.
    ///
    /// # Errors
    /// A field that no back-end writes.
    pub(crate) fn recover(
        &self,
        ring_size: u16,
        base: Base,
        flags: impl Fn(u16) -> u16,
    ) -> Result<Recovered, RingError> {
        if ring_size > self.0.entries {
            return Err(bad("entries", self.0.entries));
        }
        match self.head(VERSION_AT).load() {
            0 => Ok(self.begin(ring_size, base)),
            VERSION => self.take_over(ring_size, flags),
            version => Err(bad("version", version)),
        }
    }

    /// Everything is free.
    fn begin(&self, ring_size: u16, base: Base) -> Recovered {
        let entries = self.0.entries;
        (0..entries).for_each(|entry| self.in_flight(entry).store(0));
        let mut books = Books::new(ring_size, entries);
        self.write_free_list(&mut books, &(0..entries).collect::<Vec<_>>());
        let [used, next] = [base.used, base.avail].map(|count| Place::at(count, ring_size));
        self.set_place(USED_AT, WRAP_AT, used);
        self.set_place(OLD_USED_AT, OLD_WRAP_AT, used);
        self.head(ENTRIES_AT).store(entries);
        self.head(VERSION_AT).store(VERSION);
        Recovered {
            chains: Vec::new(),
            used,
            next,
            is_used: false,
            books,
        }
    }

    fn take_over(
        &self,
        ring_size: u16,
        flags: impl Fn(u16) -> u16,
    ) -> Result<Recovered, RingError> {
        let entries = self.head(ENTRIES_AT).load();
        if entries != self.0.entries {
            return Err(bad("desc_num", entries));
        }
        let used = self.settle(ring_size, flags)?;
        let mut taken = Taken(vec![false; entries.into()]);
        let (mut free, ends) = self.free_entries(&mut taken);
        let mut books = Books::new(ring_size, entries);
        let (mut chains, mut total) = (Vec::new(), 0);
        for head in self.marked() {
            let chain = self.read_chain(head, ring_size - total, &mut books, &mut taken)?;
            // Not above the ring's size, which the chain was held to.
            total += chain.descs.len() as u16;
            chains.push(chain);
        }
        let listed = free.len();
        free.extend((0..entries).filter(|&entry| !taken.0[usize::from(entry)]));
        if ends && free.len() == listed {
            books.set_free(&free);
        } else {
            // Entries are lost, or the list ends where it should not.
            self.write_free_list(&mut books, &free);
        }
        Ok(Recovered {
            chains,
            used,
            next: used.step(total, ring_size),
            is_used: true,
            books,
        })
    }

    /// Completes or takes back what a predecessor was returning, and says where the next used descriptor goes.
    fn settle(&self, ring_size: u16, flags: impl Fn(u16) -> u16) -> Result<Place, RingError> {
        let place = |field, index_at, wrap_at| {
            let index = self.head(index_at).load();
            let wrap = self.wrap(wrap_at).load() != 0;
            Place::new(index, wrap, ring_size).ok_or_else(|| bad(field, index))
        };
        let new = place("used_idx", USED_AT, WRAP_AT)?;
        let old = place("old_used_idx", OLD_USED_AT, OLD_WRAP_AT)?;
        // A batch of as many descriptors as the ring has changes nothing but the wrap counter.
        if new != old && !is_available(flags(old.index), old.wrap) {
            self.head(OLD_FREE_AT).store(self.head(FREE_AT).load());
            self.set_place(OLD_USED_AT, OLD_WRAP_AT, new);
            Ok(new)
        } else {
            self.head(FREE_AT).store(self.head(OLD_FREE_AT).load());
            self.set_place(USED_AT, WRAP_AT, old);
            Ok(old)
        }
    }

    /// The list of free entries, the marks of which are cleared, and whether it ends as it should.
    fn free_entries(&self, taken: &mut Taken) -> (Vec<u16>, bool) {
        let mut free = Vec::new();
        let mut entry = self.head(OLD_FREE_AT).load();
        while taken.take(entry) {
            self.in_flight(entry).store(0);
            free.push(entry);
            entry = self.word(entry, NEXT_AT).load();
        }
        (free, entry >= self.0.entries)
    }

    /// Entries that say that they are the first of a chain in flight, in the order of their counters.
    fn marked(&self) -> Vec<u16> {
        let mut marked: Vec<(u64, u16)> = (0..self.0.entries)
            .filter(|&entry| self.in_flight(entry).load() != 0)
            .map(|entry| (self.long(entry, COUNTER_AT).load(), entry))
            .collect();
        marked.sort_unstable();
        marked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The chain at an entry, which has `room` descriptors at most.
    fn read_chain(
        &self,
        head: u16,
        room: u16,
        books: &mut Books,
        taken: &mut Taken,
    ) -> Result<RecoveredChain, RingError> {
        let count = self.word(head, NUM_AT).load();
        if count == 0 || count > room {
            return Err(bad("num", count));
        }
        let mut entries = Vec::with_capacity(count.into());
        let mut entry = head;
        for _ in 0..count {
            if !taken.take(entry) {
                return Err(bad("next", entry));
            }
            entries.push(entry);
            entry = self.word(entry, NEXT_AT).load();
        }
        let last = self.word(head, LAST_AT).load();
        if entries.last() != Some(&last) {
            return Err(bad("last", last));
        }
        let id = self.word(last, ID_AT).load();
        let counter = self.long(head, COUNTER_AT).load();
        if !books.recovered(id, &entries, counter) {
            return Err(bad("id", id));
        }
        let descs = entries.into_iter().map(|entry| self.desc(entry)).collect();
        Ok(RecoveredChain { id, descs })
    }

    /// These entries are free, in this order.
    fn write_free_list(&self, books: &mut Books, free: &[u16]) {
        books.set_free(free);
        for &entry in free {
            self.word(entry, NEXT_AT).store(books.next(entry));
        }
        self.head(FREE_AT).store(books.free());
        self.head(OLD_FREE_AT).store(books.free());
    }
}

fn bad(field: &'static str, value: u16) -> RingError {
    RingError::InflightArea { field, value }
}

//! Keeping a region true while the ring runs.

use super::{
    COUNTER_AT, FREE_AT, LAST_AT, NEXT_AT, NUM_AT, OLD_FREE_AT, OLD_USED_AT, OLD_WRAP_AT,
    PackedRegion, Recovered, StoredDesc, USED_AT, VERSION_AT, WRAP_AT,
};
use crate::virtqueue::place::Place;

/// Which entries belong to what, in private memory.
#[derive(Debug)]
pub(super) struct Books {
    ring_size: u16,
    /// By entry: the next one of its chain, or of the list of free ones, which ends with the number of entries.
    next: Vec<u16>,
    free: u16,
    /// By id.
    chains: Vec<Option<Chain>>,
    /// The next chain's number.
    counter: u64,
}

/// Entries of a chain that is in flight.
#[derive(Clone, Copy, Debug)]
struct Chain {
    head: u16,
    last: u16,
    count: u16,
    /// A predecessor had popped it.
    recovered: bool,
}

impl Books {
    /// Nothing in flight and nothing free.
    pub(super) fn new(ring_size: u16, entries: u16) -> Books {
        Books {
            ring_size,
            next: vec![entries; entries.into()],
            free: entries,
            chains: vec![None; ring_size.into()],
            counter: 0,
        }
    }

    /// The list of free entries is this.
    pub(super) fn set_free(&mut self, free: &[u16]) {
        self.free = self.next.len() as u16;
        for &entry in free.iter().rev() {
            self.next[usize::from(entry)] = self.free;
            self.free = entry;
        }
    }

    pub(super) fn next(&self, entry: u16) -> u16 {
        self.next[usize::from(entry)]
    }

    pub(super) fn free(&self) -> u16 {
        self.free
    }

    /// A chain that was in flight before. False for an id that is none, or another chain's.
    pub(super) fn recovered(&mut self, id: u16, entries: &[u16], counter: u64) -> bool {
        let (Some(place @ None), [head, ..], Some(&last)) = (
            self.chains.get_mut(usize::from(id)),
            entries,
            entries.last(),
        ) else {
            return false;
        };
        for pair in entries.windows(2) {
            self.next[usize::from(pair[0])] = pair[1];
        }
        *place = Some(Chain {
            head: *head,
            last,
            count: entries.len() as u16,
            recovered: true,
        });
        self.counter = counter.wrapping_add(1);
        true
    }

    fn chain(&self, id: u16) -> Option<Chain> {
        self.chains.get(usize::from(id)).copied().flatten()
    }
}

/// Guarded by the queue's publication lock.
#[derive(Debug)]
pub(crate) struct PackedTracker {
    region: PackedRegion,
    books: Books,
    /// The next chain that nobody has popped, and where the next used descriptor goes.
    next: Place,
    used: Place,
}

impl PackedTracker {
    /// The chains of `recovered` are in flight, and popped again without a word to this.
    pub(crate) fn new(region: PackedRegion, recovered: Recovered) -> PackedTracker {
        PackedTracker {
            region,
            books: recovered.books,
            next: recovered.next,
            used: recovered.used,
        }
    }

    /// A chain was popped that takes `count` descriptors of the ring from where the last one has ended; `desc` reads them.
    /// One that a predecessor had popped stays as it is.
    pub(crate) fn popped(&mut self, id: u16, count: u16, desc: impl Fn(u16) -> StoredDesc) {
        let Self { region, books, .. } = self;
        let Some(place @ None) = books.chains.get_mut(usize::from(id)) else {
            return;
        };
        let (head, ring_size) = (books.free, books.ring_size);
        let (mut entry, mut last, mut noted) = (head, head, 0);
        let mut at = self.next;
        for _ in 0..count {
            // Only a guest that breaks the rules has more descriptors in flight than the ring.
            let Some(&next) = books.next.get(usize::from(entry)) else {
                break;
            };
            region.set_desc(entry, desc(at.index));
            (last, entry, noted) = (entry, next, noted + 1);
            at = at.step(1, ring_size);
        }
        self.next = self.next.step(count.min(ring_size), ring_size);
        let count = noted;
        if count == 0 {
            return;
        }
        *place = Some(Chain {
            head,
            last,
            count,
            recovered: false,
        });
        region.word(head, NUM_AT).store(count);
        region.word(head, LAST_AT).store(last);
        region.long(head, COUNTER_AT).store(books.counter);
        region.in_flight(head).store(1);
        books.counter = books.counter.wrapping_add(1);
        books.free = entry;
        region.head(FREE_AT).store(entry);
        // From here on it counts: before that, the entries are free ones, whatever they say.
        region.head(OLD_FREE_AT).store(entry);
    }

    /// A chain was put back, the newest one. One that a predecessor had popped stays in flight.
    pub(crate) fn unpopped(&mut self, id: u16) {
        if self.books.chain(id).is_none_or(|chain| chain.recovered) {
            return;
        }
        if let Some(chain) = self.list_as_free(id) {
            self.books.chains[usize::from(id)] = None;
            self.next = self.next.back(chain.count, self.books.ring_size);
            // From here on it does not count any more.
            self.region.head(OLD_FREE_AT).store(chain.head);
            self.region.in_flight(chain.head).store(0);
        }
    }

    /// The entries of a chain become the first free ones, for those who follow `free_head`.
    fn list_as_free(&mut self, id: u16) -> Option<Chain> {
        let Self { region, books, .. } = self;
        let chain = books.chain(id)?;
        region.word(chain.last, NEXT_AT).store(books.free);
        region.head(FREE_AT).store(chain.head);
        books.next[usize::from(chain.last)] = books.free;
        books.free = chain.head;
        Some(chain)
    }

    /// Before the ring says that these chains are returned.
    pub(crate) fn before_publication(&mut self, ids: impl IntoIterator<Item = u16>) {
        for id in ids {
            if let Some(chain) = self.list_as_free(id) {
                self.used = self.used.step(chain.count, self.books.ring_size);
            }
        }
        self.region.set_place(USED_AT, WRAP_AT, self.used);
    }

    /// After it has said so.
    pub(crate) fn after_publication(&mut self, ids: impl IntoIterator<Item = u16>) {
        for id in ids {
            let chain = self.books.chains.get_mut(usize::from(id));
            if let Some(chain) = chain.and_then(Option::take) {
                self.region.in_flight(chain.head).store(0);
            }
        }
        self.region.head(OLD_FREE_AT).store(self.books.free);
        self.region.set_place(OLD_USED_AT, OLD_WRAP_AT, self.used);
    }

    /// The ring was stopped and the front-end knows where. With nothing in flight the region is as if nobody had used it:
    /// a ring that is started over it next begins where the front-end says.
    pub(crate) fn stopped(self) {
        if self.books.chains.iter().all(Option::is_none) {
            self.region.head(VERSION_AT).store(0);
        }
    }
}

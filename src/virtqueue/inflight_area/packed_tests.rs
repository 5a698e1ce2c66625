//! Regions of packed rings as a predecessor, a bug or an enemy leaves them.

use std::cell::Cell;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::memory::MemoryPolicy;
use crate::virtqueue::packed_areas::{AVAIL, USED};
use crate::virtqueue::place::Base;
use crate::virtqueue::ring_error::RingError;

const SIZE: u16 = 5;
const START: Place = Place {
    count: 0,
    index: 0,
    wrap: true,
};

thread_local! {
    /// Stores until this thread's back-end dies; what it stores then is lost.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

pub(super) fn is_alive() -> bool {
    LEFT.with(|left| {
        let alive = left.get() > 0;
        left.set(left.get().saturating_sub(1));
        alive
    })
}

fn is_dead() -> bool {
    LEFT.with(|left| left.get() == 0)
}

/// Does this and dies after some stores. True if it had nothing left to do.
fn dying(stores: usize, work: impl FnOnce()) -> bool {
    LEFT.with(|left| left.set(stores));
    work();
    LEFT.with(|left| left.replace(usize::MAX)) > 0
}

fn region() -> PackedRegion {
    let bytes = PackedRegion::size(SIZE) as u64;
    let fd = memfd_create(c"inflight", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, bytes as i64).unwrap();
    let area = SharedArea::map("area", fd.as_fd(), 0, bytes, MemoryPolicy::default()).unwrap();
    PackedRegion::new(&Arc::new(area), 0, SIZE).unwrap()
}

impl PackedRegion {
    fn bytes(&self) -> Vec<u8> {
        let len = PackedRegion::size(self.0.entries);
        // SAFETY: the region has this size, and no other thread knows it.
        unsafe { std::slice::from_raw_parts(self.0.area.base(), len) }.to_vec()
    }

    fn set_bytes(&self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: no longer than the region.
            unsafe { self.0.area.base().add(at).write(*byte) };
        }
    }
}

fn desc(id: u16, number: u16) -> StoredDesc {
    StoredDesc {
        addr: 0x1000 * u64::from(id) + u64::from(number),
        len: 512 + u32::from(number),
        id,
        flags: 1,
    }
}

fn descs(id: u16, count: u16) -> Vec<StoredDesc> {
    (0..count).map(|number| desc(id, number)).collect()
}

/// A ring with a driver and this back-end, which dies.
#[derive(Clone)]
struct World {
    size: u16,
    flags: Vec<u16>,
    /// Ids and descriptors of all chains so far.
    made: Vec<(u16, u16)>,
    made_to: Place,
    popped: usize,
    /// By chain.
    returned: Vec<bool>,
    used: Place,
}

impl World {
    fn new(size: u16) -> Self {
        World {
            size,
            flags: vec![0; size.into()],
            made: Vec::new(),
            made_to: START,
            popped: 0,
            returned: Vec::new(),
            used: START,
        }
    }

    /// The driver makes a chain available, and waits for ever once nobody returns any.
    fn make(&mut self, id: u16, count: u16) {
        if is_dead() {
            return;
        }
        self.made.push((id, count));
        self.returned.push(false);
        for _ in 0..count {
            let flags = if self.made_to.wrap { AVAIL } else { USED };
            self.flags[usize::from(self.made_to.index)] = flags;
            self.made_to = self.made_to.step(1, self.size);
        }
    }

    /// Pops the next chain.
    fn pop(&mut self, tracker: &mut PackedTracker) {
        if is_dead() {
            return;
        }
        let (id, count) = self.made[self.popped];
        let first: u16 = self.made[..self.popped].iter().map(|made| made.1).sum();
        self.popped += 1;
        let size = self.size;
        tracker.popped(id, count, |index| {
            let number = (0..count).find(|number| (first + number) % size == index);
            desc(id, number.expect("a descriptor of this chain"))
        });
    }

    fn unpop(&mut self, tracker: &mut PackedTracker) {
        if is_dead() {
            return;
        }
        self.popped -= 1;
        tracker.unpopped(self.made[self.popped].0);
    }

    /// Returns a batch: its first descriptor is written last, and all of it counts with that.
    fn give_back(&mut self, tracker: &mut PackedTracker, chains: &[usize]) {
        if is_dead() {
            return;
        }
        let ids = || chains.iter().map(|&chain| self.made[chain].0);
        tracker.before_publication(ids());
        if is_alive() {
            let mut position = self.used;
            for &chain in chains {
                let used = if position.wrap { AVAIL | USED } else { 0 };
                self.flags[usize::from(position.index)] = used;
                position = position.step(self.made[chain].1, self.size);
            }
            self.used = position;
            for &chain in chains {
                self.returned[chain] = true;
            }
        }
        let ids = chains.iter().map(|&chain| self.made[chain].0);
        tracker.after_publication(ids);
    }

    /// The driver uses all the room that it has: it does not know that nobody is there.
    fn fill(&mut self) {
        loop {
            let out = || (0..self.made.len()).filter(|&chain| !self.returned[chain]);
            let taken: u16 = out().map(|chain| self.made[chain].1).sum();
            let id = (0..self.size).find(|id| out().all(|chain| self.made[chain].0 != *id));
            match id {
                Some(id) if taken < self.size => self.make(id, 1),
                _ => return,
            }
        }
    }

    fn recover(&self, region: &PackedRegion) -> Recovered {
        let flags = |index| self.flags[usize::from(index)];
        region.recover(self.size, Base::default(), flags).unwrap()
    }

    /// Each chain up to `recovered.next` is in flight or was returned, and no other one is. How many that are.
    fn check(&self, recovered: &Recovered) -> usize {
        assert_eq!(recovered.used.word(), self.used.word(), "used");
        let mut next = START;
        let mut popped = 0;
        let mut in_flight = Vec::new();
        // Chains that were returned may lie anywhere before it.
        while self.returned[popped..].contains(&true) || next.word() != recovered.next.word() {
            let (id, count) = self.made[popped];
            if !self.returned[popped] {
                in_flight.push((id, descs(id, count)));
            }
            next = next.step(count, self.size);
            popped += 1;
        }
        let got = recovered.chains.iter();
        let got: Vec<_> = got.map(|chain| (chain.id, chain.descs.clone())).collect();
        assert_eq!(got, in_flight);
        popped
    }
}

fn tracker(region: &PackedRegion, world: &World) -> PackedTracker {
    PackedTracker::new(region.clone(), world.recover(region))
}

/// Something of everything: batches, chains of several descriptors, out of order, over the ring's end, put back, and a batch
/// of the whole ring.
fn life(world: &mut World, tracker: &mut PackedTracker) {
    for (id, count) in [(0, 2), (3, 1), (1, 2)] {
        world.make(id, count);
    }
    world.pop(tracker);
    world.pop(tracker);
    world.pop(tracker);
    world.unpop(tracker);
    world.give_back(tracker, &[1]);
    world.pop(tracker);
    world.give_back(tracker, &[2, 0]);
    // Five in all, from the start of the second lap.
    world.make(4, 5);
    world.pop(tracker);
    world.give_back(tracker, &[3]);
    for (id, count) in [(2, 1), (0, 1), (4, 2), (1, 1)] {
        world.make(id, count);
        world.pop(tracker);
    }
    world.give_back(tracker, &[6, 4, 7]);
    world.make(4, 3);
    world.pop(tracker);
    world.give_back(tracker, &[8]);
    world.unpop_and_end(tracker);
}

impl World {
    /// One more that is popped, put back and popped again.
    fn unpop_and_end(&mut self, tracker: &mut PackedTracker) {
        self.make(1, 2);
        self.pop(tracker);
        self.unpop(tracker);
        self.pop(tracker);
    }
}

#[test]
fn the_layout_is_the_specifications() {
    assert_eq!(PackedRegion::size(128), 32 + 32 * 128 + 32);
    let region = region();
    let mut world = World::new(SIZE);
    let mut tracker = tracker(&region, &world);
    world.make(3, 2);
    world.make(1, 1);
    world.pop(&mut tracker);
    world.pop(&mut tracker);
    world.give_back(&mut tracker, &[1]);
    let bytes = region.bytes();
    assert_eq!(bytes[0..8], [0; 8], "features");
    for (at, value) in [(8, 1u16), (10, SIZE), (12, 2), (14, 2), (16, 1), (18, 1)] {
        assert_eq!(bytes[at..at + 2], value.to_ne_bytes(), "field at {at}");
    }
    assert_eq!(bytes[20..22], [1, 1], "wrap counters");
    let entry = |index: usize| &bytes[32 + 32 * index..][..32];
    assert_eq!((entry(0)[0], entry(2)[0]), (1, 0), "in flight");
    for (at, value) in [(2, 1u16), (4, 1), (6, 2)] {
        assert_eq!(entry(0)[at..at + 2], value.to_ne_bytes(), "next, last, num");
    }
    assert_eq!(entry(2)[8..16], 1u64.to_ne_bytes(), "counter");
    assert_eq!(entry(2)[2..4], 3u16.to_ne_bytes(), "next of a free one");
    assert_eq!(entry(1)[16..18], 3u16.to_ne_bytes(), "id");
    assert_eq!(entry(1)[18..20], 1u16.to_ne_bytes(), "flags");
    assert_eq!(entry(1)[20..24], 513u32.to_ne_bytes(), "length");
    assert_eq!(entry(1)[24..32], 0x3001u64.to_ne_bytes(), "address");
}

/// Killed after each store: what was popped is in flight, returned, or in the ring; once.
#[test]
fn whoever_dies_loses_and_doubles_nothing() {
    let mut stores = 0;
    loop {
        let region = region();
        let mut world = World::new(SIZE);
        let mut first = tracker(&region, &world);
        let whole = dying(stores, || life(&mut world, &mut first));
        world.fill();
        let recovered = world.recover(&region);
        world.popped = world.check(&recovered);
        // It goes on where that one has ended, and everything is free in the end.
        let mut second = PackedTracker::new(region.clone(), recovered);
        while world.popped < world.made.len() {
            world.pop(&mut second);
        }
        let left: Vec<usize> = (0..world.made.len())
            .filter(|&chain| !world.returned[chain])
            .collect();
        left.iter()
            .for_each(|&chain| world.give_back(&mut second, &[chain]));
        let end = world.recover(&region);
        assert!(end.chains.is_empty(), "{stores}: {:?}", end.chains);
        let made_to = world.made_to.word();
        assert_eq!((end.next.word(), end.used.word()), (made_to, made_to));
        let (free, ends) = free_list(&region);
        assert_eq!(
            (free.len(), ends),
            (SIZE.into(), true),
            "{stores}: {free:?}"
        );
        if whole {
            assert!(stores > 100, "{stores} stores");
            return;
        }
        stores += 1;
    }
}

fn free_list(region: &PackedRegion) -> (Vec<u16>, bool) {
    let mut free = Vec::new();
    let mut entry = region.head(OLD_FREE_AT).load();
    while entry < SIZE && free.len() < SIZE.into() {
        free.push(entry);
        entry = region.word(entry, NEXT_AT).load();
    }
    (free, entry == SIZE)
}

/// Killed after each store of its own life and of its successor's recovery.
#[test]
fn whoever_dies_while_taking_over_leaves_it_to_the_next() {
    for stores in 0.. {
        let region = region();
        let mut world = World::new(SIZE);
        let mut first = tracker(&region, &world);
        let whole = dying(stores, || life(&mut world, &mut first));
        world.fill();
        let left = region.bytes();
        for more in 0.. {
            region.set_bytes(&left);
            let flags = |index| world.flags[usize::from(index)];
            let recovered = dying(more, || {
                // The dead do not see their own stores, and what they conclude is nobody's business.
                let _ = region.recover(SIZE, Base::default(), flags);
            });
            world.check(&world.recover(&region));
            if recovered {
                break;
            }
        }
        if whole {
            return;
        }
    }
}

#[test]
fn a_region_that_nobody_has_used_begins_where_the_front_end_says() {
    let base = Base { avail: 8, used: 8 };
    // Killed at any time, too, and whatever was in there before.
    for stores in 0.. {
        let region = region();
        for entry in 0..SIZE {
            region.in_flight(entry).store(1);
        }
        let whole = dying(stores, || {
            region.recover(SIZE, base, |_| 0).unwrap();
        });
        let recovered = region.recover(SIZE, base, |_| 0).unwrap();
        let places = (recovered.used.word(), recovered.next.word());
        assert_eq!(places, (3, 3));
        assert!(recovered.chains.is_empty());
        if whole {
            break;
        }
    }
}

#[test]
fn one_that_somebody_has_used_knows_better_until_that_one_stops() {
    let region = region();
    let mut world = World::new(SIZE);
    let mut first = tracker(&region, &world);
    world.make(0, 3);
    world.make(1, 1);
    world.pop(&mut first);
    world.give_back(&mut first, &[0]);
    let stale = region.recover(SIZE, Base::default(), |_| 0).unwrap();
    assert_eq!((stale.used.index, stale.next.index), (3, 3));
    // One in flight is kept, whoever stops.
    world.pop(&mut first);
    first.stopped();
    let mut second = tracker(&region, &world);
    assert_eq!(world.recover(&region).chains.len(), 1);
    world.give_back(&mut second, &[1]);
    second.stopped();
    let base = Base { avail: 6, used: 6 };
    let fresh = region.recover(SIZE, base, |_| 0).unwrap();
    assert_eq!((fresh.used.word(), fresh.is_used), (1, false));
}

#[test]
fn a_chain_that_is_popped_again_stays_as_it_is() {
    let region = region();
    let mut world = World::new(SIZE);
    let mut first = tracker(&region, &world);
    world.make(2, 2);
    world.make(4, 1);
    world.pop(&mut first);
    world.pop(&mut first);
    let mut second = tracker(&region, &world);
    let before = region.bytes();
    second.popped(2, 1, |number| desc(2, number));
    assert_eq!(region.bytes(), before);
}

#[test]
fn ids_and_descriptors_that_cannot_be_are_not_noted() {
    let region = region();
    let mut tracker = tracker(&region, &World::new(SIZE));
    let before = region.bytes();
    tracker.popped(SIZE, 1, |number| desc(SIZE, number));
    tracker.popped(0, 0, |number| desc(0, number));
    tracker.unpopped(0xffff);
    tracker.after_publication([SIZE, 2]);
    assert_eq!(region.bytes(), before);
    // More than there is room for.
    tracker.popped(1, SIZE + 3, |number| desc(1, number));
    tracker.popped(2, 1, |number| desc(2, number));
    let chains = World::new(SIZE).recover(&region).chains;
    assert_eq!(
        (chains.len(), chains[0].descs.len()),
        (1, usize::from(SIZE))
    );
}

/// A region with chains of ids 2 and 4 in flight, at entries 0, 1 and 2.
fn used_region() -> (PackedRegion, World) {
    let region = region();
    let mut world = World::new(SIZE);
    let mut tracker = tracker(&region, &world);
    world.make(2, 2);
    world.make(4, 1);
    world.pop(&mut tracker);
    world.pop(&mut tracker);
    (region, world)
}

#[test]
fn fields_that_no_back_end_writes_are_refused() {
    type Spoil = fn(&PackedRegion, u16);
    let cases: [(&str, u16, Spoil); 14] = [
        ("version", 7, |r, v| r.head(VERSION_AT).store(v)),
        ("desc_num", SIZE - 1, |r, v| r.head(ENTRIES_AT).store(v)),
        ("used_idx", SIZE, |r, v| r.head(USED_AT).store(v)),
        ("old_used_idx", 0xffff, |r, v| r.head(OLD_USED_AT).store(v)),
        ("num", 0, |r, v| r.word(0, NUM_AT).store(v)),
        ("num", SIZE + 1, |r, v| r.word(0, NUM_AT).store(v)),
        ("num", 0xffff, |r, v| r.word(2, NUM_AT).store(v)),
        // A cycle, outside of the region, another chain's, a free one.
        ("next", 0, |r, v| r.word(0, NEXT_AT).store(v)),
        ("next", SIZE, |r, v| r.word(0, NEXT_AT).store(v)),
        ("next", 3, |r, v| r.word(0, NEXT_AT).store(v)),
        ("last", 4, |r, v| r.word(0, LAST_AT).store(v)),
        ("last", 0xffff, |r, v| r.word(2, LAST_AT).store(v)),
        ("id", SIZE, |r, v| r.word(1, ID_AT).store(v)),
        ("id", 2, |r, v| r.word(2, ID_AT).store(v)),
    ];
    for (field, value, spoil) in cases {
        let (region, world) = used_region();
        spoil(&region, value);
        let flags = |index| world.flags[usize::from(index)];
        let error = region.recover(SIZE, Base::default(), flags).unwrap_err();
        assert_eq!(error, RingError::InflightArea { field, value });
    }
    let error = region()
        .recover(SIZE + 1, Base::default(), |_| 0)
        .unwrap_err();
    let entries = RingError::InflightArea {
        field: "entries",
        value: SIZE,
    };
    assert_eq!(error, entries);
}

#[test]
fn more_descriptors_in_flight_than_the_ring_has_are_refused() {
    let region = region();
    let mut tracker = tracker(&region, &World::new(SIZE));
    tracker.popped(0, 2, |number| desc(0, number));
    tracker.popped(1, 1, |number| desc(1, number));
    let error = region.recover(2, Base::default(), |_| 0).unwrap_err();
    let num = RingError::InflightArea {
        field: "num",
        value: 1,
    };
    assert_eq!(error, num);
}

#[test]
fn lists_of_free_entries_that_go_astray_are_written_anew() {
    for (entry, next) in [(3, 3), (4, 3), (3, 0xffff), (3, SIZE), (4, 0xffff)] {
        let (region, world) = used_region();
        region.word(entry, NEXT_AT).store(next);
        world.check(&world.recover(&region));
        let (free, _) = free_list(&region);
        assert_eq!(free, [3, 4], "{entry} -> {next}");
        // And so is a list that begins nowhere.
        region.head(OLD_FREE_AT).store(0xffff);
        world.check(&world.recover(&region));
        assert_eq!(free_list(&region), (vec![3, 4], true));
    }
}

#[test]
fn a_list_of_free_entries_decides_what_is_in_flight() {
    let (region, mut world) = used_region();
    // As whoever pops leaves it before it counts.
    region.head(OLD_FREE_AT).store(2);
    let recovered = world.recover(&region);
    world.popped = world.check(&recovered);
    assert_eq!(world.popped, 1);
    assert_eq!(region.in_flight(2).load(), 0);
}

#[test]
fn counters_that_say_nothing_and_wrap() {
    let (region, world) = used_region();
    for entry in [0, 2] {
        region.long(entry, COUNTER_AT).store(u64::MAX);
    }
    let recovered = world.recover(&region);
    let ids: Vec<u16> = recovered.chains.iter().map(|chain| chain.id).collect();
    assert_eq!(ids, [2, 4]);
    let mut tracker = PackedTracker::new(region.clone(), recovered);
    tracker.popped(0, 1, |number| desc(0, number));
    assert_eq!(region.long(3, COUNTER_AT).load(), 0);
}

/// Anything at all in there is an error or something that a tracker can go on with.
#[test]
fn noise() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut good = 0;
    for _ in 0..20_000 {
        let (region, world) = used_region();
        let mut bytes = region.bytes();
        for _ in 0..random() % 6 {
            let at = (random() % bytes.len() as u64) as usize;
            // Small numbers are the ones that get far.
            bytes[at] = (random() % if random() % 2 == 0 { 8 } else { 256 }) as u8;
        }
        region.set_bytes(&bytes);
        let flags = |index| world.flags[usize::from(index)];
        let Ok(recovered) = region.recover(SIZE, Base::default(), flags) else {
            continue;
        };
        good += 1;
        let total: usize = recovered.chains.iter().map(|chain| chain.descs.len()).sum();
        assert!(total <= SIZE.into());
        assert!(recovered.next.index < SIZE);
        let ids: Vec<u16> = recovered.chains.iter().map(|chain| chain.id).collect();
        let mut tracker = PackedTracker::new(region.clone(), recovered);
        tracker.before_publication(ids.iter().copied());
        tracker.after_publication(ids);
        for id in 0..SIZE {
            tracker.popped(id, 1, |number| desc(id, number));
        }
        let again = region.recover(SIZE, Base::default(), |_| 0).unwrap();
        assert_eq!(again.chains.len(), usize::from(SIZE));
    }
    assert!(good > 1000, "{good} regions could be used");
}

#[test]
fn regions_are_inside_of_the_area() {
    let area = region().0.area;
    assert!(PackedRegion::new(&area, 1, SIZE).is_none());
    assert!(PackedRegion::new(&area, usize::MAX, SIZE).is_none());
    assert!(PackedRegion::new(&area, 0, 32768).is_none());
}

//! A guest that rewrites everything while it is read. Whatever comes out lies in guest memory.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;

const ROUNDS: u32 = 30_000;

/// A small generator: the racing thread must be fast.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A descriptor that is often good, and often nearly.
    fn desc(&mut self, entries: u64) -> Raw {
        let pick = self.next();
        let addr = match pick % 8 {
            0 => HIGH - pick / 8 % 64,
            1 => HIGH + HIGH_SIZE - pick / 8 % 64,
            2 => self.next(),
            3 => DATA + pick / 8 % 4 * 16,
            _ => DATA + pick / 8 % PAGE,
        };
        let len = if pick & (1 << 20) == 0 {
            self.next() % 64
        } else {
            self.next() % 8 * 16
        };
        (
            addr,
            len as u32,
            (self.next() % 8) as u16,
            (self.next() % (entries + 1)) as u16,
        )
    }
}

/// Words that the guest rewrites, as atomics: the race is the guest's.
struct Shared<'a>(&'a Rig);

// SAFETY: the racing thread touches guest memory only, through atomics.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn describe(&self, table: u64, index: u64, (addr, len, flags, next): Raw) {
        let host = self.0.host(table + 16 * index, 16).cast::<AtomicU64>();
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        // SAFETY: 16 bytes of guest memory, aligned.
        unsafe {
            (*host).store(addr, Ordering::Relaxed);
            (*host.add(1)).store(rest, Ordering::Relaxed);
        }
    }
}

/// Checks that every byte of the element's buffers is guest memory; the check of the sums is `Rig::buffers`'.
fn inspect(rig: &Rig, slot: *mut Slot) {
    let buffers = rig.buffers(slot);
    assert!(buffers.len() <= 1024);
    for (gpa, len, write) in buffers {
        if write && len > 0 {
            // SAFETY: the first byte of a buffer that is inside a region.
            unsafe { rig.host(gpa, len).write_volatile(1) };
        }
    }
}

#[test]
fn descriptors_that_change_while_they_are_read_stay_inside() {
    const SIZE: u16 = 8;
    let guest = Rig::new(SIZE, BOTH);
    let stop = AtomicBool::new(false);
    let shared = Shared(&guest);
    let shared = &shared;
    let (good, bad) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            while !stop.load(Ordering::Relaxed) {
                let at = random.next();
                let desc = random.desc(SIZE.into());
                shared.describe(DESC, at % u64::from(SIZE), desc);
                let desc = random.desc(8);
                shared.describe(DATA, at / 8 % 8, desc);
            }
        });
        let (mut good, mut bad) = (0, 0);
        for round in 0..ROUNDS {
            // A ring each, since most of them break.
            let mut ring = SplitRing::<Little>::new(guest.areas, BOTH, 0);
            let mut pool = SlotPool::new(SIZE, 0);
            let mut out = [ptr::null_mut(); 4];
            let entry = AVAIL + 4;
            guest
                .word(entry)
                .store((round % 9) as u16, Ordering::Relaxed);
            guest.avail_index().store(1, Ordering::Relaxed);
            match ring.pop(&guest.table, &mut pool, guest.stamp(), &mut out) {
                Ok(count) => {
                    good += 1;
                    out[..count].iter().for_each(|&slot| inspect(&guest, slot));
                }
                Err(error) => {
                    bad += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        (good, bad)
    });
    // Both must have happened, or the test tests nothing.
    assert!(good > 100 && bad > 100, "{good} good, {bad} bad");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any bytes at all in table, indirect table and available ring.
    #[test]
    fn any_ring_is_popped_or_refused(
        seed in 1..u64::MAX,
        heads in prop::collection::vec(0..10u16, 1..12),
        index in prop_oneof![9 => 1..9u16, 1 => any::<u16>()],
        start in any::<u16>(),
    ) {
        let mut random = Random(seed);
        let mut rig = Rig::starting_at(8, BOTH, start);
        let shared = Shared(&rig);
        for at in 0..8 {
            shared.describe(DESC, at, random.desc(8));
            shared.describe(DATA, at, random.desc(8));
        }
        for head in heads {
            rig.offer(head);
        }
        rig.avail_index().store(start.wrapping_add(index), Ordering::Relaxed);
        let mut popped = Vec::new();
        let mut last = None;
        for _ in 0..10 {
            match rig.pop(3) {
                Ok(slots) if slots.is_empty() => break,
                Ok(slots) => popped.extend(slots),
                Err(error) => {
                    prop_assert!(last.is_none_or(|last| last == error), "an error stays");
                    last = Some(error);
                }
            }
        }
        let mut live: Vec<u16> = popped.iter().map(|&slot| rig.head(slot)).collect();
        popped.iter().for_each(|&slot| inspect(&rig, slot));
        live.sort_unstable();
        let count = live.len();
        live.dedup();
        prop_assert_eq!(live.len(), count, "a head is live twice");
        rig.complete(&popped, 0);
    }
}

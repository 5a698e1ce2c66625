//! A guest that writes anything. Whatever comes out lies in guest memory.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::sync::AtomicU64;

/// A small generator: the racing thread must be fast.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A descriptor that is often good, and often nearly.
    fn desc(&mut self) -> Raw {
        let pick = self.next();
        let addr = match pick % 8 {
            0 => HIGH - pick / 8 % 64,
            1 => HIGH + SIZE - pick / 8 % 64,
            2 => self.next(),
            _ => DATA + pick / 8 % 64 * 16,
        };
        let len = if pick & (1 << 20) == 0 {
            self.next() % 64
        } else {
            self.next() % 8 * 16
        };
        let owner = [AVAIL, USED, AVAIL, USED, 0][(self.next() % 5) as usize];
        let flags = (self.next() % 8) as u16 | owner;
        (addr, len as u32, (self.next() % 9) as u16, flags)
    }
}

/// Words that the guest rewrites, as atomics: the race is the guest's.
struct Shared<'a>(&'a Rig);

// SAFETY: the racing thread touches guest memory only, through atomics.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn describe(&self, table: u64, index: u64, (addr, len, id, flags): Raw) {
        let host = self.0.host(table + 16 * index, 16).cast::<AtomicU64>();
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        // SAFETY: 16 bytes of guest memory, aligned.
        unsafe {
            (*host).store(addr, Ordering::Relaxed);
            (*host.add(1)).store(rest, Ordering::Relaxed);
        }
    }
}

#[test]
fn descriptors_that_change_while_they_are_read_stay_inside() {
    const ENTRIES: u16 = 7;
    let guest = Rig::new(ENTRIES, BOTH);
    let stop = AtomicBool::new(false);
    let shared = Shared(&guest);
    let shared = &shared;
    let (good, bad) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            while !stop.load(Ordering::Relaxed) {
                let at = random.next();
                shared.describe(DESC, at % u64::from(ENTRIES), random.desc());
                shared.describe(DATA, at / 8 % 8, random.desc());
            }
        });
        let (mut good, mut bad) = (0, 0);
        for round in 0..30_000 {
            // A ring each, since most of them break.
            let mut ring = PackedRing::new(guest.areas, BOTH, round % 14);
            let mut pool = SlotPool::new(ENTRIES, 0);
            let stamp = Stamp {
                queue: ptr::null(),
                epoch: ptr::null(),
            };
            let mut out = [ptr::null_mut(); 4];
            match ring.pop(&guest.table, &mut pool, stamp, &mut out) {
                Ok(count) => {
                    good += count;
                    for &slot in &out[..count] {
                        assert!(guest.buffers(slot).len() <= 1024);
                        // SAFETY: popped and not released.
                        let elem = UsedElem::of(unsafe { &*slot }, 0);
                        assert!((1..=ENTRIES).contains(&elem.descs()));
                    }
                }
                Err(error) => {
                    bad += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
            ring.rearm();
        }
        stop.store(true, Ordering::Relaxed);
        (good, bad)
    });
    // Both must have happened, or the test tests nothing.
    assert!(good > 100 && bad > 100, "{good} good, {bad} bad");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any bytes at all in ring and table.
    #[test]
    fn any_ring_is_popped_or_refused(seed in 1..u64::MAX, size in 1..9u16, start in 0..40u64) {
        let mut random = Random(seed);
        let mut rig = Rig::starting_at(size, BOTH, start);
        let shared = Shared(&rig);
        for at in 0..size {
            shared.describe(DESC, at.into(), random.desc());
            shared.describe(DATA, at.into(), random.desc());
        }
        let (mut popped, mut last) = (Vec::new(), None);
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
        let mut live: Vec<u16> = popped.iter().map(|&slot| rig.id(slot)).collect();
        for &slot in &popped {
            rig.buffers(slot);
        }
        live.sort_unstable();
        let count = live.len();
        live.dedup();
        prop_assert_eq!(live.len(), count, "an id is live twice");
        rig.complete(&popped, 0);
        prop_assert_eq!(rig.used.returned(), rig.ring.popped());
    }
}

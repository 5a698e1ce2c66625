//! Where elements live: reuse, returns from other threads, unpop, long chains.

use std::collections::HashSet;
use std::thread;

use super::super::super::slot::state;
use super::*;

#[test]
fn slots_are_reused_last_in_first_out() {
    let mut rig = Rig::new(256, NEITHER);
    rig.offer_one(0);
    let first = rig.pop_one();
    rig.complete(&[first], 0);
    for head in 1..100 {
        rig.offer_one(head);
        let slot = rig.pop_one();
        assert_eq!(slot, first);
        rig.complete(&[slot], 0);
    }
}

#[test]
fn a_popped_element_is_stamped() {
    let mut rig = Rig::starting_at(8, NEITHER, 0xffff);
    for (head, seq) in [(3, 0xffff), (4, 0x1_0000)] {
        rig.offer_one(head);
        let slot = rig.pop_one();
        // SAFETY: popped and not released.
        let slot = unsafe { &*slot };
        assert_eq!(
            (slot.head(), slot.state(), slot.seq()),
            (head, state::LIVE, seq)
        );
        let stamp = rig.stamp();
        assert_eq!((slot.queue, slot.epoch), (stamp.queue, stamp.epoch));
        slot.set_state(state::STAGED);
        assert_eq!(
            (slot.head(), slot.state(), slot.seq()),
            (head, state::STAGED, seq)
        );
        let address = slot.elem.priv_;
        assert!(address.addr() % 16 == 0 && !address.is_null());
        // SAFETY: 40 bytes of the application's own.
        let own = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), 40) };
        assert!(own.iter().all(|&byte| byte == 0));
    }
    assert_eq!(rig.ring.last_avail(), 1);
}

#[test]
fn the_whole_ring_can_be_outstanding() {
    let mut rig = Rig::new(256, NEITHER);
    for head in 0..256 {
        rig.offer_one(head);
    }
    let popped = rig.pop(1000).expect("pop");
    assert_eq!(popped.iter().collect::<HashSet<_>>().len(), 256);
    for &slot in &popped {
        let head = u64::from(rig.head(slot));
        assert_eq!(rig.buffers(slot), [(DATA + 64 * head, 64, true)]);
    }
    // One more index than the ring has entries: all heads are outstanding.
    rig.offer(0);
    rig.pop(1).expect_err("more than the ring");
}

#[test]
fn slots_come_back_from_other_threads() {
    let mut rig = Rig::new(128, NEITHER);
    let mut seen = HashSet::new();
    for round in 0..50u16 {
        for head in 0..128 {
            rig.offer_one(head);
        }
        let popped = rig.pop(128).expect("pop");
        assert_eq!(popped.len(), 128, "round {round}");
        seen.extend(popped.iter().map(|slot| slot.addr()));
        let returns = rig.pool.returns();
        let batches: Vec<Vec<usize>> = popped
            .chunks(1 + usize::from(round) % 7)
            .map(|batch| batch.iter().map(|slot| slot.expose_provenance()).collect())
            .collect();
        thread::scope(|scope| {
            for batches in batches.chunks(batches.len().div_ceil(4)) {
                scope.spawn(move || {
                    for batch in batches {
                        let slots: Vec<*mut Slot> = batch
                            .iter()
                            .map(|&slot| ptr::with_exposed_provenance_mut(slot))
                            .collect();
                        // SAFETY: popped, and each released once.
                        unsafe { returns.release(&slots) };
                    }
                });
            }
        });
        let published: Vec<UsedElem> = (0..128).map(|head| UsedElem::new(head, 0)).collect();
        rig.used.publish(&published);
    }
    assert_eq!(seen.len(), 128, "never more slots than ring entries");
}

#[test]
fn the_newest_elements_can_be_put_back() {
    let mut rig = Rig::new(8, NEITHER);
    for head in 0..6 {
        rig.offer_one(head);
    }
    let popped = rig.pop(6).expect("pop");
    let mut unpop = |slots: &[*mut Slot]| {
        // SAFETY: popped from this ring.
        unsafe { rig.ring.unpop(&mut rig.pool, slots) }
    };
    assert_eq!(unpop(&[popped[4]]), Err(NotNewest), "not the newest");
    assert_eq!(
        unpop(&[popped[5], popped[4]]),
        Err(NotNewest),
        "not in pop order"
    );
    assert_eq!(unpop(&[popped[3], popped[5]]), Err(NotNewest), "a gap");
    assert_eq!(unpop(&[]), Ok(()));
    assert_eq!(unpop(&popped[3..]), Ok(()));
    assert_eq!(rig.ring.last_avail(), 3);
    let again = rig.pop(8).expect("again");
    assert_eq!(
        again.iter().map(|&slot| rig.head(slot)).collect::<Vec<_>>(),
        [3, 4, 5]
    );
    rig.complete(&again[2..], 0);
    // SAFETY: popped from this ring; the last one is not live any more, which is what is tested.
    assert_eq!(
        unsafe { rig.ring.unpop(&mut rig.pool, &again) },
        Err(NotNewest)
    );
}

#[test]
fn unpop_works_on_all_of_a_full_ring_across_the_wrap() {
    let mut rig = Rig::starting_at(4, NEITHER, 0xfffe);
    for head in 0..4 {
        rig.offer_one(head);
    }
    for _ in 0..3 {
        let popped = rig.pop(4).expect("pop");
        assert_eq!(popped.len(), 4);
        // SAFETY: popped from this ring and not used afterwards.
        assert_eq!(unsafe { rig.ring.unpop(&mut rig.pool, &popped) }, Ok(()));
        assert_eq!(rig.ring.last_avail(), 0xfffe);
    }
}

#[test]
fn long_chains_use_blocks_again_and_again() {
    let mut rig = Rig::new(64, BOTH);
    for round in 0..2000u16 {
        let entries = 9 + round % 500;
        for index in 0..entries {
            let flags = if index + 1 < entries { NEXT } else { 0 };
            let addr = DATA + (1 << 16) + u64::from(index) * 8;
            rig.describe_at(DATA, index, (addr, 8, flags, index + 1));
        }
        rig.describe(0, (DATA, u32::from(entries) * 16, INDIRECT, 0));
        rig.offer(0);
        rig.offer_one(1);
        let popped = rig.pop(2).expect("within the budget");
        let buffers = rig.buffers(popped[0]);
        assert_eq!(buffers.len(), usize::from(entries));
        assert!(
            (0u64..)
                .zip(buffers)
                .all(|(i, b)| b == (DATA + (1 << 16) + i * 8, 8, false))
        );
        assert_eq!(
            rig.buffers(popped[1]).len(),
            1,
            "a slot with no block of another's"
        );
        if round % 2 == 0 {
            rig.complete(&popped, 0);
        } else {
            // SAFETY: popped, and each released once.
            unsafe { rig.pool.returns().release(&popped) };
            rig.used
                .publish(&[UsedElem::new(0, 0), UsedElem::new(1, 0)]);
        }
    }
}

#[test]
fn the_budget_for_long_chains_is_bounded() {
    let mut rig = Rig::new(2048, BOTH);
    for index in 0..2048 {
        let flags = if index < 2047 { NEXT } else { 0 };
        rig.describe_at(DATA, index, (DATA, 1, flags, index + 1));
    }
    for head in 0..2048 {
        rig.describe(head, (DATA, 2048 * 16, INDIRECT, 0));
        rig.offer(head);
    }
    let popped = rig.pop(2048).expect("as many as the budget allows");
    assert!((500..2000).contains(&popped.len()), "{}", popped.len());
    let error = rig.pop(2048).expect_err("the budget");
    assert_eq!(error.errno(), libc::ENOMEM);
    rig.complete(&popped, 0);
}

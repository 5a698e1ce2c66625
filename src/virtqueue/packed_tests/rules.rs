//! What a chain is, where used descriptors go, and what breaks a ring.

use super::*;
use crate::memory::Access;

#[test]
fn a_chain_becomes_an_element_and_one_used_descriptor() {
    for size in [3, 4, 7, 8, 1000, 32768] {
        let start = 3 * u64::from(size) - 2;
        let mut rig = Rig::starting_at(size, NEITHER, start);
        // Around the ring's end; only the last id counts.
        rig.offer(&[
            (DATA, 16, 0xffff, NEXT),
            (DATA + 4096, 512, 0xffff, NEXT | WRITE),
            (DATA + 8192, 1, 2, WRITE),
        ]);
        let slot = rig.pop_one();
        let buffers = [
            (DATA, 16, false),
            (DATA + 4096, 512, true),
            (DATA + 8192, 1, true),
        ];
        assert_eq!((rig.buffers(slot), rig.id(slot)), (buffers.into(), 2));
        assert_eq!(rig.pop(1), Ok(vec![]));
        rig.complete(&[slot], 513);
        // The last round but one of an odd number has the wrap counter 1.
        let place = Place::at(start, size);
        assert_eq!(rig.at(place), (513, 2, AVAIL | USED | WRITE));
        rig.offer_one(0);
        let slot = rig.pop_one();
        rig.complete(&[slot], 0);
        let owner = if Place::at(start + 3, size).wrap {
            AVAIL | USED
        } else {
            0
        };
        assert_eq!(rig.at(Place::at(start + 3, size)), (0, 0, owner));
    }
}

#[test]
fn a_chain_may_be_as_long_as_the_ring() {
    for (size, start) in [(1, 0), (2, 1), (5, 3), (16, 100), (1000, 999)] {
        let mut rig = Rig::starting_at(size, NEITHER, start);
        for _ in 0..3 {
            rig.offer_many(0, size);
            let slot = rig.pop_one();
            assert_eq!(rig.buffers(slot).len(), usize::from(size));
            rig.complete(&[slot], 1);
        }
        assert_eq!(rig.ring.popped(), start + 3 * u64::from(size));
        assert_eq!(rig.used.returned(), rig.ring.popped());
    }
}

#[test]
fn chains_are_returned_in_any_order() {
    let mut rig = Rig::starting_at(10, BOTH, 7);
    for (id, descs) in [(4, 2), (9, 1), (0, 3)] {
        rig.offer_many(id, descs);
    }
    let popped = rig.pop(8).expect("pop");
    let start = Place::at(7, 10);
    rig.complete(&[popped[2]], 5);
    assert_eq!(rig.at(start).1, 0);
    rig.complete(&[popped[0], popped[1]], 6);
    assert_eq!(rig.at(start.step(3, 10)), (6, 4, WRITE));
    assert_eq!(rig.at(start.step(5, 10)), (6, 9, WRITE));
    assert_eq!(rig.used.returned(), 13);
}

#[test]
fn a_batch_goes_around_the_rings_end() {
    let mut rig = Rig::starting_at(6, NEITHER, 4);
    for id in 0..6 {
        rig.offer_one(id);
    }
    let popped = rig.pop(100).expect("pop");
    assert_eq!(popped.len(), 6);
    rig.complete(&popped, 0);
    for id in 0..6u16 {
        let place = Place::at(4 + u64::from(id), 6);
        let owner = if place.wrap { AVAIL | USED } else { 0 };
        assert_eq!(rig.at(place), (0, id, owner));
    }
}

#[test]
fn indirect_tables_are_chains_whose_flags_have_no_meaning() {
    for flags in [0, NEXT, INDIRECT, NEXT | INDIRECT | AVAIL | USED] {
        for table in [DATA + 4096, DATA + 4096 + 4, HIGH - 24] {
            let mut rig = Rig::starting_at(3, BOTH, 2);
            rig.describe_table(
                table,
                &[
                    (DATA, 16, 77, flags),
                    (DATA + 64, 5, 78, flags),
                    (DATA + 128, 6, 79, flags | WRITE),
                ],
            );
            rig.offer(&[(table, 48, 1, INDIRECT | WRITE)]);
            let slot = rig.pop_one();
            let buffers = [
                (DATA, 16, false),
                (DATA + 64, 5, false),
                (DATA + 128, 6, true),
            ];
            assert_eq!((rig.buffers(slot), rig.id(slot)), (buffers.into(), 1));
            assert_eq!(rig.ring.popped(), 3, "one descriptor");
        }
    }
}

impl Rig {
    /// Writes a table byte by byte, since it may lie in both regions.
    fn describe_table(&self, table: u64, descs: &[Raw]) {
        let bytes = descs.iter().flat_map(|&(addr, len, id, flags)| {
            let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
            addr.to_le_bytes().into_iter().chain(rest.to_le_bytes())
        });
        for (gpa, byte) in (table..).zip(bytes) {
            // SAFETY: one byte of guest memory.
            unsafe { self.host(gpa, 1).write(byte) };
        }
    }
}

#[test]
fn bad_indirect_tables_break() {
    let ok = (DATA, 8, 0, 0);
    for (features, chain, part) in [
        (NEITHER, vec![(DATA, 16, 0, INDIRECT)], "not negotiated"),
        (BOTH, vec![(DATA, 16, 0, INDIRECT | NEXT), ok], "both"),
        (
            BOTH,
            vec![(DATA, 8, 0, NEXT), (DATA, 16, 0, INDIRECT)],
            "behind other descriptors",
        ),
        (BOTH, vec![(DATA, 0, 0, INDIRECT)], "length 0"),
        (BOTH, vec![(DATA, 17, 0, INDIRECT)], "length 17"),
        (BOTH, vec![(DATA, 16 * 1025, 0, INDIRECT)], "length 16400"),
        (BOTH, vec![(HIGH + SIZE, 16, 0, INDIRECT)], "not all in"),
    ] {
        Rig::starting_at(8, features, 7).breaks(&chain, part);
    }
}

#[test]
fn bad_chains_break() {
    for (chain, part) in [
        (vec![(DATA, 1, 8, 0)], "id 8 is not below the queue size 8"),
        (vec![(DATA, 1, 0, NEXT), (DATA, 1, 0xffff, 0)], "id 65535"),
        (
            vec![(DATA, 1, 0, WRITE | NEXT), (DATA + 7, 1, 0, 0)],
            "device-readable buffer 0x200007",
        ),
        (vec![(DATA, 1, 0, NEXT); 8], "longer than"),
        (vec![(DATA, 1, 0, NEXT); 2], "descriptor 1, flags"),
        (vec![(u64::MAX - 1, 8, 0, 0)], "wraps"),
        (vec![(0, 0, 0, 0)], "not all in guest memory"),
    ] {
        Rig::starting_at(8, NEITHER, 7).breaks(&chain, part);
    }
    for size in [1, 2, 16, 2048] {
        let chain = vec![(DATA, 1, 0, NEXT | WRITE); size];
        Rig::new(size as u16, NEITHER).breaks(&chain, "longer than");
    }
}

#[test]
fn an_id_is_never_live_twice() {
    let mut rig = Rig::new(8, NEITHER);
    rig.offer_one(5);
    let slot = rig.pop_one();
    rig.breaks(&[(DATA, 1, 5, 0)], "buffer id 5 is outstanding already");
    rig.complete(&[slot], 0);
    let mut rig = Rig::new(8, NEITHER);
    for _ in 0..20 {
        rig.offer_one(5);
        let slot = rig.pop_one();
        rig.complete(&[slot], 0);
    }
}

#[test]
fn good_elements_come_before_the_error_of_a_bad_one() {
    let mut rig = Rig::new(8, NEITHER);
    rig.offer_one(1);
    rig.offer_one(2);
    rig.offer(&[(DATA, 1, 9, 0)]);
    rig.offer_one(3);
    let popped = rig.pop(8).expect("the good ones");
    assert_eq!(popped.len(), 2);
    rig.pop(8).expect_err("the bad one");
    rig.complete(&popped, 0);
    assert_eq!(rig.used.returned(), 2, "what was popped can be completed");
}

#[test]
fn an_unmapped_buffer_can_be_tried_again() {
    let mut rig = Rig::starting_at(5, NEITHER, 4);
    rig.offer_one(1);
    let mut chain = vec![(DATA, 1, 0, NEXT); 10];
    chain.truncate(2);
    chain.push((HIGH, 1, 2, WRITE));
    rig.offer(&chain);
    let low_only = rig.table.with_removed(HIGH, SIZE, HIGH, 2).expect("remove");
    let whole = std::mem::replace(&mut rig.table, low_only);
    assert_eq!(rig.pop(8).map(|slots| slots.len()), Ok(1));
    for _ in 0..2 {
        let error = rig.pop(8).expect_err("unmapped");
        let expected = RingError::Unmapped {
            head: 0,
            addr: HIGH,
            len: 1,
            access: Access::Write,
        };
        assert_eq!((error, rig.ring.popped()), (expected, 5));
    }
    rig.table = whole;
    let slot = rig.pop_one();
    assert_eq!((rig.buffers(slot).len(), rig.id(slot)), (3, 2));
}

#[test]
fn a_failed_long_chain_leaves_nothing_in_its_slot() {
    let mut rig = Rig::new(32, NEITHER);
    let mut chain = vec![(DATA, 1, 0, NEXT); 12];
    chain.push((HIGH + SIZE, 1, 0, 0));
    rig.offer(&chain);
    assert!(rig.pop(1).expect_err("unmapped").is_unmapped());
    rig.describe_at(DESC, 0, (DATA + 7, 9, 0, AVAIL));
    let slot = rig.pop_one();
    assert_eq!(rig.buffers(slot), [(DATA + 7, 9, false)]);
}

#[test]
fn the_newest_elements_can_be_put_back() {
    let mut rig = Rig::starting_at(7, NEITHER, 5);
    for (id, descs) in [(0, 1), (1, 2), (2, 3)] {
        rig.offer_many(id, descs);
    }
    let popped = rig.pop(8).expect("pop");
    // SAFETY: of this ring and pool; those that are put back are not used again.
    unsafe {
        for not_newest in [&popped[..1], &popped[..2], &popped[1..2]] {
            assert_eq!(rig.ring.unpop(&mut rig.pool, not_newest), Err(NotNewest));
        }
        let turned = [popped[2], popped[1]];
        assert_eq!(rig.ring.unpop(&mut rig.pool, &turned), Err(NotNewest));
        (*popped[2]).set_state(state::STAGED);
        assert_eq!(rig.ring.unpop(&mut rig.pool, &popped), Err(NotNewest));
        (*popped[2]).set_state(state::LIVE);
        assert_eq!(rig.ring.popped(), 11);
        assert_eq!(rig.ring.unpop(&mut rig.pool, &popped[1..]), Ok(()));
    }
    assert_eq!(rig.ring.popped(), 6);
    let again = rig.pop(8).expect("pop");
    let ids: Vec<u16> = again.iter().map(|&slot| rig.id(slot)).collect();
    assert_eq!((ids, rig.buffers(again[1]).len()), (vec![1, 2], 3));
}

#[test]
fn the_whole_ring_can_be_outstanding_and_no_more() {
    let mut rig = Rig::new(100, NEITHER);
    for id in 0..100 {
        rig.offer_one(id);
    }
    assert_eq!(rig.pop(1000).map(|slots| slots.len()), Ok(100));
    rig.breaks(&[(DATA, 1, 0, 0)], "more than 100 chains outstanding");
}

#[test]
fn areas_are_checked() {
    let table = guest_memory();
    let host = |gpa| table.translate(gpa, 64).expect("mapped");
    let areas = |desc, driver, device, size| {
        // SAFETY: only checked, never used.
        unsafe { PackedAreas::new(host(desc), host(driver), host(device), size) }.map(|_| ())
    };
    for size in [1, 3, 32767, 32768] {
        assert_eq!(areas(LOW, LOW, LOW, size), Ok(()));
    }
    for size in [0, 32769, 65535] {
        let error = RingError::PackedSize { size };
        assert_eq!(areas(LOW, LOW, LOW, size), Err(error));
    }
    for (desc, driver, device, name) in [
        (8, 0, 0, "descriptor ring"),
        (0, 2, 0, "driver event"),
        (0, 0, 2, "device event"),
    ] {
        let error = areas(LOW + desc, LOW + driver, LOW + device, 8).expect_err("misaligned");
        assert!(error.to_string().contains(name), "{error}");
    }
}

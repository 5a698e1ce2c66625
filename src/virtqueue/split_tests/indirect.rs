//! Indirect tables: where they may lie, how long they may be, and what they may not contain.

use super::*;

#[test]
fn an_indirect_table_is_a_chain() {
    for (table, flags) in [
        (DATA, INDIRECT),
        (DATA + 8, INDIRECT | WRITE),
        (DATA + 4, INDIRECT),
    ] {
        let mut rig = Rig::new(2, BOTH);
        rig.describe(1, (table, 3 * 16, flags, 0xffff));
        rig.describe_at(table, 0, (DATA + PAGE, 16, NEXT, 2));
        rig.describe_at(table, 2, (DATA + 2 * PAGE, 5, NEXT | WRITE, 1));
        rig.describe_at(table, 1, (DATA + 3 * PAGE, 1, WRITE, 0));
        rig.offer(1);
        let slot = rig.pop_one();
        let (a, b, c) = (DATA + PAGE, DATA + 2 * PAGE, DATA + 3 * PAGE);
        assert_eq!(
            rig.buffers(slot),
            [(a, 16, false), (b, 5, true), (c, 1, true)]
        );
    }
}

#[test]
fn an_indirect_table_may_end_a_direct_chain() {
    let mut rig = Rig::new(4, BOTH);
    rig.describe(0, (DATA, 16, NEXT, 1));
    rig.describe(1, (DATA + PAGE, 32, INDIRECT, 0));
    rig.describe_at(DATA + PAGE, 0, (DATA + 16, 16, NEXT, 1));
    rig.describe_at(DATA + PAGE, 1, (DATA + 32, 16, WRITE, 0));
    rig.offer(0);
    let slot = rig.pop_one();
    let expected = [
        (DATA, 16, false),
        (DATA + 16, 16, false),
        (DATA + 32, 16, true),
    ];
    assert_eq!(rig.buffers(slot), expected);
}

#[test]
fn an_indirect_table_over_regions_is_copied() {
    let mut rig = Rig::new(4, BOTH);
    let table = HIGH - 24;
    rig.describe(0, (table, 4 * 16, INDIRECT, 0));
    // The bytes of descriptor 1 lie in both regions.
    let mut bytes = Vec::new();
    for index in 0..4u64 {
        bytes.extend((DATA + 100 * index).to_le_bytes());
        bytes.extend(10u32.to_le_bytes());
        bytes.extend((if index < 3 { NEXT } else { 0 }).to_le_bytes());
        bytes.extend((index as u16 + 1).to_le_bytes());
    }
    for (at, byte) in (table..).zip(bytes) {
        // SAFETY: one byte of guest memory.
        unsafe { rig.host(at, 1).write(byte) };
    }
    rig.offer(0);
    let slot = rig.pop_one();
    let expected: Vec<Buffer> = (0..4)
        .map(|index| (DATA + 100 * index, 10, false))
        .collect();
    assert_eq!(rig.buffers(slot), expected);
}

#[test]
fn bad_indirect_tables_break() {
    let broken = |features, desc: Raw, part: &str| {
        let mut rig = Rig::new(4, features);
        rig.describe_at(DATA, 0, (DATA, 1, 0, 0));
        rig.describe(0, desc);
        rig.breaks(part)
    };
    let direct_only = RingFeatures {
        indirect: false,
        event_idx: true,
        big_endian: false,
    };
    broken(
        direct_only,
        (DATA, 16, INDIRECT, 0),
        "INDIRECT_DESC is not negotiated",
    );
    broken(BOTH, (DATA, 16, INDIRECT | NEXT, 1), "flags 0x5 have both");
    broken(
        BOTH,
        (DATA, 0, INDIRECT, 0),
        "length 0 is not 1 to 1024 times 16",
    );
    broken(BOTH, (DATA, 24, INDIRECT, 0), "length 24");
    broken(BOTH, (DATA, 1025 * 16, INDIRECT, 0), "length 16400");
    broken(BOTH, (DATA, !15, INDIRECT, 0), "length 4294967280");
    broken(BOTH, (u64::MAX - 7, 16, INDIRECT, 0), "wraps");
    let error = broken(BOTH, (LOW - 16, 32, INDIRECT, 0), "0xffff0");
    assert!(error.is_unmapped());
    broken(
        BOTH,
        (HIGH + HIGH_SIZE - 16, 32, INDIRECT, 0),
        "not all in guest memory",
    );
    let mut rig = Rig::new(4, BOTH);
    rig.describe(0, (DATA, 32, INDIRECT, 0));
    rig.describe_at(DATA, 0, (DATA, 1, NEXT, 1));
    rig.describe_at(DATA, 1, (DATA, 16, INDIRECT, 0));
    rig.breaks("inside an indirect table");
}

#[test]
fn an_element_has_a_limited_number_of_buffers() {
    let indirect = |rig: &Rig, entries: u16, addr: u64, len: u32| {
        for index in 0..entries {
            let flags = if index + 1 < entries { NEXT } else { 0 };
            rig.describe_at(DATA, index, (addr, len, flags, index + 1));
        }
        rig.describe(0, (DATA, u32::from(entries) * 16, INDIRECT, 0));
    };
    let mut rig = Rig::new(4, BOTH);
    indirect(&rig, 1024, DATA, 1);
    rig.offer(0);
    let slot = rig.pop_one();
    assert_eq!(rig.buffers(slot).len(), 1024);
    rig.complete(&[slot], 0);
    // Twice as many pieces as descriptors.
    indirect(&rig, 600, HIGH - 1, 2);
    rig.breaks("more than 1024 buffers");
}

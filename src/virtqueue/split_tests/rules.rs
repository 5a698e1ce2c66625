//! Each rule for what a guest may put into a ring, and what happens otherwise.

use super::*;

#[test]
fn a_chain_becomes_an_element() {
    let mut rig = Rig::new(8, NEITHER);
    rig.describe(3, (DATA, 16, NEXT, 5));
    rig.describe(5, (DATA + PAGE, 512, NEXT | WRITE, 0));
    rig.describe(0, (DATA + 3 * PAGE, 1, WRITE, 7));
    rig.offer(3);
    let slot = rig.pop_one();
    let expected = [
        (DATA, 16, false),
        (DATA + PAGE, 512, true),
        (DATA + 3 * PAGE, 1, true),
    ];
    assert_eq!(rig.buffers(slot), expected);
    assert_eq!(rig.pop(1), Ok(vec![]));
    rig.complete(&[slot], 513);
    assert_eq!(rig.last_used(), (1, 3, 513));
}

#[test]
fn a_chain_may_be_as_long_as_the_ring() {
    for size in [1, 2, 4, 8, 16, 256] {
        let mut rig = Rig::new(size, NEITHER);
        for index in 0..size {
            let flags = if index + 1 < size { NEXT } else { 0 };
            rig.describe(index, (DATA + u64::from(index) * 64, 64, flags, index + 1));
        }
        rig.offer(0);
        let slot = rig.pop_one();
        let expected: Vec<Buffer> = (0..size)
            .map(|i| (DATA + u64::from(i) * 64, 64, false))
            .collect();
        assert_eq!(rig.buffers(slot), expected);
        rig.complete(&[slot], 0);
    }
}

#[test]
fn loops_break() {
    let mut rig = Rig::new(4, NEITHER);
    rig.describe(0, (DATA, 1, NEXT, 0));
    rig.breaks("head 0 is longer than its table's 4 descriptors");
    for size in [2, 16, 2048] {
        let mut rig = Rig::new(size, NEITHER);
        rig.describe(0, (DATA, 1, NEXT | WRITE, 1));
        rig.describe(1, (DATA, 1, NEXT | WRITE, 0));
        rig.breaks(&format!("table's {size} descriptors"));
    }
    // Inside an indirect table, behind a direct descriptor.
    let mut rig = Rig::new(64, BOTH);
    rig.describe(0, (DATA, 1, NEXT, 1));
    rig.describe(1, (DATA + PAGE, 48, INDIRECT, 0));
    for index in 0..3 {
        rig.describe_at(DATA + PAGE, index, (DATA, 1, NEXT, (index + 1) % 3));
    }
    rig.breaks("table's 3 descriptors");
}

#[test]
fn indexes_out_of_range_break() {
    let mut rig = Rig::new(4, NEITHER);
    rig.describe(0, (DATA, 1, NEXT, 4));
    rig.breaks("next 4 is not below 4");
    for size in [2, 4, 8, 16, 32, 64, 128, 256, 1024, 32768] {
        let mut rig = Rig::new(size, NEITHER);
        rig.describe(0, (DATA, 1, 0, 0xffff));
        rig.offer(0);
        rig.pop_one();
        rig.offer(size);
        let error = rig.pop(1).expect_err("head");
        let (head, position) = (size, 1);
        assert_eq!(
            error,
            RingError::Head {
                head,
                position,
                size
            }
        );
        assert_eq!(error.errno(), libc::EBADMSG);
    }
    let mut rig = Rig::new(4, BOTH);
    rig.describe(0, (DATA, 32, INDIRECT, 0));
    rig.describe_at(DATA, 0, (DATA, 1, NEXT, 2));
    rig.breaks("next 2 is not below 2");
}

#[test]
fn the_available_index_is_within_the_ring() {
    for start in [0, 0xfff0] {
        let mut rig = Rig::starting_at(16, NEITHER, start);
        rig.avail_index()
            .store(start.wrapping_add(17), Ordering::Relaxed);
        let error = rig.pop(1).expect_err("ahead");
        assert!(
            error
                .to_string()
                .contains(&start.wrapping_add(17).to_string()),
            "{error}"
        );
        assert_eq!(rig.pop(1), Err(error), "for good");
        let mut rig = Rig::starting_at(16, NEITHER, start);
        rig.offer_one(0);
        rig.pop_one();
        rig.avail_index().store(start, Ordering::Relaxed);
        rig.pop(1).expect_err("backwards");
    }
}

#[test]
fn what_was_found_good_is_popped_before_a_bad_index() {
    let mut rig = Rig::new(8, NEITHER);
    for head in 0..4 {
        rig.offer_one(head);
    }
    assert_eq!(rig.pop(1).map(|slots| slots.len()), Ok(1));
    rig.avail_index().store(100, Ordering::Relaxed);
    assert_eq!(rig.pop(8).map(|slots| slots.len()), Ok(3));
    rig.pop(8).expect_err("the index");
    // fetch says the same as pop.
    assert_eq!(rig.ring.fetch(), rig.pop(1).map(|_| 0));
}

#[test]
fn good_elements_come_before_the_error_of_a_bad_one() {
    let mut rig = Rig::new(8, NEITHER);
    rig.offer_one(1);
    rig.offer_one(2);
    rig.describe(3, (DATA, 1, INDIRECT, 0));
    rig.offer(3);
    rig.offer_one(4);
    let popped = rig.pop(8).expect("the good ones");
    assert_eq!(
        popped
            .iter()
            .map(|&slot| rig.head(slot))
            .collect::<Vec<_>>(),
        [1, 2]
    );
    let error = rig.pop(8).expect_err("the bad one");
    assert_eq!(error, RingError::IndirectNotNegotiated { head: 3 });
    // Mending it does not mend the ring.
    rig.describe(3, (DATA, 1, 0, 0));
    assert_eq!(rig.pop(8), Err(error));
    rig.complete(&popped, 0);
    assert_eq!(rig.last_used().0, 2, "what was popped can be completed");
}

#[test]
fn one_head_is_never_live_twice() {
    let mut rig = Rig::new(8, NEITHER);
    rig.offer_one(5);
    rig.offer(5);
    let popped = rig.pop(8).expect("the first");
    assert_eq!(popped.len(), 1);
    let error = rig.pop(8).expect_err("the second");
    assert_eq!(
        error,
        RingError::HeadBusy {
            head: 5,
            position: 1
        }
    );
    let mut rig = Rig::new(8, NEITHER);
    rig.offer_one(5);
    let slot = rig.pop_one();
    rig.complete(&[slot], 0);
    rig.offer(5);
    rig.pop_one();
}

#[test]
fn buffers_must_be_guest_memory() {
    let end = HIGH + HIGH_SIZE;
    let cases = [
        (LOW - 1, 1),
        (LOW - 1, 2),
        (end, 1),
        (end, 0),
        (end - 1, 2),
        (HIGH - 1, HIGH_SIZE as u32 + 2),
        (0, 0),
    ];
    for (addr, len) in cases {
        for flags in [0, WRITE] {
            let mut rig = Rig::new(4, NEITHER);
            rig.describe(0, (addr, len, flags, 0));
            let error = rig.breaks(&format!("address {addr:#x}, length {len:#x}"));
            let access = if flags == 0 {
                Access::Read
            } else {
                Access::Write
            };
            let expected = RingError::Unmapped {
                head: 0,
                addr,
                len,
                access,
            };
            assert_eq!(error, expected);
        }
    }
    let mut rig = Rig::new(4, NEITHER);
    rig.describe(0, (u64::MAX - 4, 8, 0, 0));
    rig.breaks("address 0xfffffffffffffffb + length 0x8 wraps");
}

#[test]
fn an_unmapped_buffer_can_be_tried_again() {
    let mut rig = Rig::new(8, NEITHER);
    rig.offer_one(1);
    rig.describe(2, (DATA, 1, NEXT, 3));
    rig.describe(3, (HIGH, 1, WRITE, 0));
    rig.offer(2);
    rig.offer_one(4);
    let full = guest_memory();
    let low_only = rig
        .table
        .with_removed(HIGH, HIGH_SIZE, HIGH, 2)
        .expect("remove");
    let whole = std::mem::replace(&mut rig.table, low_only);
    assert_eq!(rig.pop(8).map(|slots| slots.len()), Ok(1));
    for _ in 0..2 {
        let error = rig.pop(8).expect_err("unmapped");
        assert_eq!(
            error,
            RingError::Unmapped {
                head: 2,
                addr: HIGH,
                len: 1,
                access: Access::Write,
            }
        );
        assert!(error.is_unmapped());
        assert_eq!(rig.ring.last_avail(), 1);
    }
    rig.table = whole;
    let popped = rig.pop(8).expect("mapped now");
    assert_eq!(rig.buffers(popped[0]), [(DATA, 1, false), (HIGH, 1, true)]);
    assert_eq!(popped.len(), 2);
    drop(full);
}

#[test]
fn a_failed_long_chain_leaves_nothing_in_its_slot() {
    let mut rig = Rig::new(16, NEITHER);
    for index in 0..12 {
        rig.describe(index, (DATA, 1, NEXT, index + 1));
    }
    rig.describe(12, (HIGH + HIGH_SIZE, 1, 0, 0));
    rig.offer(0);
    assert!(rig.pop(1).expect_err("unmapped").is_unmapped());
    rig.describe(0, (DATA + 7, 9, 0, 0));
    let slot = rig.pop_one();
    assert_eq!(rig.buffers(slot), [(DATA + 7, 9, false)]);
}

#[test]
fn a_buffer_over_adjacent_regions_has_two_pieces() {
    let mut rig = Rig::new(4, NEITHER);
    rig.describe(0, (HIGH - 10, 30, 0, 0));
    rig.describe(1, (HIGH - 1, 1 + HIGH_SIZE as u32, WRITE, 0));
    rig.offer(0);
    rig.offer(1);
    let slot = rig.pop_one();
    assert_eq!(
        rig.buffers(slot),
        [(HIGH - 10, 10, false), (HIGH, 20, false)]
    );
    let slot = rig.pop_one();
    assert_eq!(
        rig.buffers(slot),
        [(HIGH - 1, 1, true), (HIGH, HIGH_SIZE, true)]
    );
}

#[test]
fn an_empty_buffer_at_an_address_is_an_empty_iovec() {
    let mut rig = Rig::new(4, NEITHER);
    rig.describe(0, (DATA, 0, NEXT, 1));
    rig.describe(1, (HIGH + HIGH_SIZE - 1, 0, WRITE, 0));
    rig.offer(0);
    let slot = rig.pop_one();
    assert_eq!(
        rig.buffers(slot),
        [(DATA, 0, false), (HIGH + HIGH_SIZE - 1, 0, true)]
    );
}

#[test]
fn lengths_stay_within_32_bits() {
    // 1024 descriptors of 4 MiB less one byte fit; with four bytes more per thousand they do not.
    let mut rig = Rig::new(2048, NEITHER);
    let chain = |rig: &Rig, count: u16, len: u32| {
        for index in 0..count {
            let flags = if index + 1 < count { NEXT } else { 0 };
            rig.describe(index, (LOW, len, flags, index + 1));
        }
    };
    chain(&rig, 1024, (4 << 20) - 1);
    rig.offer(0);
    let slot = rig.pop_one();
    // SAFETY: popped and not released.
    assert_eq!(unsafe { (*slot).elem.out_len }, u32::MAX - 1023);
    rig.complete(&[slot], 0);
    chain(&rig, 1024, 4 << 20);
    rig.breaks("length 0x100000000 does not fit");
}

#[test]
fn lengths_of_few_large_buffers_stay_within_32_bits() {
    const LARGE: u64 = 1 << 30;
    let mut rig = Rig::new(8, NEITHER);
    let fd = memfd_create(c"vu-test", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
    ftruncate(&fd, LARGE as i64).expect("ftruncate");
    let region = RegionDesc {
        gpa: LARGE,
        size: LARGE,
        user_addr: LARGE,
        mmap_offset: 0,
    };
    rig.table = rig
        .table
        .with_added(region, fd.as_fd(), MemoryPolicy::default(), 2)
        .expect("sparse");
    for index in 0..3 {
        rig.describe(index, (LARGE, LARGE as u32, NEXT, index + 1));
    }
    rig.describe(3, (LARGE, LARGE as u32 - 1, WRITE, 0));
    rig.offer(0);
    let slot = rig.pop_one();
    // SAFETY: popped and not released.
    let (out_len, in_len) = unsafe { ((*slot).elem.out_len, (*slot).elem.in_len) };
    assert_eq!((out_len, in_len), (3 << 30, (1 << 30) - 1));
    rig.complete(&[slot], 0);
    rig.describe(3, (LARGE, LARGE as u32, WRITE, 0));
    rig.breaks("length 0x100000000 does not fit");
}

#[test]
fn readable_after_writable_breaks() {
    let mut rig = Rig::new(16, NEITHER);
    rig.describe(0, (DATA, 1, WRITE | NEXT, 1));
    rig.describe(1, (DATA + 7, 1, 0, 0));
    rig.breaks("device-readable buffer 0x300007");
    // Also where the walk is not the plain one any more.
    let mut rig = Rig::new(16, NEITHER);
    for index in 0..12 {
        let write = if index == 10 { WRITE } else { 0 };
        rig.describe(index, (DATA, 1, write | NEXT, index + 1));
    }
    rig.breaks("device-readable buffer");
}

#[test]
fn areas_are_checked() {
    let table = guest_memory();
    let host = |gpa| table.translate(gpa, PAGE).expect("mapped");
    let areas = |desc, avail, used, size| {
        // SAFETY: only checked, never used.
        unsafe { SplitAreas::new(host(desc), host(avail), host(used), size) }.map(|_| ())
    };
    assert_eq!(areas(LOW, LOW, LOW, 8), Ok(()));
    for size in [0, 3, 32769, 65535] {
        assert_eq!(areas(LOW, LOW, LOW, size), Err(RingError::Size { size }));
    }
    for (desc, avail, used, name) in [
        (8, 0, 0, "descriptor table"),
        (0, 1, 0, "available ring"),
        (0, 0, 2, "used ring"),
    ] {
        let error = areas(LOW + desc, LOW + avail, LOW + used, 8).expect_err("misaligned");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn areas_at_one_address_do_no_harm() {
    let table = guest_memory();
    let host = table.translate(LOW, PAGE).expect("mapped");
    // SAFETY: mapped as long as the table lives; what is read is up to the guest anyway.
    let areas = unsafe { SplitAreas::new(host, host, host, 8) }.expect("areas");
    let mut ring = SplitRing::<Little>::new(areas, BOTH, 0);
    let mut used = UsedRing::new(areas, BOTH, 0);
    let mut pool = SlotPool::new(8, 0);
    let stamp = Stamp {
        queue: ptr::null(),
        epoch: ptr::null(),
    };
    let mut out = [ptr::null_mut(); 8];
    for round in 0..64u16 {
        // SAFETY: inside the region.
        unsafe { host.cast::<u16>().add(1).write_volatile(round) };
        if let Ok(count) = ring.pop(&table, &mut pool, stamp, &mut out) {
            for &slot in &out[..count] {
                // SAFETY: popped, and released once.
                unsafe { pool.release(slot) };
                used.publish(&[UsedElem::new(0, 0)]);
            }
        }
        ring.rearm();
    }
    assert!(used.next_index() <= 64);
}

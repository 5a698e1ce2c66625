//! Section F: descriptor chains in indirect tables.

use super::device::SOON;
use super::rig::{desc, run, works};
use super::ring_chain::{Chain, END, NOWHERE, all_break, d, scratch};
use crate::sim::ring::{DESC_INDIRECT as INDIRECT, DESC_NEXT as NEXT, DESC_WRITE as WRITE};
use crate::sim::{Deadline, Desc, Seg, Session};

/// Writes an indirect table somewhere and returns its address.
pub fn table(s: &Session, descs: &[Desc]) -> u64 {
    let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.encode()).collect();
    let gpa = s.memory.alloc(bytes.len().max(16) as u64, 16).unwrap();
    s.memory.write(gpa, &bytes).unwrap();
    gpa
}

#[test]
fn case_75_indirect_tables() {
    all_break("case_75", |s| {
        let ok = scratch(s);
        let one = table(s, &[d(ok, 8, 0, 0)]);
        let many = table(s, &vec![d(ok, 1, NEXT, 1); 1025]);
        let nested = table(s, &[d(one, 16, INDIRECT, 0)]);
        let nested_later = table(s, &[d(ok, 8, NEXT, 1), d(one, 16, INDIRECT, 0)]);
        let outside = table(s, &[d(ok, 8, NEXT, 1)]);
        let looping = table(s, &[d(ok, 8, NEXT, 1), d(ok, 8, NEXT, 0)]);
        let unmapped = table(s, &[d(NOWHERE, 8, 0, 0)]);
        let single = |what, addr, len, flags, reason| Chain {
            what,
            descs: vec![d(addr, len, flags, 0)],
            reason,
        };
        let length = "indirect table length";
        let inside = "is not all in guest memory";
        vec![
            single("empty table", one, 0, INDIRECT, length),
            single("8 bytes", one, 8, INDIRECT, length),
            single("17 bytes", one, 17, INDIRECT, length),
            single("4 GiB", one, u32::MAX, INDIRECT, length),
            single("1025 entries", many, 1025 * 16, INDIRECT, length),
            single("unmapped table", NOWHERE, 16, INDIRECT, inside),
            single("table past the end", END - 16, 32, INDIRECT, inside),
            single("table that wraps", u64::MAX - 15, 32, INDIRECT, ""),
            single(
                "table in a table",
                nested,
                16,
                INDIRECT,
                "inside an indirect table",
            ),
            single(
                "table in a table, later",
                nested_later,
                32,
                INDIRECT,
                "inside an indirect table",
            ),
            single(
                "INDIRECT and NEXT",
                one,
                16,
                INDIRECT | NEXT,
                "both INDIRECT and NEXT",
            ),
            single(
                "next outside of the table",
                outside,
                16,
                INDIRECT,
                "next 1 is not below 1",
            ),
            single(
                "loop in a table",
                looping,
                32,
                INDIRECT,
                "longer than its table",
            ),
            single("unmapped buffer", unmapped, 16, INDIRECT, inside),
            Chain {
                what: "direct, then INDIRECT and NEXT",
                descs: vec![
                    d(ok, 8, NEXT, 1),
                    d(one, 16, INDIRECT | NEXT, 2),
                    d(ok, 8, 0, 0),
                ],
                reason: "both INDIRECT and NEXT",
            },
        ]
    });
}

#[test]
fn indirect_tables_that_are_legal() {
    run("indirect_legal", |rig| {
        let mut s = rig.session();
        let gpa = scratch(&s);
        s.memory.write(gpa, b"0123456789").unwrap();
        let (out, into) = (Seg::readable(gpa, 10), Seg::writable(gpa + 64, 10));
        let expect = |s: &mut Session, readable: Vec<usize>| {
            let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            assert_eq!(used.len, 10);
            assert_eq!(rig.device.last_shape().readable, readable);
            assert_eq!(s.memory.read(gpa + 64, 10).unwrap(), b"0123456789");
            s.memory.fill(gpa + 64, 10, 0).unwrap();
        };
        s.queues[0].submit_indirect(&[out, into]).unwrap();
        expect(&mut s, vec![10]);
        // Behind direct descriptors.
        s.queues[0]
            .add_mixed(&[Seg::readable(gpa, 4)], &[Seg::readable(gpa + 4, 6), into])
            .unwrap();
        s.queues[0].publish().unwrap();
        s.queues[0].kick().unwrap();
        expect(&mut s, vec![4, 6]);
        // The WRITE flag of the descriptor that refers to a table means nothing.
        let entries = [d(gpa, 10, NEXT, 1), d(gpa + 64, 10, WRITE, 0)];
        let gpa_of = table(&s, &entries);
        let one = Seg::readable(gpa_of, 32);
        s.queues[0].add(&[one]).unwrap();
        // The driver takes its descriptors from 0 up.
        let slot = 0;
        desc(&s, slot, gpa_of, 32, INDIRECT | WRITE, 0);
        s.queues[0].publish().unwrap();
        s.queues[0].kick().unwrap();
        expect(&mut s, vec![10]);
        // A misaligned table is read all the same.
        let odd = scratch(&s) + 3;
        s.memory
            .write(odd, &entries.map(|entry| entry.encode()).concat())
            .unwrap();
        s.queues[0].add(&[one]).unwrap();
        desc(&s, slot, odd, 32, INDIRECT, 0);
        s.queues[0].publish().unwrap();
        s.queues[0].kick().unwrap();
        expect(&mut s, vec![10]);
        // As many entries as there may be.
        let mut segs = vec![Seg::readable(gpa, 1); 1023];
        segs.push(Seg::writable(gpa + 128, 10));
        s.queues[0].submit_indirect(&segs).unwrap();
        assert_eq!(
            s.queues[0].wait_used(Deadline::after(SOON)).unwrap().len,
            10
        );
        assert_eq!(rig.device.last_shape().readable.len(), 1023);
        works(&mut s);
    });
}

#[test]
fn case_77_more_buffers_than_an_element_takes() {
    all_break("case_77", |s| {
        let ok = scratch(s);
        let entries: Vec<Desc> = (0..1024)
            .map(|i| {
                if i < 1023 {
                    d(ok, 1, NEXT, i + 1)
                } else {
                    d(ok, 1, 0, 0)
                }
            })
            .collect();
        let full = table(s, &entries);
        let mut chains = Vec::new();
        for direct in [1, 255] {
            let mut descs: Vec<Desc> = (0..direct).map(|i| d(ok, 1, NEXT, i + 1)).collect();
            descs.push(d(full, 1024 * 16, INDIRECT, 0));
            chains.push(Chain {
                what: "direct and indirect",
                descs,
                reason: "more than 1024 buffers",
            });
        }
        chains
    });
}

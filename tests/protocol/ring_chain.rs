//! Section F, second part: descriptor chains.

use super::device::SOON;
use super::rig::{Rig, offer, run, works};
use super::ring_indirect::table;
use crate::sim::ring::{DESC_INDIRECT as INDIRECT, DESC_NEXT as NEXT, DESC_WRITE as WRITE};
use crate::sim::{Deadline, Desc, RegionSpec, Seg, Session};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Guest memory ends here in these tests, and something else begins further up.
pub const END: u64 = 64 * MIB;
pub const NOWHERE: u64 = 1 << 45;

/// A chain that breaks its ring: its descriptors from index 0 on, and what is said about it.
pub struct Chain {
    pub what: &'static str,
    pub descs: Vec<Desc>,
    pub reason: &'static str,
}

pub fn d(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

#[track_caller]
fn break_with(rig: &Rig, s: &mut Session, chain: &Chain) {
    works(s);
    for (index, desc) in chain.descs.iter().enumerate() {
        s.queues[0].ring.set_desc(index as u16, *desc).unwrap();
    }
    offer(s, 0);
    rig.broken(chain.what, s, chain.reason);
}

#[track_caller]
pub fn all_break(name: &str, chains: impl FnOnce(&Session) -> Vec<Chain>) {
    run(name, |rig| {
        let mut s = rig.session();
        for chain in chains(&s) {
            break_with(rig, &mut s, &chain);
        }
    });
}

/// Memory that a device may read and write as it likes.
pub fn scratch(s: &Session) -> u64 {
    s.memory.alloc(4096, 4096).unwrap()
}

#[test]
fn case_71_next_outside_and_loops() {
    all_break("case_71", |s| {
        let ok = scratch(s);
        let chain = |what, descs, reason| Chain {
            what,
            descs,
            reason,
        };
        let long: Vec<Desc> = (0..256).map(|i| d(ok, 1, NEXT, (i + 1) % 256)).collect();
        vec![
            chain(
                "next = size",
                vec![d(ok, 1, NEXT, 256)],
                "next 256 is not below 256",
            ),
            chain(
                "next = 0xffff",
                vec![d(ok, 1, NEXT, 0xffff)],
                "next 65535 is not below",
            ),
            chain(
                "self-loop",
                vec![d(ok, 1, NEXT, 0)],
                "longer than its table",
            ),
            chain(
                "writable self-loop",
                vec![d(ok, 1, NEXT | WRITE, 0)],
                "longer than its table",
            ),
            chain(
                "2-cycle",
                vec![d(ok, 1, NEXT, 1), d(ok, 1, NEXT, 0)],
                "longer than its table",
            ),
            chain("size + 1", long, "longer than its table"),
            chain(
                "self-loop of empty buffers",
                vec![d(ok, 0, NEXT, 0)],
                "longer than its table",
            ),
        ]
    });
}

#[test]
fn case_72_buffers_outside_of_memory() {
    all_break("case_72", |s| {
        let ok = scratch(s);
        let mut chains = Vec::new();
        for (what, addr, len, reason) in [
            ("unmapped", NOWHERE, 16, "is not all in guest memory"),
            ("at the end", END, 16, "is not all in guest memory"),
            (
                "one byte past the end",
                END - 15,
                16,
                "is not all in guest memory",
            ),
            (
                "far past the end",
                END - 1,
                u32::MAX,
                "is not all in guest memory",
            ),
            ("wraps", u64::MAX - 7, 16, "wraps"),
            ("the last address", u64::MAX, 1, ""),
        ] {
            for flags in [0, WRITE] {
                chains.push(Chain {
                    what,
                    descs: vec![d(addr, len, flags, 0)],
                    reason,
                });
            }
            let descs = vec![d(ok, 16, NEXT, 1), d(addr, len, WRITE, 0)];
            chains.push(Chain {
                what,
                descs,
                reason,
            });
        }
        chains
    });
}

#[test]
fn case_73_empty_buffers_at_invalid_addresses() {
    all_break("case_73", |s| {
        let ok = scratch(s);
        [NOWHERE, END, u64::MAX]
            .into_iter()
            .flat_map(|addr| {
                let reason = "is not all in guest memory";
                let chain = |descs| Chain {
                    what: "empty",
                    descs,
                    reason,
                };
                [
                    chain(vec![d(addr, 0, 0, 0)]),
                    chain(vec![d(addr, 0, WRITE, 0)]),
                    chain(vec![
                        d(ok, 4, NEXT, 1),
                        d(addr, 0, NEXT, 2),
                        d(ok, 4, WRITE, 0),
                    ]),
                ]
            })
            .collect()
    });
}

#[test]
fn case_73_empty_buffers_at_valid_addresses() {
    run("case_73_valid", |rig| {
        let mut s = rig.session();
        let gpa = scratch(&s);
        s.memory.write(gpa, b"text").unwrap();
        let segs = [
            Seg::readable(gpa, 0),
            Seg::readable(gpa, 4),
            Seg::readable(END - 1, 0),
            Seg::writable(gpa + 64, 0),
            Seg::writable(gpa + 64, 4),
        ];
        for indirect in [false, true] {
            match indirect {
                false => s.queues[0].submit(&segs).unwrap(),
                true => s.queues[0].submit_indirect(&segs).unwrap(),
            };
            let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            assert_eq!(used.len, 4);
            let shape = rig.device.last_shape();
            assert_eq!(
                (shape.readable, shape.writable),
                (vec![0, 4, 0], vec![0, 4])
            );
        }
        // Nothing but an empty one.
        s.queues[0].submit(&[Seg::writable(gpa, 0)]).unwrap();
        assert_eq!(s.queues[0].wait_used(Deadline::after(SOON)).unwrap().len, 0);
        works(&mut s);
    });
}

#[test]
fn case_74_a_chain_of_more_than_4_gib() {
    run("case_74", |rig| {
        // The file is as sparse as it can be.
        let regions = [RegionSpec::new(0, GIB)];
        let mut s = rig.builder().regions(&regions).connect(rig.path());
        let gib = GIB as u32;
        for (what, flags) in [("readable", 0), ("writable", WRITE)] {
            let descs = (0..4)
                .map(|i| d(0, gib, flags | if i < 3 { NEXT } else { 0 }, i + 1))
                .collect();
            break_with(
                rig,
                &mut s,
                &Chain {
                    what,
                    descs,
                    reason: "does not fit in 32 bits",
                },
            );
        }
        let mixed = vec![
            d(0, gib, NEXT, 1),
            d(0, gib, NEXT, 2),
            d(0, gib, NEXT | WRITE, 3),
            d(0, gib, WRITE, 0),
        ];
        let reason = "does not fit in 32 bits";
        break_with(
            rig,
            &mut s,
            &Chain {
                what: "both",
                descs: mixed,
                reason,
            },
        );
        // One byte less is legal.
        let segs = [gib, gib, gib, gib - 1].map(|len| Seg::writable(0, len));
        s.queues[1].submit(&segs).unwrap();
        s.queues[1].wait_used(Deadline::after(SOON)).unwrap();
        works(&mut s);
    });
}

#[test]
fn case_76_readable_after_writable() {
    all_break("case_76", |s| {
        let ok = scratch(s);
        let order = [d(ok, 4, NEXT | WRITE, 1), d(ok, 4, 0, 0)];
        let later = [d(ok, 4, NEXT, 1), d(ok, 4, NEXT | WRITE, 2), d(ok, 0, 0, 0)];
        let reason = "device-readable buffer";
        let tables = [table(s, &order), table(s, &later)];
        let chain = |what, descs: &[Desc]| Chain {
            what,
            descs: descs.to_vec(),
            reason,
        };
        vec![
            chain("two", &order),
            chain("an empty one", &later),
            chain("in a table", &[d(tables[0], 32, INDIRECT, 0)]),
            chain("later in a table", &[d(tables[1], 48, INDIRECT, 0)]),
        ]
    });
}

#[test]
fn case_80_chains_that_are_too_short() {
    run("case_80", |rig| {
        let mut s = rig.session();
        let gpa = scratch(&s);
        // More rounds than the ring has slots: none is leaked.
        for round in 0..600u32 {
            let (segs, written) = match round % 4 {
                0 => (vec![Seg::readable(gpa, 1)], 0),
                1 => (vec![Seg::writable(gpa, 1)], 0),
                2 => (vec![Seg::readable(gpa, 1), Seg::writable(gpa, 1)], 1),
                // A header in pieces of one byte.
                _ => (vec![Seg::readable(gpa, 1); 40], 0),
            };
            s.queues[0].submit(&segs).unwrap();
            let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            assert_eq!(used.len, written, "round {round}");
            let shape = rig.device.last_shape();
            let readable = segs.iter().filter(|seg| !seg.writable).count();
            assert_eq!(shape.readable, vec![1; readable], "round {round}");
            assert_eq!(shape.writable.len(), segs.len() - readable);
        }
        let stats = rig.server.queue_stats(0).unwrap();
        assert_eq!((stats.inflight, stats.breaks, stats.dropped), (0, 0, 0));
        works(&mut s);
    });
}

#[test]
fn case_81_offsets_beyond_a_request() {
    run("case_81", |rig| {
        let mut s = rig.session();
        let gpa = scratch(&s);
        s.memory.write(gpa, b"abcdef").unwrap();
        rig.device.hold(true);
        let segs = [
            Seg::readable(gpa, 3),
            Seg::readable(gpa + 3, 3),
            Seg::writable(gpa + 64, 4),
        ];
        s.queues[0].submit(&segs).unwrap();
        rig.device.wait_held(1);
        let element = rig.device.take_held().remove(0);
        let mut bytes = [0xa5; 16];
        for (offset, count) in [(0, 6), (2, 4), (5, 1), (6, 0), (7, 0), (usize::MAX, 0)] {
            assert_eq!(element.read(offset, &mut bytes), count, "read at {offset}");
        }
        assert_eq!(element.read(2, &mut bytes[..3]), 3);
        assert_eq!(bytes[..3], *b"cde", "across two buffers");
        for (offset, count) in [(0, 4), (1, 3), (4, 0), (1 << 40, 0), (usize::MAX, 0)] {
            assert_eq!(
                element.write(offset, &[0x11; 16]),
                count,
                "write at {offset}"
            );
        }
        assert_eq!(
            s.memory.read(gpa + 64, 5).unwrap(),
            [0x11, 0x11, 0x11, 0x11, 0]
        );
        let error = element.complete(5).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
        assert_eq!(s.queues[0].wait_used(Deadline::after(SOON)).unwrap().len, 0);
        rig.device.hold(false);
        works(&mut s);
    });
}

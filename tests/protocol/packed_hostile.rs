//! Packed rings that no driver would build.

use super::device::SOON;
use super::rig::{Bad, run, works};
use crate::sim::echo::{self, EchoRequest};
use crate::sim::packed_ring::{avail_flags, used_flags};
use crate::sim::ring::{DESC_INDIRECT as INDIRECT, DESC_NEXT as NEXT, DESC_WRITE as WRITE};
use crate::sim::wire::{feature, req};
use crate::sim::{Deadline, Driver, PackedDesc, PackedDriver, Session, eventually};

/// Guest memory does not reach as far.
const NOWHERE: u64 = 1 << 45;

/// No power of two.
const SIZE: u16 = 12;

#[track_caller]
fn session(rig: &super::rig::Rig) -> Session<PackedDriver> {
    rig.builder().packed().queue_size(SIZE).connect(rig.path())
}

fn d(addr: u64, len: u32, id: u16, flags: u16) -> PackedDesc {
    PackedDesc {
        addr,
        len,
        id,
        flags,
    }
}

/// Makes these descriptors available and kicks.
#[track_caller]
fn offer(s: &mut Session<PackedDriver>, descs: &[PackedDesc]) {
    s.queues[0].publish_raw(descs).unwrap();
    s.queues[0].kick_always().unwrap();
}

fn scratch(s: &Session<PackedDriver>) -> u64 {
    s.memory.alloc(4096, 4096).unwrap()
}

/// Writes an indirect table somewhere and returns its address.
fn table(s: &Session<PackedDriver>, descs: &[PackedDesc]) -> u64 {
    let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.encode()).collect();
    let gpa = s.memory.alloc(bytes.len() as u64, 16).unwrap();
    s.memory.write(gpa, &bytes).unwrap();
    gpa
}

/// Each of these breaks its ring, from wherever in the ring.
#[track_caller]
fn all_break(
    name: &str,
    chains: impl FnOnce(&Session<PackedDriver>) -> Vec<(&'static str, Vec<PackedDesc>, &'static str)>,
) {
    run(name, |rig| {
        let mut s = session(rig);
        for (what, descs, reason) in chains(&s) {
            for before in [0, 5, 7] {
                // With what breaks it at the ring's end too, in the second lap.
                for _ in 0..before {
                    works(&mut s);
                }
                offer(&mut s, &descs);
                rig.broken(what, &mut s, reason);
            }
        }
    });
}

#[test]
fn case_87_ids_that_are_none() {
    all_break("case_87_ids", |s| {
        let ok = scratch(s);
        vec![
            ("id = size", vec![d(ok, 8, SIZE, WRITE)], "id 12"),
            ("id = 0xffff", vec![d(ok, 8, 0xffff, WRITE)], "id 65535"),
            (
                "of the last descriptor",
                vec![d(ok, 8, 0, NEXT), d(ok, 8, 0x8000, WRITE)],
                "id 32768",
            ),
        ]
    });
}

#[test]
fn case_87_only_the_last_descriptors_id_counts() {
    run("case_87_id", |rig| {
        let mut s = session(rig);
        let ok = scratch(&s);
        offer(&mut s, &[d(ok, 8, 0xffff, NEXT), d(ok + 8, 8, 3, WRITE)]);
        let queue = &mut s.queues[0];
        eventually("completion", Deadline::after(SOON), Some((3, 8)), || {
            queue.poll_used_raw(2).unwrap()
        });
        works(&mut s);
    });
}

#[test]
fn case_87_an_id_that_is_out_already() {
    run("case_87_busy", |rig| {
        let mut s = session(rig);
        let ok = scratch(&s);
        rig.device.hold(true);
        offer(&mut s, &[d(ok, 8, 5, WRITE)]);
        rig.device.wait_held(1);
        offer(&mut s, &[d(ok, 8, 5, WRITE)]);
        rig.broke("the same id twice", &s, "outstanding already");
        let held = rig.device.take_held();
        assert_eq!(held.len(), 1, "two live requests with one id");
        rig.device.hold(false);
        // What was popped from a ring that has broken since can still be completed.
        held.into_iter().for_each(super::device::answer);
        echo::round_trip(&mut s.queues[1], b"unharmed");
        s.restart_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_87_more_than_the_ring_holds() {
    run("case_87_full", |rig| {
        let mut s = session(rig);
        let ok = scratch(&s);
        rig.device.hold(true);
        let all: Vec<_> = (0..SIZE).map(|id| d(ok, 1, id, WRITE)).collect();
        for desc in &all {
            s.queues[0].publish_raw(std::slice::from_ref(desc)).unwrap();
        }
        s.queues[0].kick_always().unwrap();
        rig.device.wait_held(SIZE.into());
        // Over the first, which is not returned.
        offer(&mut s, &all[..1]);
        rig.broke("more descriptors than the ring has", &s, "outstanding");
        assert_eq!(rig.device.take_held().len(), usize::from(SIZE));
        rig.device.hold(false);
        s.restart_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_87_a_chain_longer_than_the_ring() {
    all_break("case_87_long", |s| {
        let ok = scratch(s);
        let all = |flags| {
            (0..SIZE)
                .map(|id| d(ok, 1, id, NEXT | flags))
                .collect::<Vec<_>>()
        };
        vec![
            ("NEXT everywhere", all(0), "longer than"),
            ("NEXT everywhere, writable", all(WRITE), "longer than"),
        ]
    });
}

#[test]
fn case_87_flags_of_another_lap() {
    run("case_87_flags", |rig| {
        let mut s = session(rig);
        let ok = scratch(&s);
        for before in [0, 5, 7] {
            for _ in 0..before {
                works(&mut s);
            }
            // A head that is not available in this lap is none, whatever else it says.
            let next = s.queues[0].next();
            for flags in [
                avail_flags(!next.wrap),
                used_flags(next.wrap),
                used_flags(!next.wrap),
            ] {
                let head = d(ok, 8, 0xffff, flags | WRITE);
                s.queues[0].ring.set_desc(next.index, head).unwrap();
                s.queues[0].kick_always().unwrap();
                echo::round_trip(&mut s.queues[1], b"meanwhile");
            }
            works(&mut s);
            // A chain of which the rest is not available is no chain.
            let lap = |wrap: bool| [avail_flags(!wrap), used_flags(wrap), used_flags(!wrap)];
            for number in 0..3 {
                let next = s.queues[0].next();
                let size = s.queues[0].size();
                let second = next.after(1, size);
                s.queues[0]
                    .ring
                    .set_desc(second.index, d(ok, 8, 0, lap(second.wrap)[number]))
                    .unwrap();
                let head = d(ok, 8, 0, NEXT | avail_flags(next.wrap));
                s.queues[0].ring.set_desc(next.index, head).unwrap();
                s.queues[0].kick_always().unwrap();
                rig.broken("a chain that is half available", &mut s, "not available");
            }
        }
    });
}

#[test]
fn case_87_buffers_and_tables() {
    all_break("case_87_chains", |s| {
        let ok = scratch(s);
        let one = table(s, &[d(ok, 8, 0, 0)]);
        let order = table(s, &[d(ok, 8, 0, WRITE), d(ok, 8, 0, 0)]);
        let nowhere = "is not all in guest memory";
        let length = "indirect table length";
        vec![
            ("unmapped", vec![d(NOWHERE, 8, 0, WRITE)], nowhere),
            ("empty, unmapped", vec![d(NOWHERE, 0, 0, WRITE)], nowhere),
            ("wraps", vec![d(u64::MAX - 3, 8, 0, WRITE)], ""),
            (
                "readable after writable",
                vec![d(ok, 8, 0, WRITE | NEXT), d(ok, 8, 0, 0)],
                "after a device-writable",
            ),
            ("empty table", vec![d(one, 0, 0, INDIRECT)], length),
            ("17 bytes", vec![d(one, 17, 0, INDIRECT)], length),
            (
                "a table unmapped",
                vec![d(NOWHERE, 16, 0, INDIRECT)],
                nowhere,
            ),
            (
                "order inside of a table",
                vec![d(order, 32, 0, INDIRECT)],
                "after a device-writable",
            ),
            (
                "INDIRECT and NEXT",
                vec![d(one, 16, 0, INDIRECT | NEXT), d(ok, 8, 0, WRITE)],
                "both INDIRECT and NEXT",
            ),
        ]
    });
}

/// In a table only WRITE means anything (virtio 1.3, section 2.8.7), and the order is the table's own.
#[test]
fn case_87_flags_inside_of_a_table_are_ignored() {
    run("case_87_table_flags", |rig| {
        let mut s = session(rig);
        let ok = scratch(&s);
        for flags in [NEXT, INDIRECT, NEXT | INDIRECT, !WRITE] {
            let entries = [
                d(ok, 8, 0xffff, flags),
                d(ok, 16, 0, 0),
                d(ok, 24, 0, WRITE | flags),
            ];
            let three = table(&s, &entries);
            // The id is that of the ring's descriptor.
            offer(&mut s, &[d(three, 48, 7, INDIRECT)]);
            let queue = &mut s.queues[0];
            eventually("completion", Deadline::after(SOON), Some((7, 24)), || {
                queue.poll_used_raw(1).unwrap()
            });
            let shape = rig.device.last_shape();
            assert_eq!((shape.readable, shape.writable), (vec![8, 16], vec![24]));
        }
        works(&mut s);
    });
}

#[test]
fn case_87_a_table_that_is_not_negotiated() {
    run("case_87_no_indirect", |rig| {
        let mut s = rig
            .builder()
            .without_features(feature::INDIRECT_DESC)
            .packed()
            .queue_size(SIZE)
            .connect(rig.path());
        let ok = scratch(&s);
        let one = table(&s, &[d(ok, 8, 0, 0)]);
        offer(&mut s, &[d(one, 16, 0, INDIRECT)]);
        rig.broken(
            "an indirect table",
            &mut s,
            "INDIRECT_DESC is not negotiated",
        );
    });
}

#[test]
fn case_87_event_suppression_at_random() {
    run("case_87_events", |rig| {
        for without in [0, feature::EVENT_IDX] {
            let mut s = rig
                .builder()
                .without_features(without)
                .packed()
                .queue_size(SIZE)
                .connect(rig.path());
            let fixed = [
                (SIZE, 2),
                (0x7fff, 2),
                (0xffff, 2),
                (0x8000 | SIZE, 2),
                (0, 3),
            ];
            let random = (0..300).map(|seed| {
                let noise = echo::pattern(seed, 4);
                let word = |at: usize| u16::from_le_bytes([noise[at], noise[at + 1]]);
                (word(0), word(2))
            });
            for (round, (position, flags)) in fixed.into_iter().chain(random).enumerate() {
                let mut request = EchoRequest::new(&s.memory, 8, 8);
                request.prepare(round as u64);
                let queue = &mut s.queues[0];
                queue.ring.set_driver_events(position, flags).unwrap();
                queue.add(&request.segs()).unwrap();
                queue.publish().unwrap();
                queue.kick_always().unwrap();
                eventually("completion", Deadline::after(SOON), true, || {
                    let used = queue.poll_used().unwrap();
                    used.inspect(|used| request.check(*used)).is_some()
                });
            }
            works(&mut s);
            s.disconnect();
        }
    });
}

#[test]
fn case_87_sizes_and_bases() {
    run("case_87_base", |rig| {
        let mut s = session(rig);
        s.stop_queue(0);
        let (base, size) = (req::SET_VRING_BASE, u32::from(SIZE));
        let bad: Vec<_> = [
            size << 16,
            0x8000_8000 | size << 16,
            0x7fff_0000,
            size,
            0x8000_8000 | size,
            0x7fff,
            0xffff_ffff,
        ]
        .into_iter()
        .map(|num| Bad::state(base, 0, num))
        .chain([0, 32769, 65536 + 8].map(|num| Bad::state(req::SET_VRING_NUM, 0, num)))
        .collect();
        for bad in &bad {
            rig.refused(s.fe(), bad);
        }
        // Nothing has changed.
        assert_eq!(s.fe().get_vring_base(0).unwrap(), PackedDriver::START);
        for num in [1, 3, 1000, 32767] {
            s.fe().set_vring_num(0, num).unwrap();
        }
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_87_a_base_behind_a_size_that_comes_later() {
    run("case_87_base_first", |rig| {
        let mut s = session(rig);
        s.stop_queue(0);
        s.fe().set_vring_num(0, 1000).unwrap();
        s.fe().set_vring_base(0, 0x83e7_83e7).unwrap();
        // Now the ring is too small for it, and waits for another one.
        s.bases[0] = 0x83e7_83e7;
        s.fe().set_vring_num(0, SIZE.into()).unwrap();
        let refused = Bad::state(req::SET_VRING_BASE, 0, s.bases[0]);
        rig.refused(s.fe(), &refused);
        echo::round_trip(&mut s.queues[1], b"unharmed");
        s.bases[0] = PackedDriver::START;
        s.start_queue(0);
        works(&mut s);
    });
}

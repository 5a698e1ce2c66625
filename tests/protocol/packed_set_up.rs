//! What a front-end says of packed rings before they run: features, sizes, addresses, logging, an IOMMU.

use std::os::fd::AsRawFd;
use std::time::Duration;

use super::device::SOON;
use super::rig::{Bad, Rig, acknowledging, run, run_with, works};
use crate::sim::echo::EchoRequest;
use crate::sim::wire::{self, Iotlb, VringAddr, feature, req};
use crate::sim::{Deadline, Driver, PackedDriver, Seg, Session, SharedFile, eventually};

const PAGE: u64 = 4096;
const SIZE: u16 = 12;

#[track_caller]
fn session(rig: &Rig) -> Session<PackedDriver> {
    rig.builder().packed().queue_size(SIZE).connect(rig.path())
}

#[track_caller]
fn addr_of(s: &Session<PackedDriver>) -> VringAddr {
    s.queues[0].ring.layout().vring_addr(&s.memory, 0).unwrap()
}

#[test]
fn packed_rings_are_those_of_modern_devices() {
    run("packed_modern", |rig| {
        let legacy = feature::PROTOCOL_FEATURES | feature::RING_PACKED;
        let bad = Bad::u64(req::SET_FEATURES, legacy);
        rig.refused(&acknowledging(rig), &bad);
    });
    run_with(
        "packed_masked",
        |builder| builder.mask_features(feature::VERSION_1),
        |rig| {
            let offered = rig.frontend().get_features().unwrap();
            assert_eq!(offered & (feature::VERSION_1 | feature::RING_PACKED), 0);
        },
    );
    run_with(
        "packed_not_offered",
        |builder| builder.mask_features(feature::RING_PACKED),
        |rig| {
            let offered = rig.frontend().get_features().unwrap();
            assert_eq!(
                offered & (feature::VERSION_1 | feature::RING_PACKED),
                feature::VERSION_1
            );
        },
    );
}

#[test]
fn case_52_the_kind_of_ring_stays_while_one_is_started() {
    run("packed_52", |rig| {
        let mut s = session(rig);
        let split = s.features & !feature::RING_PACKED;
        rig.refused(s.fe(), &Bad::u64(req::SET_FEATURES, split));
        works(&mut s);
    });
}

#[test]
fn case_44_a_size_of_which_nobody_knows_yet_what_it_is_for() {
    run("packed_44", |rig| {
        let fe = acknowledging(rig);
        fe.set_vring_num(0, 3).unwrap();
        fe.set_features(feature::PROTOCOL_FEATURES | feature::VERSION_1)
            .unwrap();
        // Now it is that of no split ring.
        rig.refused(&fe, &Bad::state(req::SET_VRING_NUM, 0, 3));
    });
}

#[test]
fn case_46_and_47_areas_of_packed_rings() {
    run("packed_46", |rig| {
        let mut s = session(rig);
        s.stop_queue(0);
        let ok = addr_of(&s);
        let end = s.memory.regions()[0].spec().size;
        let last = s.memory.user_addr(end - 4).unwrap();
        for (what, bad) in [
            (
                "descriptors + 8",
                VringAddr {
                    desc: ok.desc + 8,
                    ..ok
                },
            ),
            (
                "driver + 2",
                VringAddr {
                    avail: ok.avail + 2,
                    ..ok
                },
            ),
            (
                "device + 2",
                VringAddr {
                    used: ok.used + 2,
                    ..ok
                },
            ),
            (
                "driver's area behind the end",
                VringAddr {
                    avail: last + 4,
                    ..ok
                },
            ),
            (
                "descriptors over the end",
                VringAddr {
                    desc: last + 4 - 16 * u64::from(SIZE - 1),
                    ..ok
                },
            ),
        ] {
            let bad = Bad::new(req::SET_VRING_ADDR, bad.encode()).named(what);
            rig.refused(s.fe(), &bad);
        }
        // Four bytes each are enough.
        for area in [
            VringAddr { avail: last, ..ok },
            VringAddr { used: last, ..ok },
            ok,
        ] {
            s.fe().set_vring_addr(&area).unwrap();
        }
        s.start_queue(0);
        works(&mut s);
    });
}

/// One request; the guest addresses of what the device wrote into its buffers.
#[track_caller]
fn round_trip(s: &mut Session<PackedDriver>) -> u64 {
    let mut request = EchoRequest::new(&s.memory, 64, 64);
    request.prepare(1);
    s.queues[0].submit(&request.segs()).unwrap();
    let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
    request.check(used);
    request.segs()[1].gpa
}

#[test]
fn used_descriptors_and_event_suppression_are_logged() {
    run("packed_log", |rig| {
        let mut s = rig.builder().packed().queue_size(1000).connect(rig.path());
        // Beyond all memory, but inside of the log.
        let log = SharedFile::new(0x1000).unwrap();
        let elsewhere = 0x07ff_0000;
        s.fe().set_log_base(&log).unwrap();
        s.fe().set_features(s.features | feature::LOG_ALL).unwrap();
        let data = round_trip(&mut s);
        let pages: Vec<u64> = (data / PAGE..=(data + 63) / PAGE).collect();
        assert_eq!(log.take_bits(), pages, "without the flag");
        let (flags, log_at) = (1, elsewhere);
        let addr = VringAddr {
            flags,
            log: log_at,
            ..addr_of(&s)
        };
        s.fe().set_vring_addr(&addr).unwrap();
        for _ in 0..600 {
            let layout = *s.queues[0].ring.layout();
            let at = 16 * u64::from(s.queues[0].next().index);
            let data = round_trip(&mut s);
            let mut wanted = vec![
                data / PAGE,
                (data + 63) / PAGE,
                (layout.desc + at) / PAGE,
                layout.device / PAGE,
                (elsewhere + at) / PAGE,
            ];
            wanted.sort_unstable();
            wanted.dedup();
            let mut seen = Vec::new();
            eventually("marks", Deadline::after(SOON), true, || {
                seen.extend(log.take_bits());
                wanted.iter().all(|page| seen.contains(page))
            });
            // A chain has two descriptors, which can lie on two pages.
            let marked = |base: u64, page: u64| {
                (page * PAGE).wrapping_sub(base & !(PAGE - 1)) < 16 * 1000 + PAGE
            };
            let stray = seen.iter().find(|page| {
                !wanted.contains(page) && !marked(layout.desc, **page) && !marked(elsewhere, **page)
            });
            assert_eq!(stray, None, "{wanted:x?}");
        }
    });
}

#[test]
fn rings_behind_an_iommu() {
    const IOVA: u64 = 1 << 45;
    run("packed_iotlb", |rig| {
        let mut s = rig
            .builder()
            .features(feature::ACCESS_PLATFORM)
            .not_started()
            .packed()
            .queue_size(SIZE)
            .connect(rig.path());
        let queue = &s.queues[0];
        let (layout, ok) = (*queue.ring.layout(), addr_of(&s));
        let addr = VringAddr {
            desc: IOVA + layout.desc,
            avail: IOVA + layout.driver,
            used: IOVA + layout.device,
            ..ok
        };
        s.fe().set_vring_num(0, SIZE.into()).unwrap();
        s.fe().set_vring_base(0, PackedDriver::START).unwrap();
        s.fe().set_vring_addr(&addr).unwrap();
        let call = Some(queue.call.as_raw_fd());
        s.fe().set_vring_call(0, call).unwrap();
        s.fe()
            .set_vring_kick(0, Some(queue.kick.as_raw_fd()))
            .unwrap();
        s.fe().set_vring_enable(0, true).unwrap();
        let map = |s: &Session<PackedDriver>, iova: u64, permissions| {
            let iova = iova & !(PAGE - 1);
            let update = Iotlb {
                iova,
                size: PAGE,
                user: s.memory.user_addr(iova - IOVA).unwrap(),
                permissions,
                kind: Iotlb::UPDATE,
            };
            let reply = s.fe().request(req::IOTLB_MSG, &update.encode(), &[]);
            assert_eq!(reply.and_then(|reply| reply.u64()).unwrap(), 0);
        };
        let question = |s: &Session<PackedDriver>| {
            let request = s.backend.as_ref().unwrap().recv().unwrap();
            Iotlb::decode(&request.body).unwrap()
        };
        // The descriptors are read and written.
        let asked = question(&s);
        assert_eq!(
            (asked.iova & !(PAGE - 1), asked.permissions),
            (addr.desc & !(PAGE - 1), 3)
        );
        let mut request = EchoRequest::new(&s.memory, 100, 100);
        request.prepare(5);
        let segs = request.segs().map(|seg| Seg {
            gpa: IOVA + seg.gpa,
            ..seg
        });
        s.queues[0].submit(&segs).unwrap();
        map(&s, asked.iova, 3);
        let deadline = Deadline::after(SOON);
        let used = loop {
            if let Some(used) = s.queues[0].poll_used().unwrap() {
                break used;
            }
            assert!(!deadline.expired(), "no completion");
            let channel = s.backend.as_ref().unwrap();
            if channel.pending_within(Duration::from_millis(1)).unwrap() {
                let miss = question(&s);
                map(&s, miss.iova, 3);
            }
        };
        request.check(used);
    });
}

#[test]
fn a_ring_that_was_never_started_begins_with_wrap_counters_of_1() {
    run("packed_fresh", |rig| {
        let s = rig.builder().packed().not_started().connect(rig.path());
        let reply = s
            .fe()
            .request(req::GET_VRING_BASE, &wire::vring_state(0, 0), &[]);
        let body = reply.unwrap().body;
        assert_eq!(body[4..8], 0x8000_8000u32.to_ne_bytes());
    });
}

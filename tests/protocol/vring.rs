//! Section D: rings are set up in any order, and wrong set-ups are refused.

use std::os::fd::AsRawFd;

use super::device::SOON;
use super::rig::{Bad, alive, run, run_with, works};
use crate::sim::echo::{self};
use crate::sim::wire::{self, VRING_NOFD, VringAddr, feature, req};
use crate::sim::{Deadline, EventFd, RegionSpec, RingLayout, Session, process};

const MIB: u64 = 1 << 20;
const TOO_HIGH: [u32; 5] = [2, 3, 255, 0x10000, 0xffff_ffff];

#[test]
fn case_43_indexes_that_no_queue_has() {
    run("case_43", |rig| {
        let mut s = rig.session();
        let fd = EventFd::new().unwrap();
        let addr = s.queues[0].ring.layout().vring_addr(&s.memory, 0).unwrap();
        for index in TOO_HIGH {
            rig.all_refused(
                &mut s,
                &[
                    Bad::state(req::SET_VRING_NUM, index, 256),
                    Bad::state(req::SET_VRING_BASE, index, 0),
                    Bad::state(req::SET_VRING_ENABLE, index, 0),
                    Bad::new(req::SET_VRING_ADDR, VringAddr { index, ..addr }.encode()),
                ],
            );
        }
        for request in [req::SET_VRING_KICK, req::SET_VRING_CALL, req::SET_VRING_ERR] {
            for word in [2, 255, 0x10000, 0x1_0000_0000, 0xffff_ffff & !VRING_NOFD] {
                rig.all_refused(&mut s, &[Bad::u64(request, word).fds(&[fd.as_raw_fd()])]);
            }
            for word in [2 | VRING_NOFD, 0x10000 | VRING_NOFD, 0xffff_ffff, u64::MAX] {
                rig.all_refused(&mut s, &[Bad::u64(request, word)]);
            }
        }
    });
}

#[test]
fn case_43_get_vring_base_has_no_error_form() {
    run("case_43_base", |rig| {
        for index in TOO_HIGH {
            for flags in [0, wire::FLAG_NEED_REPLY] {
                let mut s = rig.session();
                works(&mut s);
                let fe = s.fe();
                fe.send(
                    req::GET_VRING_BASE,
                    flags,
                    &wire::vring_state(index, 0),
                    &[],
                )
                .unwrap();
                fe.wait_closed()
                    .unwrap_or_else(|error| panic!("index {index:#x}: {error}"));
                rig.left("GET_VRING_BASE", &format!("queue {index}"));
            }
        }
    });
}

#[test]
fn case_44_sizes_of_rings() {
    run_with(
        "case_44",
        |builder| builder.max_queue_size(1024),
        |rig| {
            let mut s = rig.session();
            let bad = [
                0,
                3,
                257,
                1025,
                2048,
                32769,
                65536,
                65536 + 8,
                0x8000_0000,
                0xffff_ffff,
            ];
            s.stop_queue(0);
            for num in bad {
                rig.refused(s.fe(), &Bad::state(req::SET_VRING_NUM, 0, num));
            }
            s.start_queue(0);
            works(&mut s);
            // Every legal size works.
            s.disconnect();
            for bits in 1..=10 {
                let mut s = rig.builder().queue_size(1 << bits).connect(rig.path());
                for _ in 0..3 << bits {
                    echo::round_trip(&mut s.queues[0], b"round and round");
                }
                s.disconnect();
            }
        },
    );
}

#[test]
fn rings_of_1_and_of_32768() {
    run("extreme_sizes", |rig| {
        let mut s = rig.session();
        s.fe().set_vring_num(0, 256).unwrap();
        s.disconnect();
        let mut s = rig.builder().queue_size(32768).connect(rig.path());
        works(&mut s);
        s.disconnect();
        // A chain of one descriptor is all that fits.
        let mut s = rig.builder().queue_size(1).connect(rig.path());
        for _ in 0..5 {
            let gpa = s.memory.alloc(8, 8).unwrap();
            s.queues[0]
                .submit(&[crate::sim::Seg::writable(gpa, 8)])
                .unwrap();
            s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        }
        s.disconnect();
    });
}

#[test]
fn case_45_the_size_set_very_often_and_on_a_started_ring() {
    run("case_45", |rig| {
        let mut s = rig.session();
        rig.all_refused(
            &mut s,
            &[
                Bad::state(req::SET_VRING_NUM, 0, 512),
                Bad::state(req::SET_VRING_NUM, 0, 128),
                Bad::state(req::SET_VRING_BASE, 0, 0),
            ],
        );
        // The same is no change.
        s.fe().set_vring_num(0, 256).unwrap();
        s.stop_queue(0);
        let fds = process::open_fds();
        let many = wire::message(
            req::SET_VRING_NUM,
            wire::VERSION,
            &wire::vring_state(0, 32768),
        );
        let set = |times| {
            for _ in 0..times / 100 {
                s.fe().send_bytes(&many.repeat(100), &[]).unwrap();
            }
            s.fe().set_vring_num(0, 256).unwrap();
            process::resident_kib()
        };
        let warm = set(20_000);
        let grown = set(100_000).saturating_sub(warm);
        assert_eq!(process::open_fds(), fds);
        assert!(grown < 4096, "{grown} KiB for 100 000 sizes");
        s.start_queue(0);
        works(&mut s);
    });
}

pub fn addr_of(s: &Session) -> VringAddr {
    s.queues[0].ring.layout().vring_addr(&s.memory, 0).unwrap()
}

fn addr(what: &str, addr: VringAddr) -> Bad {
    Bad::new(req::SET_VRING_ADDR, addr.encode()).named(what)
}

#[test]
fn case_46_misaligned_areas() {
    run("case_46", |rig| {
        let mut s = rig.session();
        s.stop_queue(0);
        let ok = addr_of(&s);
        for bad in [
            addr(
                "descriptors + 8",
                VringAddr {
                    desc: ok.desc + 8,
                    ..ok
                },
            ),
            addr(
                "descriptors + 1",
                VringAddr {
                    desc: ok.desc + 1,
                    ..ok
                },
            ),
            addr(
                "available + 1",
                VringAddr {
                    avail: ok.avail + 1,
                    ..ok
                },
            ),
            addr(
                "used + 2",
                VringAddr {
                    used: ok.used + 2,
                    ..ok
                },
            ),
            addr(
                "used + 1",
                VringAddr {
                    used: ok.used + 1,
                    ..ok
                },
            ),
            addr("unknown flags", VringAddr { flags: 2, ..ok }),
        ] {
            rig.refused(s.fe(), &bad);
        }
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_47_areas_partly_outside() {
    run("case_47", |rig| {
        let regions = [RegionSpec::new(0, 16 * MIB)];
        let mut s = rig.builder().regions(&regions).connect(rig.path());
        s.stop_queue(0);
        let ok = addr_of(&s);
        let end = regions[0].user_addr + 16 * MIB;
        let (avail_len, used_len) = (RingLayout::avail_len(256), RingLayout::used_len(256));
        for bad in [
            addr(
                "last descriptor outside",
                VringAddr {
                    desc: end - 255 * 16,
                    ..ok
                },
            ),
            addr(
                "descriptors begin at the end",
                VringAddr { desc: end, ..ok },
            ),
            addr(
                "available ring outside",
                VringAddr {
                    avail: end - 16,
                    ..ok
                },
            ),
            addr(
                "used_event outside",
                VringAddr {
                    avail: end - (avail_len - 2),
                    ..ok
                },
            ),
            addr(
                "used ring outside",
                VringAddr {
                    used: end - 4,
                    ..ok
                },
            ),
            // Four bytes are the alignment; the event's two are among them.
            addr(
                "avail_event outside",
                VringAddr {
                    used: end - (used_len - 2),
                    ..ok
                },
            ),
            addr(
                "nothing there",
                VringAddr {
                    desc: 1 << 20,
                    ..ok
                },
            ),
            addr(
                "guest addresses",
                VringAddr {
                    desc: 0x1000,
                    avail: 0x2000,
                    used: 0x3000,
                    ..ok
                },
            ),
            addr(
                "wraps",
                VringAddr {
                    desc: u64::MAX - 15,
                    ..ok
                },
            ),
        ] {
            rig.refused(s.fe(), &bad);
        }
        // With the last byte inside all is well.
        s.fe()
            .set_vring_addr(&VringAddr {
                avail: end - avail_len,
                ..ok
            })
            .unwrap();
        let last = end - used_len.next_multiple_of(4);
        s.fe()
            .set_vring_addr(&VringAddr { used: last, ..ok })
            .unwrap();
        s.start_queue(0);
        works(&mut s);
        // Without EVENT_IDX there is no tail.
        s.stop_all();
        s.fe()
            .set_features(s.features & !feature::EVENT_IDX)
            .unwrap();
        s.fe().set_vring_num(0, 256).unwrap();
        s.fe()
            .set_vring_addr(&VringAddr {
                avail: end - (avail_len - 2),
                ..ok
            })
            .unwrap();
        alive(s.fe());
    });
}

#[test]
fn a_started_ring_keeps_its_addresses() {
    run("started_addresses", |rig| {
        let mut s = rig.session();
        let ok = addr_of(&s);
        rig.all_refused(
            &mut s,
            &[
                addr(
                    "other descriptors",
                    VringAddr {
                        desc: ok.desc + 4096,
                        ..ok
                    },
                ),
                addr(
                    "other available ring",
                    VringAddr {
                        avail: ok.avail + 4096,
                        ..ok
                    },
                ),
                addr(
                    "other used ring",
                    VringAddr {
                        used: ok.used + 4096,
                        ..ok
                    },
                ),
            ],
        );
        // Only the log flag: that is how migration begins.
        s.fe()
            .set_vring_addr(&VringAddr {
                flags: 1,
                log: 0x1000,
                ..ok
            })
            .unwrap();
        works(&mut s);
    });
}

#[test]
fn case_55_enable_is_zero_or_one() {
    run("case_55", |rig| {
        let mut s = rig.session();
        rig.all_refused(
            &mut s,
            &[
                Bad::state(req::SET_VRING_ENABLE, 0, 2),
                Bad::state(req::SET_VRING_ENABLE, 0, 0x100),
                Bad::state(req::SET_VRING_ENABLE, 0, u32::MAX),
            ],
        );
    });
}

//! Section F, third part: a guest that changes its memory while the device works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::device::{Event, SOON};
use super::rig::{offer, run, works};
use crate::sim::echo::{self, EchoLoad, EchoRequest};
use crate::sim::wire::VringAddr;
use crate::sim::{Deadline, Desc, Seg, eventually};

/// How long each storm lasts.
const STORM: Duration = Duration::from_secs(1);

#[test]
fn case_78_descriptors_rewritten_between_check_and_use() {
    run("case_78", |rig| {
        let mut s = rig.session();
        let gpa = s.memory.alloc(4096, 4096).unwrap();
        let table = s.memory.alloc(32, 16).unwrap();
        let (stop, memory) = (AtomicBool::new(false), s.memory.clone());
        let layout = *s.queues[0].ring.layout();
        thread::scope(|scope| {
            scope.spawn(|| {
                // Valid, unmapped, huge, looping, a table: in the ring and in the indirect table.
                let forms = [
                    Desc {
                        addr: gpa,
                        len: 64,
                        flags: 0,
                        next: 0,
                    },
                    Desc {
                        addr: 1 << 50,
                        len: 64,
                        flags: 2,
                        next: 0,
                    },
                    Desc {
                        addr: gpa,
                        len: u32::MAX,
                        flags: 1,
                        next: 1,
                    },
                    Desc {
                        addr: table,
                        len: 32,
                        flags: 4,
                        next: 0xffff,
                    },
                    Desc {
                        addr: gpa,
                        len: 64,
                        flags: 1,
                        next: 0,
                    },
                    Desc {
                        addr: gpa,
                        len: 16,
                        flags: 2,
                        next: 0,
                    },
                ];
                let mut round = 0;
                // Relaxed: the flag carries nothing with it.
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    memory
                        .write(layout.desc, &forms[round % 6].encode())
                        .unwrap();
                    memory
                        .write(layout.desc + 16, &forms[(round / 6) % 6].encode())
                        .unwrap();
                    memory
                        .write(table, &forms[(round / 2) % 6].encode())
                        .unwrap();
                    memory
                        .write(table + 16, &forms[(round / 5) % 6].encode())
                        .unwrap();
                }
            });
            let end = Instant::now() + STORM;
            let mut breaks = 0;
            while Instant::now() < end {
                let before = s.queues[0].ring.used_idx().unwrap();
                offer(&mut s, 0);
                let broken = Deadline::after(SOON);
                loop {
                    if s.queues[0].ring.used_idx().unwrap() != before {
                        s.queues[0].poll_used_raw().unwrap();
                        break;
                    }
                    if s.queues[0].err.take().unwrap() > 0 {
                        breaks += 1;
                        s.stop_queue(0);
                        s.queues[0].reset(0).unwrap();
                        s.bases[0] = 0;
                        s.start_queue(0);
                        break;
                    }
                    assert!(!broken.expired(), "neither completed nor broken");
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(
                breaks > 0,
                "the race was never lost: the test shows nothing"
            );
        });
        // Whatever it got to see, it wrote nothing outside of the two buffers.
        echo::round_trip(&mut s.queues[1], b"unharmed");
        s.stop_queue(0);
        s.queues[0].reset(0).unwrap();
        s.bases[0] = 0;
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_83_areas_that_overlap() {
    run("case_83", |rig| {
        for (desc, avail, used) in [(0, 0, 0), (0, 16, 0), (0, 4096, 4096), (4096, 0, 4096)] {
            let mut s = rig.builder().not_started().connect(rig.path());
            let base = s.memory.alloc(64 << 10, 4096).unwrap();
            let at = |offset: u64| s.memory.user_addr(base + offset).unwrap();
            let overlapping = VringAddr {
                index: 0,
                desc: at(desc),
                avail: at(avail),
                used: at(used),
                ..VringAddr::default()
            };
            use std::os::fd::AsRawFd;
            let fe = s.fe();
            fe.set_vring_num(0, 256).unwrap();
            fe.set_vring_addr(&overlapping).unwrap();
            fe.set_vring_call(0, Some(s.queues[0].call.as_raw_fd()))
                .unwrap();
            fe.set_vring_kick(0, Some(s.queues[0].kick.as_raw_fd()))
                .unwrap();
            fe.set_vring_enable(0, true).unwrap();
            s.start_queue(1);
            for index in 1..200u16 {
                // The available index, which is something else as well.
                let bytes = index.to_le_bytes();
                s.memory.write(base + avail + 2, &bytes).unwrap();
                s.queues[0].kick_always().unwrap();
                if index % 20 == 0 {
                    echo::round_trip(&mut s.queues[1], b"unharmed");
                }
            }
            s.fe().get_vring_base(0).unwrap();
            s.start_queue(0);
            works(&mut s);
            s.disconnect();
        }
    });
}

#[test]
fn case_83_nothing_is_read_back_from_the_used_ring() {
    run("case_83_used", |rig| {
        let mut s = rig.session();
        // Where a ring goes on is read from it, when its owner takes it; and never again.
        rig.device.take_event(Event::QueueStarted(0));
        for round in 1..300u16 {
            let noise = round.wrapping_mul(0x9e37);
            s.queues[0].ring.set_used_idx(noise).unwrap();
            let mut request = EchoRequest::new(&s.memory, 8, 8);
            request.prepare(round.into());
            s.queues[0].add(&request.segs()).unwrap();
            s.queues[0].publish().unwrap();
            s.queues[0].kick_always().unwrap();
            let queue = &mut s.queues[0];
            eventually("used index", Deadline::after(SOON), round, || {
                queue.ring.used_idx().unwrap()
            });
            request.check(queue.poll_used().unwrap().expect("a completion"));
        }
        // Moving between tables does not read it back either.
        s.queues[0].ring.set_used_idx(0x7777).unwrap();
        let regions = s.memory.regions();
        s.fe().set_mem_table(&[&regions[0]]).unwrap();
        s.fe().set_vring_enable(0, false).unwrap();
        s.fe().set_vring_enable(0, true).unwrap();
        let request = EchoRequest::new(&s.memory, 8, 8);
        s.queues[0].add(&request.segs()).unwrap();
        s.queues[0].publish().unwrap();
        s.queues[0].kick_always().unwrap();
        let queue = &s.queues[0];
        eventually("used index", Deadline::after(SOON), 300, || {
            queue.ring.used_idx().unwrap()
        });
    });
}

#[test]
fn case_84_a_kick_storm() {
    run("case_84", |rig| {
        let mut s = rig.session();
        let storm = |s: &mut crate::sim::Session| {
            let lines = rig.log_lines().len();
            let stop = AtomicBool::new(false);
            let [first, second] = &mut s.queues[..] else {
                panic!("two queues")
            };
            let kick = &first.kick;
            let served = thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        kick.signal().unwrap();
                    }
                });
                let mut load = EchoLoad::new(second, 8, 64);
                let end = Instant::now() + STORM;
                while Instant::now() < end {
                    load.run(100);
                }
                stop.store(true, Ordering::Relaxed);
                load.completed
            });
            assert!(
                served >= 100,
                "the other queue got {served} requests through"
            );
            let lines = &rig.log_lines()[lines..];
            assert!(lines.len() <= 3, "{lines:?}");
        };
        storm(&mut s);
        works(&mut s);
        // The device is not called for nothing.
        let kicks = rig.server.queue_stats(0).unwrap().kicks;
        assert!(
            kicks <= 10,
            "{kicks} calls of kick for a handful of requests"
        );
        offer(&mut s, 5000);
        rig.broke("a bad head", &s, "head 5000");
        storm(&mut s);
        assert_eq!(
            rig.device
                .count(|event| matches!(event, Event::RingBroken { .. })),
            0
        );
        assert_eq!(rig.server.stats().broken_rings, 1);
        s.queues[0].kick.take().unwrap();
        s.stop_queue(0);
        s.queues[0].reset(0).unwrap();
        s.bases[0] = 0;
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_86_indexes_that_change_all_the_time() {
    run("case_86", |rig| {
        let mut s = rig.session();
        // Both bytes of the index change with most steps; a torn read would be far ahead.
        s.stop_queue(0);
        s.queues[0].reset(0x00f0).unwrap();
        s.bases[0] = 0x00f0;
        s.start_queue(0);
        let gpa = s.memory.alloc(8, 8).unwrap();
        for round in 0..20_000u32 {
            s.queues[0].add(&[Seg::writable(gpa, 8)]).unwrap();
            s.queues[0].publish().unwrap();
            s.queues[0].kick().unwrap();
            if round % 64 == 63 {
                s.queues[0]
                    .wait_used_all(64, Deadline::after(SOON))
                    .unwrap();
            }
        }
        let out = s.queues[0].outstanding();
        s.queues[0]
            .wait_used_all(out, Deadline::after(SOON))
            .unwrap();
        assert_eq!(rig.server.queue_stats(0).unwrap().breaks, 0);
        works(&mut s);
    });
}

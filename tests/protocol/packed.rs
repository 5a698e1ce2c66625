//! Packed rings: everything that a split ring can do, in sizes that only a packed one can have.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use super::device::{Event, SOON};
use super::rig::{Looper, run, run_in, works};
use crate::sim::echo::{self, EchoLoad, EchoRequest};
use crate::sim::packed_ring::{EVENTS_DESC, Position};
use crate::sim::wire::feature;
use crate::sim::{
    Deadline, GuestMemory, PackedDriver, RegionSpec, Seg, Session, SessionBuilder, eventually,
};
use vu_server::{Context, StopReason};

/// Two of them are no powers of two and one is the largest.
const SIZES: [u16; 7] = [1, 2, 3, 7, 256, 1000, 32768];

/// With and without EVENT_IDX.
fn both(builder: impl Fn() -> SessionBuilder) -> [SessionBuilder; 2] {
    [
        builder(),
        builder().without_features(feature::EVENT_IDX | feature::INDIRECT_DESC),
    ]
}

/// A chain of more than two buffers, eight bytes each.
struct Long {
    readable: usize,
    from: u64,
    to: u64,
    segs: Vec<Seg>,
}

impl Long {
    /// `count` buffers, half of them writable.
    #[track_caller]
    fn new(memory: &Arc<GuestMemory>, count: usize) -> Self {
        let readable = count / 2;
        let [from, to] =
            [readable, count - readable].map(|n| memory.alloc(16 * n as u64, 8).unwrap());
        let at = |gpa: u64, n: usize| gpa + 16 * n as u64;
        let out = (0..readable).map(|n| Seg::readable(at(from, n), 8));
        let back = (0..count - readable).map(|n| Seg::writable(at(to, n), 8));
        Long {
            readable,
            from,
            to,
            segs: out.chain(back).collect(),
        }
    }

    /// There and back, each buffer with something of its own.
    #[track_caller]
    fn round_trip(&self, driver: &mut PackedDriver, seed: u64, indirect: bool) {
        let memory = driver.memory().clone();
        let word = |n: usize| seed << 16 | n as u64;
        for n in 0..self.readable {
            let at = self.from + 16 * n as u64;
            memory.write(at, &word(n).to_le_bytes()).unwrap();
        }
        let id = if indirect {
            driver.submit_indirect(&self.segs)
        } else {
            driver.submit(&self.segs)
        };
        let used = driver.wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(
            (used.head, used.len),
            (id.unwrap(), 8 * self.readable as u32)
        );
        for n in 0..self.readable {
            let got = memory.read(self.to + 16 * n as u64, 8).unwrap();
            assert_eq!(got, word(n).to_le_bytes(), "buffer {n} of round {seed}");
        }
    }
}

#[test]
fn rings_of_all_sizes() {
    run("packed_sizes", |rig| {
        for size in SIZES {
            for builder in both(|| rig.builder().queue_size(size)) {
                let mut s = builder.packed().connect(rig.path());
                let laps = 3 * u64::from(size.min(1000)) + 17;
                // As many as fit, and a number that has nothing to do with the size.
                for depth in [usize::from(size / 2).min(300), 3] {
                    if depth > 0 && 2 * depth <= size.into() {
                        EchoLoad::new(&mut s.queues[0], depth, 64).run(laps);
                    }
                }
                if s.features & feature::INDIRECT_DESC != 0 {
                    let depth = usize::from(size).min(300);
                    EchoLoad::new(&mut s.queues[1], depth, 64)
                        .indirect()
                        .run(laps);
                }
                assert_eq!(rig.server.queue_stats(0).unwrap().inflight, 0);
                s.disconnect();
            }
        }
    });
}

#[test]
fn chains_over_the_rings_end() {
    run("packed_end", |rig| {
        for size in [3, 7, 256, 1000] {
            let mut s = rig.builder().packed().queue_size(size).connect(rig.path());
            for count in [2, size / 2 + 1, size - 1, size] {
                let count = usize::from(count.clamp(2, 100.min(size)));
                let chain = Long::new(&s.memory, count);
                for round in 0..u64::from(size) + 5 {
                    chain.round_trip(&mut s.queues[0], round, false);
                }
            }
            s.disconnect();
        }
    });
}

#[test]
fn indirect_tables_of_all_lengths() {
    run("packed_indirect", |rig| {
        let mut s = rig.builder().packed().queue_size(5).connect(rig.path());
        for count in [2, 3, 5, 6, 100, 1024] {
            let chain = Long::new(&s.memory, count);
            for round in 0..7 {
                chain.round_trip(&mut s.queues[0], round, true);
            }
        }
        works(&mut s);
    });
}

/// Requests that the device keeps, in the order of their submission.
#[track_caller]
fn hold(
    rig: &super::rig::Rig,
    s: &mut Session<PackedDriver>,
    count: usize,
) -> Vec<(u16, EchoRequest)> {
    rig.device.hold(true);
    let requests = (0..count)
        .map(|number| {
            let mut request = EchoRequest::new(&s.memory, 40, 40);
            request.prepare(number as u64);
            (s.queues[0].submit(&request.segs()).unwrap(), request)
        })
        .collect();
    rig.device.wait_held(count);
    rig.device.hold(false);
    requests
}

#[test]
fn completions_out_of_order() {
    run("packed_order", |rig| {
        let mut s = rig.builder().packed().queue_size(11).connect(rig.path());
        for round in 0..50 {
            let requests = hold(rig, &mut s, 5);
            let mut held = rig.device.take_held();
            let by = round % 5;
            held.rotate_left(by);
            held.reverse();
            held.into_iter().for_each(super::device::answer);
            let order = (0..5).map(|n| (n + by) % 5).rev();
            for (id, request) in order.map(|n| &requests[n]) {
                let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
                assert_eq!(used.head, *id);
                request.check(used);
            }
        }
        works(&mut s);
    });
}

#[test]
fn a_call_for_one_descriptor_only() {
    run("packed_event", |rig| {
        let mut s = rig.builder().packed().queue_size(9).connect(rig.path());
        // A ring's first completion calls whatever the driver says.
        works(&mut s);
        for _ in 0..20 {
            let requests = hold(rig, &mut s, 4);
            let mut held = rig.device.take_held().into_iter();
            // The third chain's head, two descriptors each.
            let size = s.queues[0].size();
            let wanted = s.queues[0].taken().after(4, size);
            s.queues[0]
                .ring
                .set_driver_events(wanted.encode(), EVENTS_DESC)
                .unwrap();
            s.queues[0].call.take().unwrap();
            held.by_ref().take(2).for_each(super::device::answer);
            assert_eq!(s.queues[0].call.take().unwrap(), 0, "called too early");
            held.for_each(super::device::answer);
            let soon = Deadline::after(SOON);
            s.queues[0].call.wait("the call", soon).unwrap();
            for (_, request) in &requests {
                request.check(s.queues[0].poll_used().unwrap().expect("a completion"));
            }
        }
    });
}

#[test]
fn no_calls_when_there_is_no_wish_for_any() {
    run("packed_quiet", |rig| {
        for builder in both(|| rig.builder().queue_size(6)) {
            let mut s = builder.packed().connect(rig.path());
            s.queues[0].disable_calls().unwrap();
            for round in 0..50 {
                let mut request = EchoRequest::new(&s.memory, 16, 16);
                request.prepare(round);
                s.queues[0].submit(&request.segs()).unwrap();
                let queue = &mut s.queues[0];
                eventually("completion", Deadline::after(SOON), true, || {
                    let used = queue.poll_used().unwrap();
                    used.inspect(|used| request.check(*used)).is_some()
                });
            }
            // Both queues: nothing else is due.
            s.stop_queue(0);
            assert_eq!(s.queues[0].call.take().unwrap(), 0);
            s.disconnect();
        }
    });
}

#[test]
fn where_a_ring_stands_and_goes_on() {
    run("packed_base", |rig| {
        for size in [1, 5, 16, 1000] {
            let mut s = rig.builder().packed().queue_size(size).connect(rig.path());
            let mut wraps = [false; 2];
            for round in 0..12u16 {
                let base = s.stop_queue(0);
                let next = u32::from(s.queues[0].next().encode());
                assert_eq!(base, next << 16 | next, "{size}: {base:#x}");
                wraps[usize::from(s.queues[0].next().wrap)] = true;
                match round % 3 {
                    0 => s.start_queue(0),
                    1 => {
                        s.disconnect();
                        s.reconnect(rig.path());
                    }
                    // Made available while nobody looks.
                    _ => {
                        let mut request = EchoRequest::new(&s.memory, 8, 8);
                        request.prepare(round.into());
                        let queue = &mut s.queues[0];
                        queue.add_indirect(&request.segs()).unwrap();
                        queue.publish().unwrap();
                        s.start_queue(0);
                        let used = s.queues[0].wait_used(Deadline::after(SOON));
                        request.check(used.unwrap());
                    }
                }
                let count = u64::from(size) / 2 + 1;
                EchoLoad::new(&mut s.queues[0], 1, 16).indirect().run(count);
            }
            assert_eq!(wraps, [true; 2], "{size}");
            s.disconnect();
        }
    });
}

#[test]
fn a_ring_begins_wherever_the_front_end_says() {
    run("packed_begin", |rig| {
        let mut s = rig.builder().packed().queue_size(10).connect(rig.path());
        for wrap in [true, false] {
            for index in [0, 1, 9] {
                s.stop_queue(0);
                let at = Position { index, wrap };
                s.queues[0].reset(at).unwrap();
                s.bases[0] = u32::from(at.encode()) << 16 | u32::from(at.encode());
                s.start_queue(0);
                EchoLoad::new(&mut s.queues[0], 4, 32).run(40);
            }
        }
        works(&mut s);
    });
}

#[test]
fn the_reply_to_get_vring_base_waits_for_what_is_in_flight() {
    run("packed_drain", |rig| {
        let mut s = rig.builder().packed().queue_size(7).connect(rig.path());
        let requests = hold(rig, &mut s, 3);
        s.fe().send_get_vring_base(0).unwrap();
        s.fe().wait_consumed().unwrap();
        echo::round_trip(&mut s.queues[1], b"meanwhile");
        let mut held = rig.device.take_held();
        held.reverse();
        held.into_iter().for_each(super::device::answer);
        s.bases[0] = s.fe().recv_vring_base(0).unwrap();
        let six = 0x8006;
        assert_eq!(s.bases[0], six << 16 | six);
        for (id, request) in requests.iter().rev() {
            let used = s.queues[0].poll_used().unwrap().expect("a completion");
            assert_eq!(used.head, *id);
            request.check(used);
        }
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn after_a_disconnect_with_requests_in_flight() {
    run("packed_abort", |rig| {
        let mut s = rig.builder().packed().queue_size(12).connect(rig.path());
        for _ in 0..10 {
            let requests = hold(rig, &mut s, 4);
            // The first two are answered, the others wait: the next back-end finds them in the ring.
            let mut held = rig.device.take_held();
            held.drain(..2).for_each(super::device::answer);
            s.abort();
            let gone = Event::QueueStopping(0, StopReason::Disconnected);
            rig.device.take_event(gone);
            // Nobody hears of these any more.
            held.into_iter().for_each(super::device::answer);
            s.reconnect(rig.path());
            for (id, request) in &requests {
                let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
                assert_eq!(used.head, *id);
                request.check(used);
            }
            works(&mut s);
        }
    });
}

/// Runs `body` while both queues are under load; how much each has done.
#[track_caller]
fn under_load(
    s: &mut Session<PackedDriver>,
    body: impl FnOnce(&Session<PackedDriver>),
) -> Vec<u64> {
    let stop = AtomicBool::new(false);
    let begun = Barrier::new(s.queues.len() + 1);
    let mut queues = std::mem::take(&mut s.queues);
    let completed = thread::scope(|scope| {
        let loads: Vec<_> = queues
            .iter_mut()
            .map(|queue| {
                let (stop, begun) = (&stop, &begun);
                scope.spawn(move || {
                    let mut load = EchoLoad::new(queue, 10, 200);
                    load.run(1);
                    begun.wait();
                    load.run_until(stop);
                    load.completed
                })
            })
            .collect();
        begun.wait();
        body(s);
        stop.store(true, Ordering::Relaxed);
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    s.queues = queues;
    completed
}

#[test]
fn tables_change_under_load() {
    run("packed_tables", |rig| {
        for builder in both(|| rig.builder().queue_size(30)) {
            let mut s = builder.packed().connect(rig.path());
            let completed = under_load(&mut s, |s| {
                for _ in 0..200 {
                    let region = s.add_region(RegionSpec::new(1 << 40, 1 << 20));
                    s.remove_region(region.spec().gpa);
                    let regions = s.memory.regions();
                    s.fe().set_mem_table(&[&regions[0]]).unwrap();
                }
            });
            assert!(completed.iter().all(|count| *count > 0), "{completed:?}");
            works(&mut s);
            s.disconnect();
        }
    });
}

#[test]
fn rings_move_between_loops_under_load() {
    run_in(
        "packed_moves",
        |builder| builder,
        |rig, home| {
            let contexts = [home.clone(), Arc::new(Context::epoll().unwrap())];
            let loopers = [0, 1].map(|n| Looper::start(&contexts[n]));
            let mut s = rig.builder().packed().queue_size(31).connect(rig.path());
            let completed = under_load(&mut s, |s| {
                for round in 0..300 {
                    for index in [0, 1] {
                        let to = &contexts[(round + index as usize) % 2];
                        rig.server.attach_queue(index, Some(to)).unwrap();
                    }
                    // As long as this takes.
                    s.fe().get_features().unwrap();
                }
            });
            assert!(completed.iter().all(|count| *count > 0), "{completed:?}");
            works(&mut s);
            s.disconnect();
            rig.server.stop().unwrap();
            loopers.into_iter().for_each(Looper::finish);
        },
    );
}

#[test]
fn a_reset_begins_at_the_start() {
    run("packed_reset", |rig| {
        let mut s = rig.builder().packed().queue_size(5).connect(rig.path());
        EchoLoad::new(&mut s.queues[0], 2, 32).run(6);
        s.fe().reset_device().unwrap();
        s.reset_rings();
        s.fe().set_features(s.features).unwrap();
        s.start_all();
        works(&mut s);
        assert_eq!(s.stop_queue(0), 0x8002_8002);
    });
}

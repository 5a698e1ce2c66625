//! Section C, second part: memory that comes and goes while rings run.

use std::sync::Arc;

use vu_server::StopReason;

use super::device::{Event, SOON};
use super::memory::{GUEST, MIB, add};
use super::rig::{Bad, Rig, run, works};
use crate::sim::echo::{self, EchoRequest};
use crate::sim::wire::{MemRegion, req};
use crate::sim::{
    Deadline, Region, RegionSpec, RingLayout, Seg, Session, SplitDriver, eventually, process,
};

#[test]
fn case_38_removing_what_is_not_there() {
    run("case_38", |rig| {
        let mut s = rig.session();
        let spare = s.add_region(RegionSpec::new(1 << 40, MIB));
        let ok = spare.wire();
        let remove = |wire: MemRegion| Bad::new(req::REM_MEM_REG, wire.encode_single());
        rig.all_refused(
            &mut s,
            &[
                remove(MemRegion {
                    size: MIB - 4096,
                    ..ok
                }),
                remove(MemRegion {
                    gpa: ok.gpa + 4096,
                    ..ok
                }),
                remove(MemRegion {
                    user_addr: ok.user_addr + 4096,
                    ..ok
                }),
                remove(MemRegion { size: 0, ..ok }),
                remove(MemRegion {
                    gpa: 1 << 50,
                    size: 1,
                    user_addr: 1,
                    mmap_offset: 0,
                }),
                Bad::new(req::REM_MEM_REG, 0u64.to_ne_bytes()),
                Bad::new(req::ADD_MEM_REG, 0u64.to_ne_bytes()),
            ],
        );
        assert_eq!(rig.server.stats().memory_regions, 2);
        // The offset does not name a region, and some front-ends send the descriptor along.
        let fds = process::open_fds();
        let body = MemRegion {
            mmap_offset: 77,
            ..ok
        }
        .encode_single();
        s.fe()
            .set(req::REM_MEM_REG, &body, &[spare.raw_fd()])
            .unwrap();
        assert_eq!(process::open_fds(), fds, "the descriptor of a removal");
        rig.refused(s.fe(), &remove(ok).named("removing it twice"));
        works(&mut s);
    });
}

#[test]
fn case_39_memory_that_goes_under_requests_in_flight() {
    run("case_39", |rig| {
        let mut s = rig.session();
        let ours = process::mappings(GUEST);
        let spare = s.add_region(RegionSpec::new(1 << 40, MIB));
        assert_eq!(
            process::mappings(GUEST),
            ours + 2,
            "the driver's mapping and the server's"
        );
        let mut request = Request::in_region(&spare);
        rig.device.hold(true);
        request.submit(&mut s);
        rig.device.wait_held(1);
        rig.device.hold(false);
        // The acknowledgement does not wait for the element, the unmapping does.
        s.fe().rem_mem_reg(&spare).unwrap();
        works_around(&mut s, 1);
        assert_eq!(process::mappings(GUEST), ours + 2);
        // Nothing new may use it.
        rig.device.release();
        request.check(&mut s);
        works(&mut s);
        eventually("mappings", Deadline::after(SOON), ours + 1, || {
            process::mappings(GUEST)
        });
        request.submit(&mut s);
        rig.broke(
            "a buffer in removed memory",
            &s,
            "is not all in guest memory",
        );
    });
}

/// Queue `index` answers while another one is busy.
#[track_caller]
fn works_around(session: &mut Session, index: usize) {
    echo::round_trip(&mut session.queues[index], b"meanwhile");
}

/// A request whose buffers lie in one region.
struct Request {
    region: Arc<Region>,
    from: u64,
    to: u64,
    sent: Vec<u8>,
}

impl Request {
    fn in_region(region: &Arc<Region>) -> Self {
        let (from, to) = (region.alloc(512, 8).unwrap(), region.alloc(512, 8).unwrap());
        let sent = echo::pattern(from, 512);
        region.write(from, &sent).unwrap();
        Request {
            region: region.clone(),
            from,
            to,
            sent,
        }
    }

    fn submit(&mut self, session: &mut Session) {
        let segs = [Seg::readable(self.from, 512), Seg::writable(self.to, 512)];
        session.queues[0].submit(&segs).unwrap();
    }

    fn check(&self, session: &mut Session) {
        session.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        let mut got = vec![0; 512];
        self.region.read_into(self.to, &mut got).unwrap();
        assert_eq!(got, self.sent, "written after the memory was removed");
    }
}

#[test]
fn case_40_removing_one_area_of_a_running_ring() {
    run("case_40", |rig| {
        for area in 0..3 {
            let mut s = Pieces::start(rig);
            echo::round_trip(&mut s.queues[0], b"a ring in three regions");
            let gone = s.memory.regions()[1 + area].clone();
            s.fe().rem_mem_reg(&gone).unwrap();
            s.queues[0].kick_always().unwrap();
            rig.broke(&format!("area {area} is gone"), &s, "not in one region");
            works_around(&mut s, 1);
            assert_eq!(s.stop_queue(0), 1, "base of the stopped ring");
            // Back, in a new place of the server's address space.
            s.fe().add_mem_reg(&gone).unwrap();
            s.start_queue(0);
            works(&mut s);
            s.disconnect();
        }
    });
}

/// A session whose queue 0 has each area in a region of its own.
struct Pieces;

impl Pieces {
    #[track_caller]
    fn start(rig: &Rig) -> Session {
        let at = |n: u64| RegionSpec::new(n << 32, MIB);
        let regions = [RegionSpec::new(0, 16 * MIB), at(1), at(2), at(3)];
        let mut s = rig
            .builder()
            .not_started()
            .mem_slots()
            .regions(&regions)
            .connect(rig.path());
        let layout = RingLayout {
            size: 256,
            desc: 1 << 32,
            avail: 2 << 32,
            used: 3 << 32,
        };
        s.queues[0] = SplitDriver::with_layout(&s.memory, layout, true).unwrap();
        s.start_all();
        s
    }
}

#[test]
fn case_40_a_ring_of_a_stopped_or_disabled_queue() {
    run("case_40_idle", |rig| {
        let mut s = Pieces::start(rig);
        works(&mut s);
        s.fe().set_vring_enable(0, false).unwrap();
        let gone = s.memory.regions()[2].clone();
        s.fe().rem_mem_reg(&gone).unwrap();
        rig.broke("a disabled ring lost its memory", &s, "not in one region");
        assert_eq!(s.stop_queue(0), 1);
        s.fe().add_mem_reg(&gone).unwrap();
        s.fe().set_vring_enable(0, true).unwrap();
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_41_as_many_slots_as_advertised() {
    run("case_41_slots", |rig| {
        let mut s = rig.builder().mem_slots().connect(rig.path());
        let slots = s.fe().get_max_mem_slots().unwrap();
        let small: Vec<_> = (1..slots)
            .map(|n| Region::new(RegionSpec::new(n << 40, 4096)).unwrap())
            .collect();
        for region in &small {
            s.fe().add_mem_reg(region).unwrap();
        }
        assert_eq!(rig.server.stats().memory_regions, slots);
        let last = Region::new(RegionSpec::new(1 << 62, 4096)).unwrap();
        rig.all_refused(&mut s, &[add("one too many", last.wire(), last.raw_fd())]);
        for region in small.iter().rev().step_by(2) {
            s.fe().rem_mem_reg(region).unwrap();
        }
        s.fe().add_mem_reg(&last).unwrap();
        works(&mut s);
        // The table as a whole replaces the slots.
        let all = s.memory.regions();
        s.fe().set_mem_table(&[&all[0], &last]).unwrap();
        assert_eq!(rig.server.stats().memory_regions, 2);
        works(&mut s);
    });
}

#[test]
fn case_41_rounds_leave_nothing_behind() {
    run("case_41_rounds", |rig| {
        const ROUNDS: u32 = 100_000;
        let mut s = rig.session();
        let spare = Region::new(RegionSpec::new(1 << 40, MIB)).unwrap();
        let main = s.memory.regions()[0].clone();
        let rounds = |s: &mut Session, count: u32| {
            // Without acknowledgements: a refusal would end the connection.
            s.fe_mut().acknowledged = false;
            for round in 0..count {
                if round.is_multiple_of(2) {
                    s.fe().add_mem_reg(&spare).unwrap();
                    s.fe().rem_mem_reg(&spare).unwrap();
                } else {
                    s.fe().set_mem_table(&[&spare, &main]).unwrap();
                    s.fe().set_mem_table(&[&main]).unwrap();
                }
            }
            s.fe_mut().acknowledged = true;
            works(s);
        };
        rounds(&mut s, 1000);
        // The two of the driver, and the server's one of the memory that stays.
        let left = || {
            eventually("mappings", Deadline::after(SOON), 3, || {
                process::mappings(GUEST)
            })
        };
        left();
        let (fds, resident) = (process::open_fds(), process::resident_kib());
        rounds(&mut s, ROUNDS);
        assert_eq!(process::open_fds(), fds);
        works(&mut s);
        left();
        let grown = process::resident_kib().saturating_sub(resident);
        assert!(grown < 4096, "{grown} KiB more after {ROUNDS} rounds");
    });
}

#[test]
fn a_table_sent_again_keeps_requests_and_rings() {
    run("table_again", |rig| {
        let mut s = rig.session();
        let region = s.memory.regions()[0].clone();
        rig.device.hold(true);
        let mut request = Request::in_region(&region);
        request.submit(&mut s);
        rig.device.wait_held(1);
        let maps = process::mappings(GUEST);
        for _ in 0..10 {
            s.fe().set_mem_table(&[&region]).unwrap();
        }
        assert_eq!(
            process::mappings(GUEST),
            maps,
            "the same region is mapped again"
        );
        rig.device.release();
        request.check(&mut s);
        works(&mut s);
    });
}

#[test]
fn a_buffer_in_memory_added_just_now() {
    run("hotplug", |rig| {
        let mut s = rig.session();
        for n in 1..100u64 {
            let region = s.add_region(RegionSpec::new(n << 40, 64 << 10));
            let mut request = Request::in_region(&region);
            request.submit(&mut s);
            request.check(&mut s);
            s.remove_region(n << 40);
        }
        works(&mut s);
        let events = rig
            .device
            .count(|event| matches!(event, Event::RingBroken { .. }));
        assert_eq!(events, 0);
    });
}

#[test]
fn requests_stay_valid_when_the_front_end_goes() {
    run("abort_with_memory", |rig| {
        let mut s = rig.session();
        let request = EchoRequest::new(&s.memory, 64, 64);
        rig.device.hold(true);
        s.queues[0].submit(&request.segs()).unwrap();
        rig.device.wait_held(1);
        let used = s.queues[0].ring.used_idx().unwrap();
        s.abort();
        rig.device
            .take_event(Event::QueueStopping(0, StopReason::Disconnected));
        // The server waits for what is in flight; its memory is still there, the ring is not.
        for element in rig.device.take_held() {
            assert_eq!(element.write(0, &[0x77; 64]), 64);
            element.complete(64).unwrap();
        }
        rig.device.hold(false);
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        assert_eq!(
            s.queues[0].ring.used_idx().unwrap(),
            used,
            "completed into a dead ring"
        );
        let maps = process::mappings(GUEST);
        assert_eq!(maps, 1, "only the driver's own mapping is left");
        let mut next = rig.session();
        works(&mut next);
    });
}

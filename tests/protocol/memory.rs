//! Section C: the memory table and the memory slots.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use vu_server::StopReason;

use super::device::{Event, SOON};
use super::rig::{Bad, Rig, desc, offer, run, run_with, works};
use crate::sim::echo::{self, EchoRequest};
use crate::sim::wire::{self, MemRegion, req};
use crate::sim::{
    Deadline, Region, RegionSpec, RingLayout, Seg, Session, SplitDriver, eventually, process,
};

const MIB: u64 = 1 << 20;
/// Mappings of the guest's memory in this process: the driver's own and the server's.
const GUEST: &str = "memfd:sim-guest";

fn add(what: &str, wire: MemRegion, fd: i32) -> Bad {
    Bad::new(req::ADD_MEM_REG, wire.encode_single())
        .fds(&[fd])
        .named(format!("adding {what}"))
}

fn table(what: &str, regions: &[MemRegion], fds: &[i32]) -> Bad {
    Bad::new(req::SET_MEM_TABLE, wire::mem_table(regions))
        .fds(fds)
        .named(format!("table with {what}"))
}

/// Both ways to announce one bad region beside a good one.
fn both(what: &str, good: &Region, wire: MemRegion, fd: i32) -> [Bad; 2] {
    [
        add(what, wire, fd),
        table(what, &[good.wire(), wire], &[good.raw_fd(), fd]),
    ]
}

#[test]
fn case_32_counts() {
    run("case_32", |rig| {
        let mut s = rig.session();
        let region = s.memory.regions()[0].clone();
        let fd = region.raw_fd();
        let counted = |count: u32, entries: usize, fds: usize| {
            let mut body = wire::mem_table(&vec![region.wire(); entries]);
            body[..4].copy_from_slice(&count.to_ne_bytes());
            Bad::new(req::SET_MEM_TABLE, body)
                .fds(&vec![fd; fds])
                .named(format!("{count} regions, {entries} entries, {fds} fds"))
        };
        rig.all_refused(
            &mut s,
            &[
                counted(0, 0, 0),
                counted(9, 9, 9),
                counted(9, 8, 9),
                counted(33, 8, 8),
                counted(u32::MAX, 1, 1),
                counted(2, 1, 2),
                counted(1, 2, 1),
                counted(1, 2, 2),
                counted(2, 2, 1),
                counted(1, 1, 2),
                counted(1, 1, 0),
            ],
        );
        assert_eq!(rig.server.stats().memory_regions, 1);
    });
}

#[test]
fn case_33_sizes_and_overflows() {
    run("case_33", |rig| {
        let mut s = rig.session();
        let good = s.memory.regions()[0].clone();
        let spare = Region::new(RegionSpec::new(1 << 40, MIB)).unwrap();
        let ok = spare.wire();
        let max = u64::MAX - MIB + 1;
        let cases = [
            ("size 0", MemRegion { size: 0, ..ok }),
            (
                "a guest address that overflows",
                MemRegion {
                    gpa: max + 4096,
                    ..ok
                },
            ),
            (
                "a user address that overflows",
                MemRegion {
                    user_addr: max + 4096,
                    ..ok
                },
            ),
            (
                "an offset that overflows",
                MemRegion {
                    mmap_offset: max + 4096,
                    ..ok
                },
            ),
            (
                "an offset beyond what a file can have",
                MemRegion {
                    mmap_offset: 1 << 63,
                    ..ok
                },
            ),
            (
                "size over 2^47",
                MemRegion {
                    size: (1 << 47) + 4096,
                    ..ok
                },
            ),
            (
                "size 2^64 - 1",
                MemRegion {
                    size: u64::MAX,
                    ..ok
                },
            ),
        ];
        for (what, wire) in cases {
            rig.all_refused(&mut s, &both(what, &good, wire, spare.raw_fd()));
        }
        assert_eq!(rig.server.stats().memory_regions, 1);
        s.fe().add_mem_reg(&spare).unwrap();
    });
}

#[test]
fn case_34_overlaps_and_an_unsorted_table() {
    run("case_34", |rig| {
        let mut s = rig.session();
        let good = s.memory.regions()[0].clone();
        let spare = Region::new(RegionSpec::new(1 << 40, MIB)).unwrap();
        let (ok, fd) = (spare.wire(), spare.raw_fd());
        let end = good.wire().size;
        let user = good.wire().user_addr;
        for (what, wire) in [
            (
                "the last page of another",
                MemRegion {
                    gpa: end - 4096,
                    ..ok
                },
            ),
            ("all of another", MemRegion { gpa: 0, ..ok }),
            (
                "the last byte of another's user range",
                MemRegion {
                    user_addr: user + end - 1,
                    ..ok
                },
            ),
            (
                "another's user range",
                MemRegion {
                    user_addr: user,
                    ..ok
                },
            ),
        ] {
            rig.all_refused(&mut s, &both(what, &good, wire, fd));
        }
        rig.all_refused(
            &mut s,
            &both("the same twice", &good, good.wire(), good.raw_fd()),
        );
        // Adjacent, and in descending order.
        let near = Region::new(RegionSpec::new(end, MIB)).unwrap();
        s.fe().set_mem_table(&[&spare, &near, &good]).unwrap();
        assert_eq!(rig.server.stats().memory_regions, 3);
        works(&mut s);
    });
}

#[test]
fn case_35_an_offset_inside_a_page() {
    run("case_35", |rig| {
        for offset in [0x1000, 0x234_0010, 0x11] {
            let regions = [
                RegionSpec::new(0, MIB),
                RegionSpec::new(1 << 32, MIB).mmap_offset(offset),
            ];
            let mut s = rig.builder().regions(&regions).connect(rig.path());
            let odd = s.memory.regions()[1].clone();
            let (from, to) = (odd.alloc(100, 1).unwrap(), odd.alloc(100, 1).unwrap());
            let sent = echo::pattern(offset, 100);
            odd.write(from, &sent).unwrap();
            s.queues[0]
                .submit(&[Seg::readable(from, 100), Seg::writable(to, 100)])
                .unwrap();
            s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            assert_eq!(s.memory.read(to, 100).unwrap(), sent, "offset {offset:#x}");
            s.disconnect();
        }
    });
}

#[test]
fn case_36_a_file_that_is_too_small() {
    run("case_36", |rig| {
        let mut s = rig.session();
        let good = s.memory.regions()[0].clone();
        let spare = Region::new(RegionSpec::new(1 << 40, MIB).mmap_offset(8192)).unwrap();
        rig.all_refused(
            &mut s,
            &both(
                "one byte more",
                &good,
                MemRegion {
                    size: MIB + 1,
                    ..spare.wire()
                },
                spare.raw_fd(),
            ),
        );
        rig.all_refused(
            &mut s,
            &both(
                "a later offset",
                &good,
                MemRegion {
                    mmap_offset: 8193,
                    ..spare.wire()
                },
                spare.raw_fd(),
            ),
        );
        spare.truncate_file(0).unwrap();
        rig.all_refused(
            &mut s,
            &both("an empty file", &good, spare.wire(), spare.raw_fd()),
        );
    });
}

#[test]
fn case_30_descriptors_that_cannot_be_mapped() {
    run("case_30", |rig| {
        let mut s = rig.session();
        let good = s.memory.regions()[0].clone();
        let wire = MemRegion {
            gpa: 1 << 40,
            size: 4096,
            user_addr: 1 << 46,
            mmap_offset: 0,
        };
        let sealed = Region::new(RegionSpec::new(1 << 40, MIB)).unwrap();
        let read_only = File::open(format!("/proc/self/fd/{}", sealed.raw_fd())).unwrap();
        let mut ends = [0; 2];
        // SAFETY: two ints to write to.
        assert_eq!(
            unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) },
            0
        );
        // SAFETY: both are new and owned by nobody else.
        let pipe = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let event = crate::sim::EventFd::new().unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let directory = File::open("/").unwrap();
        let device = File::open("/dev/null").unwrap();
        for (what, fd) in [
            ("a read-only descriptor", read_only.as_raw_fd()),
            ("a pipe", pipe[1].as_raw_fd()),
            ("an eventfd", event.as_raw_fd()),
            ("a socket", socket.as_raw_fd()),
            ("a directory", directory.as_raw_fd()),
            ("a device", device.as_raw_fd()),
            ("the connection", s.fe().raw_fd()),
        ] {
            rig.all_refused(&mut s, &both(what, &good, wire, fd));
        }
        let unmapped = memfd(4096);
        // SAFETY: the call takes no pointers.
        let status =
            unsafe { libc::fcntl(unmapped.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(status, 0);
        rig.all_refused(
            &mut s,
            &both("a write-sealed file", &good, wire, unmapped.as_raw_fd()),
        );
    });
}

fn memfd(length: i64) -> OwnedFd {
    // SAFETY: the name is a terminated string; the descriptor is new and owned by nobody else.
    unsafe {
        let fd = libc::memfd_create(
            c"sim-other".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        );
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, length), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn case_37_only_sealed_memory_if_the_program_says_so() {
    run_with(
        "case_37",
        |builder| builder.require_sealed_memory(true),
        |rig| {
            let sealed = [RegionSpec::new(0, 16 * MIB).sealed()];
            let mut s = rig.builder().regions(&sealed).connect(rig.path());
            let good = s.memory.regions()[0].clone();
            let open = Region::new(RegionSpec::new(1 << 40, MIB)).unwrap();
            rig.all_refused(
                &mut s,
                &both("an unsealed file", &good, open.wire(), open.raw_fd()),
            );
        },
    );
}

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
        const ROUNDS: u32 = 10_000;
        let mut s = rig.session();
        let spare = Region::new(RegionSpec::new(1 << 40, MIB)).unwrap();
        let main = s.memory.regions()[0].clone();
        let round = |round: u32| {
            if round % 2 == 0 {
                s.fe().add_mem_reg(&spare).unwrap();
                s.fe().rem_mem_reg(&spare).unwrap();
            } else {
                s.fe().set_mem_table(&[&spare, &main]).unwrap();
                s.fe().set_mem_table(&[&main]).unwrap();
            }
        };
        (0..1000).for_each(round);
        let (fds, maps, resident) = (
            process::open_fds(),
            process::mappings(GUEST),
            process::resident_kib(),
        );
        (0..ROUNDS).for_each(round);
        assert_eq!(process::open_fds(), fds);
        works(&mut s);
        eventually("mappings", Deadline::after(SOON), maps, || {
            process::mappings(GUEST)
        });
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
fn case_48_a_ring_across_two_adjacent_regions() {
    run("case_48", |rig| {
        let regions = [RegionSpec::new(0, MIB), RegionSpec::new(MIB, MIB)];
        let mut s = rig.builder().regions(&regions).connect(rig.path());
        let user = regions[0].user_addr;
        let inside = s.queues[0].ring.layout().vring_addr(&s.memory, 0).unwrap();
        s.stop_queue(0);
        for (what, addr) in [
            (
                "descriptors",
                wire::VringAddr {
                    desc: user + MIB - 16,
                    ..inside
                },
            ),
            (
                "available ring",
                wire::VringAddr {
                    avail: user + MIB - 2,
                    ..inside
                },
            ),
            (
                "used ring",
                wire::VringAddr {
                    used: user + MIB - 4,
                    ..inside
                },
            ),
        ] {
            let bad = Bad::new(req::SET_VRING_ADDR, addr.encode()).named(what);
            rig.refused(s.fe(), &bad);
        }
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_72_a_buffer_across_two_adjacent_regions() {
    run("case_72_adjacent", |rig| {
        // Adjacent for the guest, far apart for the front-end.
        let regions = [
            RegionSpec::new(0, MIB),
            RegionSpec::new(MIB, MIB).user_addr(1 << 44),
        ];
        let mut s = rig.builder().regions(&regions).connect(rig.path());
        let (from, to) = (MIB - 100, MIB - 500);
        let sent = echo::pattern(7, 200);
        s.memory.write(from, &sent).unwrap();
        s.queues[0]
            .submit(&[Seg::readable(from, 200), Seg::writable(to, 300)])
            .unwrap();
        let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(used.len, 200);
        let shape = rig.device.last_shape();
        assert_eq!(
            (shape.readable, shape.writable),
            (vec![100, 100], vec![300])
        );
        assert_eq!(s.memory.read(to, 200).unwrap(), sent);
        // An indirect table too.
        let table = MIB - 16;
        let (a, b) = (s.memory.alloc(8, 8).unwrap(), s.memory.alloc(8, 8).unwrap());
        let entry = |addr, flags| {
            crate::sim::Desc {
                addr,
                len: 8,
                flags,
                next: 1,
            }
            .encode()
        };
        s.memory
            .write(table, &[entry(a, 1), entry(b, 2)].concat())
            .unwrap();
        s.memory.write(a, b"spanning").unwrap();
        desc(&s, 5, table, 32, 4, 0);
        offer(&mut s, 5);
        eventually(
            "answer",
            Deadline::after(SOON),
            b"spanning".to_vec(),
            || s.memory.read(b, 8).unwrap(),
        );
        s.queues[0]
            .poll_used_raw()
            .unwrap()
            .expect("the used entry");
        works(&mut s);
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

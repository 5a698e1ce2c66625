//! Section C: the memory table and the memory slots.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::device::SOON;
use super::rig::{Bad, desc, offer, run, run_with, works};
use crate::sim::echo::{self};
use crate::sim::wire::{self, MemRegion, req};
use crate::sim::{Deadline, Region, RegionSpec, Seg, eventually};

pub const MIB: u64 = 1 << 20;
/// Mappings of the guest's memory in this process: the driver's own and the server's.
pub const GUEST: &str = "memfd:sim-guest";

pub fn add(what: &str, wire: MemRegion, fd: i32) -> Bad {
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

/// Huge pages that the system does not have: sealed, long enough, and a SIGBUS at the first touch.
#[test]
fn case_37_huge_pages_that_are_not_there() {
    run_with(
        "case_37_huge",
        |builder| builder.require_sealed_memory(true),
        |rig| {
            let sealed = [RegionSpec::new(0, 16 * MIB).sealed()];
            let mut s = rig.builder().regions(&sealed).connect(rig.path());
            let good = s.memory.regions()[0].clone();
            let (free, page) = (meminfo("HugePages_Free"), meminfo("Hugepagesize") << 10);
            let size = (free + 1) * page;
            let huge = huge_memfd(size);
            let wire = MemRegion {
                gpa: 1 << 40,
                size,
                user_addr: 1 << 46,
                mmap_offset: 0,
            };
            rig.all_refused(
                &mut s,
                &both(
                    "more huge pages than there are",
                    &good,
                    wire,
                    huge.as_raw_fd(),
                ),
            );
        },
    );
}

/// A number of `/proc/meminfo`.
fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    number
        .unwrap_or_else(|| panic!("no {name}"))
        .parse()
        .unwrap()
}

fn huge_memfd(length: u64) -> OwnedFd {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB;
    // SAFETY: the name is a terminated string; the descriptor is new and owned by nobody else.
    unsafe {
        let fd = libc::memfd_create(c"sim-huge".as_ptr(), flags);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, length as i64), 0);
        assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK), 0);
        OwnedFd::from_raw_fd(fd)
    }
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

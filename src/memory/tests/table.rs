//! Adding, removing and replacing regions; every refusal by its reason.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::*;
use crate::memory::MAX_SLOTS;

const PAGE: u64 = 4096;

fn write(table: &RegionTable, gpa: u64, byte: u8) {
    let host = table.translate(gpa, 1).expect("mapped");
    // SAFETY: one byte of a region of a table that is alive.
    unsafe { host.write_volatile(byte) };
}

fn read(host: *const u8) -> u8 {
    // SAFETY: the callers' pointers are into regions of tables that are alive.
    unsafe { host.read_volatile() }
}

/// Pages of this file that the process has mapped. (The kernel joins neighbouring mappings.)
fn mapped_pages(fd: &OwnedFd) -> u64 {
    let inode = nix::sys::stat::fstat(fd).expect("fstat").st_ino.to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let mine = maps
        .lines()
        .filter(|line| line.split_whitespace().nth(4) == Some(&inode));
    mine.map(|line| {
        let (start, rest) = line.split_once('-').expect("start-end");
        let (end, _) = rest.split_once(' ').expect("end");
        let number = |hex| u64::from_str_radix(hex, 16).expect("an address");
        (number(end) - number(start)) / PAGE
    })
    .sum()
}

#[track_caller]
fn refused(result: Result<RegionTable, MemoryError>, errno: i32, parts: &[&str]) {
    let error = result.expect_err("must be refused");
    assert_eq!(error.errno(), errno, "{error}");
    for part in parts {
        assert!(
            error.to_string().contains(part),
            "{error:?} says {error}, not {part}"
        );
    }
}

#[test]
fn a_region_is_the_file_at_its_offset() {
    let fd = memfd(4 * PAGE);
    let table = table_of(&fd, &[desc(0x10_0000, PAGE, 2 * PAGE)]);
    write(&table, 0x10_0000 + 5, 0xa5);
    let whole = table_of(&fd, &[desc(0, 4 * PAGE, 0)]);
    assert_eq!(
        read(whole.translate(2 * PAGE + 5, 1).expect("mapped")),
        0xa5
    );
}

#[test]
fn an_offset_need_not_be_aligned() {
    let fd = memfd(2 * PAGE);
    let table = table_of(&fd, &[desc(0x10_0000, PAGE, 0x123)]);
    write(&table, 0x10_0000, 0x77);
    write(&table, 0x10_0000 + PAGE - 1, 0x88);
    let whole = table_of(&fd, &[desc(0, 2 * PAGE, 0)]);
    assert_eq!(read(whole.translate(0x123, 1).expect("mapped")), 0x77);
    assert_eq!(
        read(whole.translate(0x122 + PAGE, 1).expect("mapped")),
        0x88
    );
}

#[test]
fn sizes_and_overflows_are_refused() {
    let fd = memfd(PAGE);
    let empty = RegionTable::empty(0);
    let good = desc(0x1000, PAGE, 0);
    let with = |change: fn(&mut RegionDesc)| {
        let mut bad = good;
        change(&mut bad);
        add(&empty, bad, &fd)
    };
    refused(with(|d| d.size = 0), libc::EINVAL, &["size 0x0", "0x1000"]);
    refused(
        with(|d| d.size = (1 << 47) + 1),
        libc::EINVAL,
        &["size 0x800000000001"],
    );
    refused(
        with(|d| d.gpa = u64::MAX - 1),
        libc::EINVAL,
        &["guest address 0xfffffffffffffffe"],
    );
    refused(
        with(|d| d.user_addr = u64::MAX),
        libc::EINVAL,
        &["user address 0xffffffffffffffff"],
    );
    refused(
        with(|d| d.mmap_offset = u64::MAX),
        libc::EINVAL,
        &["mmap offset 0xffffffffffffffff"],
    );
    refused(
        with(|d| d.mmap_offset = 1 << 63),
        libc::EINVAL,
        &["needs 0x8000000000001000"],
    );
    add(&empty, good, &fd).expect("the unchanged one is fine");
}

#[test]
fn overlaps_are_refused_by_name() {
    let fd = memfd(4 * PAGE);
    let table = table_of(&fd, &[desc(0x4000, 2 * PAGE, 0)]);
    for gpa in [0x3000, 0x4000, 0x5000] {
        let new = RegionDesc {
            user_addr: 0x1000_0000 + gpa,
            ..desc(gpa, 2 * PAGE, 0)
        };
        refused(
            add(&table, new, &fd),
            libc::EEXIST,
            &["0x4000", &format!("{gpa:#x}")],
        );
    }
    let same_user = RegionDesc {
        user_addr: 0x7000_0000_5fff,
        ..desc(0x10_0000, PAGE, 0)
    };
    refused(
        add(&table, same_user, &fd),
        libc::EEXIST,
        &["0x700000004000", "0x700000005fff"],
    );
    refused(
        add(&table, desc(0x4000, 2 * PAGE, 0), &fd),
        libc::EEXIST,
        &[],
    );
    // Neighbours on both sides are fine, in any order.
    let table = add(&table, desc(0x6000, PAGE, 0), &fd).expect("above");
    let table = add(&table, desc(0x3000, PAGE, 0), &fd).expect("below");
    let gpas: Vec<u64> = table.descs().map(|desc| desc.gpa).collect();
    assert_eq!(gpas, [0x3000, 0x4000, 0x6000]);
    let twice = [(desc(0, PAGE, 0), &fd), (desc(0, PAGE, 0), &fd)];
    refused(table.replaced(&twice, ANY, 9), libc::EEXIST, &[]);
}

#[test]
fn the_table_has_509_slots() {
    let fd = memfd(PAGE);
    let descs: Vec<_> = (0..MAX_SLOTS as u64)
        .map(|i| desc(i << 20, PAGE, 0))
        .collect();
    let full = table_of(&fd, &descs);
    assert_eq!(full.len(), 509);
    refused(
        add(&full, desc(1 << 40, PAGE, 0), &fd),
        libc::ENOSPC,
        &["510", "509"],
    );
    let one_less = full
        .with_removed(0, PAGE, 0x7000_0000_0000, 2)
        .expect("remove");
    add(&one_less, desc(1 << 40, PAGE, 0), &fd).expect("room again");
}

#[test]
fn only_the_exact_region_is_removed() {
    let fd = memfd(PAGE);
    let table = table_of(&fd, &[desc(0x1000, PAGE, 0)]);
    let user = 0x7000_0000_1000;
    refused(
        table.with_removed(0x2000, PAGE, user, 2),
        libc::ENOENT,
        &["0x2000"],
    );
    refused(
        table.with_removed(0x1000, 2 * PAGE, user, 2),
        libc::ENOENT,
        &["0x2000"],
    );
    refused(
        table.with_removed(0x1000, PAGE, user + 1, 2),
        libc::ENOENT,
        &["0x700000001001"],
    );
    let empty = table.with_removed(0x1000, PAGE, user, 2).expect("remove");
    assert!(empty.is_empty());
    assert_eq!((empty.generation(), empty.translate(0x1000, 1)), (2, None));
}

#[test]
fn a_mapping_lives_as_long_as_a_table_that_names_it() {
    let fd = memfd(2 * PAGE);
    let old = table_of(&fd, &[desc(0x1000, PAGE, 0), desc(0x8000, PAGE, PAGE)]);
    let host = old.translate(0x8000, PAGE).expect("mapped");
    let new = old
        .with_removed(0x8000, PAGE, 0x7000_0000_8000, 2)
        .expect("remove");
    assert_eq!(mapped_pages(&fd), 2);
    write(&old, 0x8000, 3);
    assert_eq!(read(host), 3);
    assert_eq!(new.translate(0x8000, 1), None);
    drop(old);
    assert_eq!(mapped_pages(&fd), 1);
    drop(new);
    assert_eq!(mapped_pages(&fd), 0);
}

#[test]
fn replacing_keeps_what_is_the_same_memory() {
    let fd = memfd(4 * PAGE);
    let other = memfd(4 * PAGE);
    let (a, b) = (desc(0x1000, PAGE, 0), desc(0x8000, PAGE, PAGE));
    let old = table_of(&fd, &[a, b]);
    let host = |table: &RegionTable, gpa| table.translate(gpa, 1).expect("mapped");
    // The same file through another descriptor, in another order, and one region more.
    let again = fd.try_clone().expect("dup");
    let regions = [(b, &again), (desc(0x1_0000, PAGE, 0), &again), (a, &again)];
    let new = old.replaced(&regions, ANY, 2).expect("replace");
    assert_eq!(host(&new, 0x1000), host(&old, 0x1000));
    assert_eq!(host(&new, 0x8000), host(&old, 0x8000));
    // Another file, another offset, another user address: other memory.
    let moved = RegionDesc {
        mmap_offset: 2 * PAGE,
        ..b
    };
    let renamed = RegionDesc {
        user_addr: 0x5000_0000_0000,
        ..b
    };
    for (desc, fd) in [(b, &other), (moved, &fd), (renamed, &fd)] {
        let new = old
            .replaced(&[(a, &other), (desc, fd)], ANY, 2)
            .expect("replace");
        assert_ne!(host(&new, 0x1000), host(&old, 0x1000));
        assert_ne!(host(&new, 0x8000), host(&old, 0x8000));
    }
    assert_eq!(mapped_pages(&fd), 3);
}

#[test]
fn files_that_cannot_be_shared_are_refused() {
    let table = RegionTable::empty(0);
    let wanted = desc(0x1000, 2 * PAGE, PAGE);
    let short = memfd(3 * PAGE - 1);
    refused(
        add(&table, wanted, &short),
        libc::EINVAL,
        &["0x2fff", "0x3000", "0x1000"],
    );
    let fd = memfd(3 * PAGE);
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let read_only = OwnedFd::from(File::open(path).expect("open"));
    refused(
        add(&table, wanted, &read_only),
        libc::EACCES,
        &["mmap", "0x1000"],
    );
    let (pipe, _writer) = nix::unistd::pipe().expect("pipe");
    refused(
        add(&table, wanted, &pipe),
        libc::EINVAL,
        &["not a regular file"],
    );
    let sealed = memfd(3 * PAGE);
    seal(&sealed, SealFlag::F_SEAL_WRITE);
    refused(add(&table, wanted, &sealed), libc::EPERM, &["mmap"]);
    assert_eq!(mapped_pages(&fd) + mapped_pages(&sealed), 0);
    add(&table, wanted, &fd).expect("the same, writable");
}

#[test]
fn the_policy_demands_a_seal() {
    let policy = MemoryPolicy {
        require_shrink_seal: true,
    };
    let fd = memfd(PAGE);
    let table = RegionTable::empty(0);
    let added = || table.with_added(desc(0x1000, PAGE, 0), fd.as_fd(), policy, 1);
    refused(added(), libc::EPERM, &["F_SEAL_SHRINK", "0x1000"]);
    seal(&fd, SealFlag::F_SEAL_SHRINK);
    assert_eq!(added().expect("sealed").len(), 1);
}

#[test]
fn a_refusal_leaves_no_mapping_behind() {
    let fd = memfd(PAGE);
    let short = memfd(PAGE - 1);
    let table = RegionTable::empty(0);
    let regions = [
        (desc(0x1000, PAGE, 0), &fd),
        (desc(0x8000, PAGE, 0), &short),
    ];
    refused(table.replaced(&regions, ANY, 1), libc::EINVAL, &["0x8000"]);
    assert_eq!(mapped_pages(&fd), 0);
}

#[test]
fn rounds_of_changes_leave_nothing_behind() {
    let fd = memfd(2 * PAGE);
    let mut table = table_of(&fd, &[desc(0x1000, PAGE, 0)]);
    for _ in 0..1000 {
        table = add(&table, desc(0x8000, PAGE, PAGE), &fd).expect("add");
        table = table
            .with_removed(0x8000, PAGE, 0x7000_0000_8000, 1)
            .expect("remove");
    }
    assert_eq!(mapped_pages(&fd), 1);
}

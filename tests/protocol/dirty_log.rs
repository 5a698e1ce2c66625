//! The dirty log of a live migration: what is marked, from when to when, and logs that cannot be used.

use super::rig::{Bad, Rig, desc, offer, run, works};
use crate::sim::echo::{self, EchoRequest};
use crate::sim::wire::{self, feature, req};
use crate::sim::{Deadline, EventFd, RegionSpec, Session, SharedFile, eventually};
use std::os::fd::AsRawFd;

use super::device::SOON;

const PAGE: u64 = 4096;
/// SET_VRING_ADDR: writes to the used ring are logged.
const LOG_RING: u32 = 1;

/// A log for the session's memory: one bit for each page.
fn log_for(session: &Session) -> SharedFile {
    let end = session
        .memory
        .regions()
        .iter()
        .map(|region| region.spec().gpa + region.spec().size)
        .max()
        .unwrap();
    SharedFile::new(end.div_ceil(PAGE * 8) as usize).unwrap()
}

/// LOG_ALL for the device's writes, and the rings' flag for those to the used rings, as QEMU does it.
#[track_caller]
fn set_logging(session: &Session, on: bool) {
    let bit = if on { feature::LOG_ALL } else { 0 };
    session.fe().set_features(session.features | bit).unwrap();
    for index in 0..session.queues.len() {
        log_ring(session, index, on.then_some(used_gpa(session, index)));
    }
}

#[track_caller]
fn log_ring(session: &Session, index: usize, base: Option<u64>) {
    let layout = *session.queues[index].ring.layout();
    let mut addr = layout.vring_addr(&session.memory, index as u32).unwrap();
    if let Some(base) = base {
        (addr.flags, addr.log) = (LOG_RING, base);
    }
    session.fe().set_vring_addr(&addr).unwrap();
}

fn used_gpa(session: &Session, index: usize) -> u64 {
    session.queues[index].ring.layout().used
}

/// Pages in ascending order, each once.
fn pages(ranges: impl IntoIterator<Item = (u64, u64)>) -> Vec<u64> {
    let mut pages: Vec<u64> = ranges
        .into_iter()
        .flat_map(|(gpa, len)| gpa / PAGE..(gpa + len).div_ceil(PAGE))
        .collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// The used ring of queue 0, with the event word.
fn used_range(session: &Session) -> (u64, u64) {
    let size = u64::from(session.queues[0].size());
    (used_gpa(session, 0), 4 + 8 * size + 2)
}

/// One request with buffers of `len` bytes; where the device wrote.
#[track_caller]
fn round_trip(session: &mut Session, len: u32) -> (u64, u64) {
    let queue = &mut session.queues[0];
    let mut request = EchoRequest::new(queue.memory(), len, len);
    request.prepare(len.into());
    queue.submit(&request.segs()).unwrap();
    let used = queue.wait_used(Deadline::after(SOON)).unwrap();
    request.check(used);
    (request.segs()[1].gpa, len.into())
}

/// The pages marked by the time that all of `wanted` are. The device may still be turning its notifications on.
#[track_caller]
fn take_all(log: &SharedFile, wanted: &[u64]) -> Vec<u64> {
    let mut seen = Vec::new();
    eventually(
        "marked pages",
        Deadline::after(SOON),
        wanted.to_vec(),
        || {
            seen.extend(log.take_bits());
            seen.sort_unstable();
            seen.dedup();
            seen.clone()
        },
    );
    seen
}

#[track_caller]
fn unmarked(log: &SharedFile, why: &str) {
    assert!(log.take_bits().is_empty(), "{why}");
}

/// A small ring, whose used ring is in one page.
fn session(rig: &Rig) -> Session {
    rig.builder().queue_size(16).connect(&rig.path)
}

#[test]
fn what_the_device_writes_is_marked_while_the_front_end_wants_it() {
    run("dirty_log", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        round_trip(&mut s, 100);
        unmarked(&log, "not wanted yet");
        for len in [1, 4096, 3 * 4096 + 5] {
            set_logging(&s, true);
            let data = round_trip(&mut s, len);
            take_all(&log, &pages([data, used_range(&s)]));
            set_logging(&s, false);
            log.take_bits();
            round_trip(&mut s, len);
            unmarked(&log, "not wanted any more");
        }
        works(&mut s);
    });
}

#[test]
fn rings_are_logged_only_if_their_flag_says_so_and_where_it_says() {
    run("dirty_log_ring", |rig| {
        let mut s = session(rig);
        // Beyond all memory, but inside of the log.
        let log = SharedFile::new(0x1000).unwrap();
        s.fe().set_log_base(&log).unwrap();
        s.fe().set_features(s.features | feature::LOG_ALL).unwrap();
        let data = round_trip(&mut s, 64);
        assert_eq!(log.take_bits(), pages([data]), "without the flag");
        let base = 0x07ff_f000;
        log_ring(&s, 0, Some(base));
        let data = round_trip(&mut s, 64);
        take_all(&log, &pages([data, (base, 16)]));
        log_ring(&s, 0, None);
        log.take_bits();
        let data = round_trip(&mut s, 64);
        assert_eq!(log.take_bits(), pages([data]), "without the flag again");
    });
}

/// The driver's words with a ring that spans pages: entries, index and event are marked where they are.
#[test]
fn a_large_ring_is_marked_where_it_is_written() {
    run("dirty_log_large", |rig| {
        let mut s = rig.builder().queue_size(1024).connect(&rig.path);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        set_logging(&s, true);
        let used = used_gpa(&s, 0);
        for entry in 0..1100 {
            let data = round_trip(&mut s, 8);
            let at = 4 + 8 * (entry % 1024);
            let event = 4 + 8 * 1024;
            let wanted = pages([data, (used, 4), (used + at, 8), (used + event, 2)]);
            assert_eq!(take_all(&log, &wanted), wanted, "entry {entry}");
        }
    });
}

#[test]
fn a_request_popped_before_the_log_was_turned_on_is_marked() {
    run("dirty_log_in_flight", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        rig.device.hold(true);
        let mut requests: Vec<_> = (0..3)
            .map(|_| EchoRequest::new(s.queues[0].memory(), 5000, 5000))
            .collect();
        for request in &mut requests {
            request.prepare(7);
            s.queues[0].submit(&request.segs()).unwrap();
        }
        rig.device.wait_held(3);
        set_logging(&s, true);
        // On this thread, which does not own the queue.
        rig.device.release();
        let data = requests.iter().map(|request| (request.segs()[1].gpa, 5000));
        take_all(&log, &pages(data.chain([used_range(&s)])));
        s.queues[0].wait_used_all(3, Deadline::after(SOON)).unwrap();
    });
}

/// The same on the owner's thread: it pops with the old table, and completes inside the same kick.
#[test]
fn nothing_is_lost_when_logging_begins_in_the_middle_of_the_load() {
    run("dirty_log_race", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        for round in 0..200u64 {
            let queue = &mut s.queues[0];
            let mut requests: Vec<_> = (0..4)
                .map(|_| EchoRequest::new(queue.memory(), 512, 512))
                .collect();
            for request in &mut requests {
                request.prepare(round);
                queue.submit(&request.segs()).unwrap();
            }
            set_logging(&s, true);
            // Everything that is not there by now will be marked.
            let before: Vec<bool> = requests
                .iter()
                .map(|request| is_written(&s, request))
                .collect();
            s.queues[0].wait_used_all(4, Deadline::after(SOON)).unwrap();
            let marked = log.take_bits();
            for (request, before) in requests.iter().zip(before) {
                let gpa = request.segs()[1].gpa;
                assert!(
                    before || pages([(gpa, 512)]).iter().all(|page| marked.contains(page)),
                    "round {round}: {gpa:#x} was written after the acknowledgement"
                );
            }
            set_logging(&s, false);
            log.take_bits();
        }
    });
}

/// The owner is inside of a kick all the time, so it learns of the log only when that is over.
#[test]
fn completions_are_marked_while_the_owner_has_not_heard_of_the_log() {
    run("dirty_log_stalled", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        let submit = |s: &mut Session| {
            // Not in the page of the rings.
            let len = 2 * PAGE as u32;
            let mut request = EchoRequest::new(&s.memory, len, len);
            request.prepare(5);
            s.queues[0].submit(&request.segs()).unwrap();
            (request.segs()[1].gpa, 2 * PAGE)
        };
        rig.device.hold(true);
        let held = submit(&mut s);
        rig.device.wait_held(1);
        rig.device.hold(false);
        rig.device.stall(true);
        let stalled = submit(&mut s);
        eventually("kick waits", Deadline::after(SOON), true, || {
            rig.device.is_in_stall()
        });
        set_logging(&s, true);
        // On another thread than the owner's.
        rig.device.release();
        assert_eq!(log.take_bits(), pages([held, (used_gpa(&s, 0), 16)]));
        // On the owner's, in the kick that began before.
        rig.device.stall(false);
        take_all(&log, &pages([stalled, used_range(&s)]));
        s.queues[0].wait_used_all(2, Deadline::after(SOON)).unwrap();
    });
}

/// The device has written the whole answer.
fn is_written(s: &Session, request: &EchoRequest) -> bool {
    let [readable, writable] = request.segs();
    let len = writable.len as usize;
    s.memory.read(readable.gpa, len).unwrap() == s.memory.read(writable.gpa, len).unwrap()
}

#[test]
fn bytes_that_a_completion_does_not_cover_can_be_marked() {
    run("dirty_log_mark", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        rig.device.hold(true);
        let request = EchoRequest::new(s.queues[0].memory(), 16, 4 * 4096);
        s.queues[0].submit(&request.segs()).unwrap();
        rig.device.wait_held(1);
        let element = rig.device.take_held().remove(0);
        element.mark_dirty(0, 4 * 4096).unwrap();
        s.fe().set_log_base(&log).unwrap();
        set_logging(&s, true);
        // But for the used ring: the device may still be turning its notifications on.
        let ring = used_gpa(&s, 0) / PAGE;
        let marked = || {
            let mut pages = log.take_bits();
            pages.retain(|page| *page != ring);
            pages
        };
        marked();
        let gpa = request.segs()[1].gpa;
        element.mark_dirty(2 * 4096 + 10, 1).unwrap();
        assert_eq!(marked(), pages([(gpa + 2 * 4096 + 10, 1)]));
        for (offset, len) in [(4 * 4096, 1), (1, 4 * 4096), (usize::MAX, 2)] {
            let error = element.mark_dirty(offset, len).unwrap_err();
            assert_eq!(error.errno(), libc::ERANGE);
        }
        assert!(marked().is_empty(), "refused");
        element.complete(0).unwrap();
        rig.device.hold(false);
    });
}

#[test]
fn a_broken_ring_leaves_the_log_of_the_others_alone() {
    run("dirty_log_broken", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        set_logging(&s, true);
        desc(&s, 0, 0xffff_ffff_0000, 16, 0, 0);
        offer(&mut s, 0);
        rig.broken("an unmapped buffer", &mut s, "not all in guest memory");
    });
}

#[test]
fn case_42_memory_added_above_the_end_of_the_log() {
    run("case_42", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        set_logging(&s, true);
        let high = s.add_region(RegionSpec::new(1 << 40, 1 << 20));
        let unlogged = rig.server.stats().unlogged_pages;
        let mut request = EchoRequest::new(&s.memory, 64, 64);
        request.prepare(1);
        let mut segs = request.segs();
        segs[1].gpa = high.alloc(8192, 8).unwrap();
        segs[1].len = 8192;
        // The device writes what it was sent, so the first page only.
        s.queues[0].submit(&segs).unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(rig.server.stats().unlogged_pages, unlogged + 1);
        // A log that is large enough takes its place.
        let larger = SharedFile::new(((1u64 << 40) / PAGE / 8) as usize + 64).unwrap();
        s.fe().set_log_base(&larger).unwrap();
        s.queues[0].submit(&segs).unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        let first = ((1u64 << 40) / PAGE / 8) as usize;
        assert_eq!(larger.read(first, 1), [1], "page of the new region");
        assert_eq!(rig.server.stats().unlogged_pages, unlogged + 1);
        works(&mut s);
    });
}

#[test]
fn case_58_logs_that_cannot_be_used() {
    run("case_58", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        s.fe().set_log_base(&log).unwrap();
        set_logging(&s, true);
        let file = SharedFile::new(0x2000).unwrap();
        let bad = |size, offset, fd| {
            Bad::new(req::SET_LOG_BASE, wire::log(size, offset))
                .fds(&[fd])
                .named(format!("log of {size:#x} at {offset:#x}"))
        };
        let eventfd = EventFd::new().unwrap();
        let read_only = std::fs::File::open(format!("/proc/self/fd/{}", file.raw_fd())).unwrap();
        rig.all_refused(
            &mut s,
            &[
                bad(0, 0, file.raw_fd()),
                bad(u64::MAX, 1, file.raw_fd()),
                bad(1, u64::MAX, file.raw_fd()),
                bad(0x2001, 0, file.raw_fd()),
                bad(0x1001, 0x1000, file.raw_fd()),
                bad(1 << 60, 0, file.raw_fd()),
                bad(0x100, 0x800, file.raw_fd()),
                bad(0x100, 1, file.raw_fd()),
                bad(0x100, 0, eventfd.as_raw_fd()),
                bad(0x100, 0, read_only.as_raw_fd()),
            ],
        );
        // The previous log stays valid, and can be repeated.
        log.take_bits();
        let data = round_trip(&mut s, 64);
        take_all(&log, &pages([data, used_range(&s)]));
        for _ in 0..1000 {
            s.fe().set_log_base(&log).unwrap();
        }
        log.take_bits();
        let data = round_trip(&mut s, 64);
        take_all(&log, &pages([data, used_range(&s)]));
    });
}

#[test]
fn case_59_descriptors_of_the_log() {
    run("case_59", |rig| {
        let mut s = session(rig);
        let log = log_for(&s);
        let (one, other) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let fds = [one.as_raw_fd(), other.as_raw_fd()];
        rig.all_refused(
            &mut s,
            &[
                Bad::new(req::SET_LOG_FD, []).fds(&[]),
                Bad::new(req::SET_LOG_FD, []).fds(&fds),
            ],
        );
        s.fe().set_log_base(&log).unwrap();
        s.fe().set_log_fd(one.as_raw_fd()).unwrap();
        round_trip(&mut s, 64);
        assert!(!one.is_signalled().unwrap(), "nothing was marked");
        set_logging(&s, true);
        round_trip(&mut s, 64);
        one.wait("the log has changed", Deadline::after(SOON))
            .unwrap();
        // A full one that would block whoever writes to it.
        let full = EventFd::with_flags(0).unwrap();
        full.add(u64::MAX - 1).unwrap();
        s.fe().set_log_fd(full.as_raw_fd()).unwrap();
        works(&mut s);
    });
}

#[test]
fn case_60_pages_beyond_the_end_of_the_log() {
    run("case_60", |rig| {
        // Memory that ends inside of a page, and a log that ends inside of the memory.
        let region = RegionSpec::new(0, (1 << 20) + 0x800);
        let mut s = rig
            .builder()
            .queue_size(16)
            .regions(&[region])
            .connect(&rig.path);
        let exact = log_for(&s);
        s.fe().set_log_base(&exact).unwrap();
        s.fe().set_features(s.features | feature::LOG_ALL).unwrap();
        let mut request = EchoRequest::new(&s.memory, 16, 16);
        request.prepare(3);
        let [out, mut last] = request.segs();
        last.gpa = (1 << 20) + 0x7f0;
        s.queues[0].submit(&[out, last]).unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(
            exact.take_bits(),
            [256],
            "the last page, which is not whole"
        );
        let unlogged = rig.server.stats().unlogged_pages;
        let short = SharedFile::new(1).unwrap();
        s.fe().set_log_base(&short).unwrap();
        s.queues[0].submit(&[out, last]).unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        unmarked(&short, "beyond its end");
        assert_eq!(rig.server.stats().unlogged_pages, unlogged + 1);
        // So is a used ring that the front-end places there.
        log_ring(&s, 0, Some(u64::MAX - (1 << 20)));
        echo::round_trip(&mut s.queues[0], b"counted");
        assert!(rig.server.stats().unlogged_pages > unlogged + 1);
    });
}

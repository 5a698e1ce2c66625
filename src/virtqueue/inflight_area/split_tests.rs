//! Regions as a predecessor, a bug or an enemy leaves them.

use super::*;
use crate::memory::MemoryPolicy;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::AsFd;

const SIZE: u16 = 8;

fn region() -> SplitRegion {
    let bytes = SplitRegion::size(SIZE) as u64;
    let fd = memfd_create(c"inflight", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, bytes as i64).unwrap();
    let area = SharedArea::map("area", fd.as_fd(), 0, bytes, MemoryPolicy::default()).unwrap();
    SplitRegion::new(&Arc::new(area), 0, SIZE).unwrap()
}

fn nothing_returned(_: u16) -> u32 {
    u32::MAX
}

fn recover(region: &SplitRegion, used: u16, returned: &[u32]) -> Recovered {
    let returned = |n: u16| returned.get(usize::from(n)).copied().unwrap_or(u32::MAX);
    region.recover(SIZE, used, returned).unwrap()
}

fn tracker(region: &SplitRegion) -> SplitTracker {
    SplitTracker::new(region.clone(), &recover(region, 0, &[]))
}

fn batch(heads: &[u16]) -> Vec<UsedElem> {
    heads.iter().map(|&head| UsedElem::new(head, 0)).collect()
}

#[test]
fn the_layout_is_the_specifications() {
    assert_eq!(SplitRegion::size(128), 16 + 16 * 128 + 48);
    let region = region();
    let mut tracker = tracker(&region);
    tracker.popped(3);
    tracker.popped(5);
    tracker.before_publication(&batch(&[3]));
    tracker.after_publication(&batch(&[3]), 1);
    // SAFETY: the region has this size.
    let bytes = unsafe { std::slice::from_raw_parts(region.0.area.base(), 16 + 16 * 8) };
    assert_eq!(bytes[0..8], [0; 8], "features");
    for (at, value) in [(8, 1u16), (10, 8), (12, 3), (14, 1)] {
        assert_eq!(bytes[at..at + 2], value.to_ne_bytes(), "field at {at}");
    }
    let entry = |head: usize| &bytes[16 + 16 * head..][..16];
    assert_eq!((entry(3)[0], entry(5)[0]), (0, 1), "in flight");
    assert_eq!(entry(5)[8..16], 1u64.to_ne_bytes(), "counter");
}

#[test]
fn what_was_in_flight_comes_back_in_its_order() {
    let region = region();
    let mut tracker = tracker(&region);
    for head in [6, 2, 7, 0] {
        tracker.popped(head);
    }
    tracker.before_publication(&batch(&[2]));
    tracker.after_publication(&batch(&[2]), 1);
    tracker.unpopped(0);
    let recovered = recover(&region, 1, &[2]);
    assert_eq!((recovered.heads, recovered.counter), (vec![6, 7], 3));
}

#[test]
fn a_chain_that_is_popped_again_keeps_its_number() {
    let region = region();
    let mut first = tracker(&region);
    first.popped(4);
    first.popped(1);
    let mut second = SplitTracker::new(region.clone(), &recover(&region, 0, &[]));
    second.popped(4);
    second.popped(2);
    assert_eq!(recover(&region, 0, &[]).heads, [4, 1, 2]);
}

/// Killed after each of the stores of a publication.
#[test]
fn a_batch_that_was_interrupted_is_in_flight_or_returned() {
    let heads = [1, 4, 2];
    for step in 0..=4 {
        let region = region();
        let mut tracker = tracker(&region);
        for head in [1, 4, 2, 6] {
            tracker.popped(head);
        }
        tracker.before_publication(&batch(&heads));
        // The used index follows, then one mark after the other.
        let used = if step == 0 { 0 } else { 3 };
        for &head in &heads[..(step as usize).saturating_sub(1)] {
            tracker.unpopped(head);
        }
        let recovered = recover(&region, used, &[2, 4, 1]);
        let wanted: &[u16] = if step == 0 { &[1, 4, 2, 6] } else { &[6] };
        assert_eq!(recovered.heads, wanted, "step {step}");
    }
}

#[test]
fn entry_0_is_not_cleared_for_a_batch_that_never_was() {
    for used in [1, 5, SIZE, SIZE + 1, 40_000] {
        let region = region();
        let mut tracker = tracker(&region);
        tracker.popped(0);
        tracker.popped(3);
        // The ring's index is not the region's, but what it returned last is something else, or nothing at all.
        let returned: &[u32] = if used == 1 { &[5] } else { &[0; 8] };
        assert_eq!(recover(&region, used, returned).heads, [0, 3], "{used}");
    }
}

#[test]
fn lists_that_go_astray_end() {
    let region = region();
    let mut tracker = tracker(&region);
    tracker.popped(1);
    tracker.popped(2);
    region.head(LAST_BATCH_AT).store(1, Ordering::Relaxed);
    // A cycle, and a next outside of the region.
    region.next(1).store(1, Ordering::Relaxed);
    assert_eq!(recover(&region, SIZE, &[1; SIZE as usize]).heads, [1, 2]);
    region.next(1).store(0xffff, Ordering::Relaxed);
    assert_eq!(recover(&region, SIZE + 2, &[1, 0xffff]).heads, [1, 2]);
}

#[test]
fn every_entry_in_flight_and_counters_that_say_nothing() {
    let region = region();
    recover(&region, 0, &[]);
    for head in 0..SIZE {
        region.in_flight(head).store(0xff, Ordering::Relaxed);
        region.counter(head).store(u64::MAX, Ordering::Relaxed);
    }
    let recovered = recover(&region, 0, &[]);
    assert_eq!(recovered.heads, (0..SIZE).collect::<Vec<_>>());
    assert_eq!(recovered.counter, 0, "wraps");
}

#[test]
fn fields_that_no_back_end_writes_are_refused() {
    for (at, value, field) in [
        (VERSION_AT, 7, "version"),
        (ENTRIES_AT, SIZE - 1, "desc_num"),
        (LAST_BATCH_AT, SIZE, "last_batch_head"),
    ] {
        let region = region();
        recover(&region, 0, &[]);
        region.head(at).store(value, Ordering::Relaxed);
        let error = region.recover(SIZE, 0, nothing_returned).unwrap_err();
        assert_eq!(error, RingError::InflightArea { field, value });
    }
    let error = region().recover(SIZE * 2, 0, nothing_returned).unwrap_err();
    assert!(matches!(
        error,
        RingError::InflightArea {
            field: "entries",
            ..
        }
    ));
}

#[test]
fn regions_are_inside_of_the_area() {
    let area = region().0.area;
    assert!(SplitRegion::new(&area, 1, SIZE).is_none());
    assert!(SplitRegion::new(&area, usize::MAX, SIZE).is_none());
    assert!(SplitRegion::new(&area, 0, 32768).is_none());
}

//! Kicks and interrupts: what is stored where, and when the other side is told.

use super::*;

const FLAGS_ONLY: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: false,
    big_endian: false,
};
const EVENTS: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: true,
    big_endian: false,
};

#[test]
fn flags_tell_the_driver_not_to_kick() {
    let mut rig = Rig::new(8, FLAGS_ONLY);
    rig.ring.disable_notifications();
    assert_eq!(rig.word(USED).load(Ordering::Relaxed), 1);
    assert!(!rig.ring.rearm());
    assert_eq!(rig.word(USED).load(Ordering::Relaxed), 0);
}

#[test]
fn the_event_is_what_was_seen() {
    let mut rig = Rig::new(8, EVENTS);
    rig.ring.disable_notifications();
    assert_eq!(
        rig.word(USED).load(Ordering::Relaxed),
        0,
        "flags are not used with events"
    );
    rig.offer_one(0);
    rig.offer_one(1);
    rig.pop(8).expect("pop");
    assert!(!rig.ring.rearm());
    assert_eq!(rig.avail_event().load(Ordering::Relaxed), 2);
}

#[test]
fn rearming_finds_what_came_meanwhile_once() {
    for features in [FLAGS_ONLY, EVENTS] {
        let mut rig = Rig::new(8, features);
        rig.ring.disable_notifications();
        rig.pop(8).expect("nothing");
        rig.offer_one(0);
        assert!(rig.ring.has_new() && rig.ring.has_available());
        assert!(rig.ring.rearm(), "there is something new");
        assert!(!rig.ring.has_new() && rig.ring.has_available());
        assert!(!rig.ring.rearm(), "left alone by the device");
        assert_eq!((rig.ring.avail_seen(), rig.ring.last_avail()), (1, 0));
        rig.offer_one(1);
        assert!(rig.ring.rearm(), "and something newer");
        assert_eq!(rig.pop(8).map(|slots| slots.len()), Ok(2));
        assert!(!rig.ring.has_available());
    }
}

#[test]
fn fetch_counts_without_popping() {
    let mut rig = Rig::new(8, EVENTS);
    assert_eq!(rig.ring.fetch(), Ok(0));
    rig.offer_one(0);
    rig.offer_one(1);
    assert_eq!(rig.ring.fetch(), Ok(2));
    // The index is not loaded again as long as it suffices.
    rig.offer_one(2);
    assert_eq!(rig.pop(2).map(|slots| slots.len()), Ok(2));
    assert_eq!(rig.ring.avail_seen(), 2);
    assert_eq!(rig.pop(2).map(|slots| slots.len()), Ok(1));
}

#[test]
fn flags_tell_the_device_not_to_interrupt() {
    let mut rig = Rig::new(8, FLAGS_ONLY);
    for (head, flags) in [(0, 0), (1, 1), (2, 0), (3, 0xfffe)] {
        rig.offer_one(head);
        let slot = rig.pop_one();
        rig.word(AVAIL).store(flags, Ordering::Relaxed);
        assert_eq!(rig.complete(&[slot], 0), flags & 1 == 0);
    }
}

#[test]
fn an_interrupt_comes_when_the_event_is_passed() {
    let mut rig = Rig::new(8, EVENTS);
    let mut round = |count: u16, event: u16| {
        for head in 0..count {
            rig.offer_one(head);
        }
        rig.used_event().store(event, Ordering::Relaxed);
        let popped = rig.pop(8).expect("pop");
        rig.complete(&popped, 0)
    };
    assert!(round(1, 1000), "the first publication always");
    assert!(!round(1, 0), "an event that is passed already");
    assert!(round(1, 2), "the entry at the event");
    assert!(!round(1, 4), "not yet");
    assert!(round(4, 4), "first of a batch");
    assert!(round(4, 11), "last of a batch");
    assert!(!round(4, 16), "behind the batch");
}

#[test]
fn nothing_published_is_nothing_told() {
    let mut rig = Rig::new(8, EVENTS);
    assert!(!rig.used.publish(&[]));
    assert_eq!(rig.word(USED + 2).load(Ordering::Relaxed), 0);
}

#[test]
fn a_batch_wraps_with_the_ring_and_with_the_index() {
    let mut rig = Rig::starting_at(8, EVENTS, 0xfffd);
    assert_eq!(UsedRing::read_index(rig.areas, EVENTS), 0);
    rig.word(USED + 2).store(0xfffd, Ordering::Relaxed);
    assert_eq!(UsedRing::read_index(rig.areas, EVENTS), 0xfffd);
    for head in 0..8 {
        rig.offer_one(head);
    }
    let popped = rig.pop(8).expect("pop");
    rig.complete(&popped, 64);
    assert_eq!(rig.used.next_index(), 5);
    assert_eq!(rig.word(USED + 2).load(Ordering::Relaxed), 5);
    for position in 0..8u64 {
        // SAFETY: an entry of the used ring.
        let (id, len) = unsafe {
            let entry = rig.host(USED + 4 + 8 * position, 8).cast::<u32>();
            (entry.read(), entry.add(1).read())
        };
        // Position 0xfffd is entry 5.
        assert_eq!((u64::from(id), len), ((position + 3) % 8, 64));
    }
}

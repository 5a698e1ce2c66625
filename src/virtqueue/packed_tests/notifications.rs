//! Kicks and interrupts: what is stored where, and when the other side is told.

use super::*;
use crate::sync::AtomicU32;

const EVENTS: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: true,
    big_endian: false,
};
const DISABLED: u32 = 1 << 16;

impl Rig {
    fn word(&self, gpa: u64) -> &AtomicU32 {
        // SAFETY: four bytes of guest memory, aligned.
        unsafe { &*self.host(gpa, 4).cast() }
    }

    fn device_event(&self) -> u32 {
        self.word(DEVICE).load(Ordering::Relaxed)
    }

    /// Publishes `count` chains of one descriptor while the driver wants this.
    fn publish(&mut self, count: u16, event: u32) -> bool {
        for id in 0..count {
            self.offer_one(id);
        }
        self.word(DRIVER).store(event, Ordering::Relaxed);
        let popped = self.pop(100).expect("pop");
        assert_eq!(popped.len(), usize::from(count));
        self.complete(&popped, 0)
    }
}

#[test]
fn the_driver_is_told_not_to_kick_and_to_kick() {
    for (features, armed) in [(NEITHER, 0), (EVENTS, 2 << 16 | 0x8000 | 4)] {
        let mut rig = Rig::starting_at(5, features, 4);
        rig.ring.disable_notifications();
        assert_eq!(rig.device_event(), DISABLED);
        assert!(!rig.ring.rearm());
        assert_eq!(rig.device_event(), armed);
        rig.ring.disable_notifications();
        assert_eq!(rig.device_event(), DISABLED);
    }
}

#[test]
fn the_event_is_behind_what_was_seen() {
    let mut rig = Rig::starting_at(5, EVENTS, 4);
    rig.offer_many(0, 2);
    rig.offer_one(1);
    assert_eq!(rig.pop(1).map(|slots| slots.len()), Ok(1));
    assert!(rig.ring.rearm(), "one is left that nobody has seen");
    assert!(!rig.ring.rearm(), "left alone by the device");
    // Descriptor 4 and the next round's 0 and 1.
    assert_eq!(rig.device_event(), 2 << 16 | 2);
    rig.pop_one();
    assert!(!rig.ring.rearm());
    assert_eq!(rig.device_event(), 2 << 16 | 2);
}

#[test]
fn rearming_finds_what_came_meanwhile_once() {
    for features in [NEITHER, EVENTS] {
        let mut rig = Rig::starting_at(8, features, 7);
        rig.ring.disable_notifications();
        rig.pop(8).expect("nothing");
        assert!(!rig.ring.has_new());
        rig.offer_many(0, 3);
        assert!(rig.ring.has_new());
        assert!(rig.ring.rearm(), "there is something new");
        assert!(!rig.ring.has_new());
        assert!(!rig.ring.rearm(), "left alone by the device");
        assert_eq!(rig.ring.fetch(), Ok(1));
        rig.offer_one(1);
        assert!(rig.ring.rearm(), "and something newer");
        assert_eq!(rig.pop(8).map(|slots| slots.len()), Ok(2));
        assert_eq!(rig.ring.fetch(), Ok(0));
    }
}

#[test]
fn a_full_ring_that_is_left_alone_is_seen_once() {
    let mut rig = Rig::new(3, EVENTS);
    rig.offer_many(0, 3);
    assert_eq!(rig.ring.fetch(), Ok(1));
    // As if there were a fourth.
    rig.describe_at(DESC, 0, (DATA, 1, 0, USED));
    assert!(!rig.ring.has_new() && !rig.ring.rearm());
}

#[test]
fn flags_tell_the_device_not_to_interrupt() {
    for features in [NEITHER, EVENTS] {
        let mut rig = Rig::new(8, features);
        for (event, told) in [
            (0, true),
            (DISABLED, false),
            (0x8007, true),
            (0xfffc_0000, true),
            (DISABLED | 0xffff, false),
            (3 << 16, true),
        ] {
            assert_eq!(rig.publish(1, event), told, "{event:#x}");
        }
    }
    let mut rig = Rig::new(8, NEITHER);
    assert!(rig.publish(1, 2 << 16 | 0x8005), "not negotiated");
}

#[test]
fn an_interrupt_comes_when_the_event_is_passed() {
    let at = |count| event::at(Place::at(count, 10));
    let mut rig = Rig::new(10, EVENTS);
    assert!(rig.publish(1, at(9)), "the first publication always");
    assert!(!rig.publish(1, at(0)), "an event that is passed already");
    assert!(rig.publish(1, at(2)), "the descriptor at the event");
    assert!(!rig.publish(1, at(4)), "not yet");
    assert!(rig.publish(4, at(4)), "first of a batch");
    assert!(rig.publish(4, at(11)), "last of a batch, in the next round");
    assert!(!rig.publish(3, at(15)), "behind the batch");
    assert!(!rig.publish(4, at(5)), "that place one round before");
    assert!(rig.publish(4, at(20)), "a wrap counter of 1 again");
    for index in [10, 0x7fff] {
        assert!(rig.publish(1, 2 << 16 | index), "no place in the ring");
    }
}

#[test]
fn nothing_published_is_nothing_told() {
    let mut rig = Rig::new(8, EVENTS);
    assert!(!rig.used.publish(&[]));
    assert_eq!(rig.used.returned(), 0);
}

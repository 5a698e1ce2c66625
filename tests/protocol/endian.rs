//! Rings of legacy devices whose guest has the other byte order.

use super::device::Event;
use super::rig::{Bad, Rig, offer, run, works};
use crate::sim::echo::{self, EchoLoad};
use crate::sim::wire::{feature, protocol_feature, req};
use crate::sim::{RegionSpec, Session};

/// A legacy front-end; queue 1 stays little-endian.
fn legacy(rig: &Rig, event_idx: bool) -> Session {
    let without = if event_idx { 0 } else { feature::EVENT_IDX };
    let mut s = rig
        .builder()
        .queue_size(64)
        .without_features(feature::VERSION_1 | without)
        .protocol_features(protocol_feature::CROSS_ENDIAN)
        .not_started()
        .connect(&rig.path);
    s.queues[0].ring.big_endian = true;
    s.queues[0].reset(0).unwrap();
    s.fe().set_vring_endian(0, 1).unwrap();
    s.fe().set_vring_endian(1, 0).unwrap();
    s.start_all();
    s
}

#[test]
fn a_big_endian_ring_works_beside_a_little_endian_one() {
    run("endian", |rig| {
        for event_idx in [false, true] {
            let mut s = legacy(rig, event_idx);
            works(&mut s);
            rig.device.take_event(Event::BigEndian(0));
            assert_eq!(rig.device.count(|e| *e == Event::BigEndian(1)), 0);
            // Longer than the ring, so that all indexes wrap in it, with direct chains and indirect tables.
            for indirect in [false, true] {
                let load = EchoLoad::new(&mut s.queues[0], 16, 300);
                let mut load = if indirect { load.indirect() } else { load };
                load.run(1000);
            }
            s.disconnect();
        }
    });
}

/// The base is a number and not a field of the ring: it has the machine's order, whatever the ring's is.
#[test]
fn a_big_endian_ring_goes_on_where_it_was_stopped() {
    run("endian_base", |rig| {
        let mut s = legacy(rig, true);
        for count in 1..=3 {
            echo::round_trip(&mut s.queues[0], b"from here");
            assert_eq!(s.stop_queue(0), count);
            s.start_queue(0);
        }
        // Moved to memory that was announced anew, too.
        let region = s.add_region(RegionSpec::new(1 << 32, 1 << 20));
        works(&mut s);
        s.remove_region(region.spec().gpa);
        works(&mut s);
    });
}

#[test]
fn what_is_wrong_in_a_big_endian_ring_breaks_it() {
    run("endian_broken", |rig| {
        let mut s = legacy(rig, true);
        offer(&mut s, 0x4000);
        rig.broke("a head beyond the ring", &s, "head 16384");
    });
}

#[test]
fn byte_orders_that_are_refused() {
    run("endian_refused", |rig| {
        // A modern device.
        let mut s = rig
            .builder()
            .protocol_features(protocol_feature::CROSS_ENDIAN)
            .connect(&rig.path);
        rig.all_refused(
            &mut s,
            &[
                Bad::state(req::SET_VRING_ENDIAN, 0, 1),
                Bad::state(req::SET_VRING_ENDIAN, 0, 2),
                Bad::state(req::SET_VRING_ENDIAN, 2, 0),
                // While it runs.
                Bad::state(req::SET_VRING_ENDIAN, 0, 0),
            ],
        );
        s.disconnect();
        let mut s = legacy(rig, true);
        rig.all_refused(
            &mut s,
            &[
                Bad::state(req::SET_VRING_ENDIAN, 0, 0),
                Bad::state(req::SET_VRING_ENDIAN, 1, 1),
            ],
        );
        s.disconnect();
        // Not negotiated.
        let s = rig.session();
        rig.refused(s.fe(), &Bad::state(req::SET_VRING_ENDIAN, 0, 0));
    });
}

//! Features, protocol features, owner and what the device says about itself.

use super::device::Event;
use super::rig::{Bad, acknowledging, handled, run, run_with, works};
use crate::sim::wire::{self, feature, protocol_feature, req};
use crate::sim::{RegionSpec, echo};

const OURS: u64 =
    feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES;

/// A front-end takes these only while it migrates, for a guest with an IOMMU, and for packed virtqueues.
const OFFERED: u64 = OURS | feature::LOG_ALL | feature::ACCESS_PLATFORM | feature::RING_PACKED;

#[test]
fn what_is_offered() {
    run_with(
        "what_is_offered",
        |builder| {
            builder
                .features(1 << 5)
                .mask_features(feature::INDIRECT_DESC)
        },
        |rig| {
            let fe = rig.frontend();
            assert_eq!(
                fe.get_features().unwrap(),
                OFFERED & !feature::INDIRECT_DESC | 1 << 5
            );
            let protocol = protocol_feature::MQ
                | protocol_feature::LOG_SHMFD
                | protocol_feature::REPLY_ACK
                | protocol_feature::BACKEND_REQ
                | protocol_feature::CROSS_ENDIAN
                | protocol_feature::PAGEFAULT
                | protocol_feature::BACKEND_SEND_FD
                | protocol_feature::HOST_NOTIFIER
                | protocol_feature::CONFIG
                | protocol_feature::INFLIGHT_SHMFD
                | protocol_feature::RESET_DEVICE
                | protocol_feature::CONFIGURE_MEM_SLOTS
                | protocol_feature::GPA_ADDRESSES
                | protocol_feature::STATUS;
            assert_eq!(fe.get_protocol_features().unwrap(), protocol);
            assert_eq!(fe.get_queue_num().unwrap(), 2);
            assert_eq!(fe.get_max_mem_slots().unwrap(), 509);
        },
    );
    run_with(
        "without_config",
        |builder| builder.config_space([], []),
        |rig| {
            let fe = rig.frontend();
            let offered = fe.get_protocol_features().unwrap();
            assert_eq!(
                offered & protocol_feature::CONFIG,
                0,
                "no config space, no CONFIG"
            );
        },
    );
}

#[test]
fn features_that_were_acknowledged_are_told() {
    run("features_are_told", |rig| {
        let s = rig
            .builder()
            .without_features(feature::EVENT_IDX)
            .connect(rig.path());
        let (features, protocol_features) = (s.features, s.protocol_features);
        assert_eq!(features, OURS & !feature::EVENT_IDX);
        rig.device.take_event(Event::Features {
            features,
            protocol_features,
        });
        assert_eq!(rig.server.features(), features);
        // The queue started after the device had heard them.
        let events = rig.device.events();
        assert!(
            !events.iter().any(|e| matches!(e, Event::Features { .. })),
            "{events:?}"
        );
    });
}

#[test]
fn case_52_features_on_started_rings() {
    run("case_52", |rig| {
        let mut s = rig.session();
        rig.all_refused(
            &mut s,
            &[
                Bad::u64(req::SET_FEATURES, OURS | 1),
                Bad::u64(req::SET_FEATURES, OURS | feature::RING_PACKED),
                Bad::u64(req::SET_FEATURES, OURS | 1 << 63),
                Bad::u64(req::SET_FEATURES, OURS & !feature::EVENT_IDX),
                Bad::u64(req::SET_FEATURES, OURS & !feature::VERSION_1),
                Bad::u64(req::SET_FEATURES, OURS & !feature::INDIRECT_DESC),
                Bad::u64(req::SET_FEATURES, 0),
            ],
        );
        assert_eq!(rig.server.features(), OURS, "features after refusals");
        // The same again is no change, and the one for migration comes and goes.
        for features in [OURS, OURS | feature::LOG_ALL, OURS] {
            s.fe().set_features(features).unwrap();
            assert_eq!(rig.server.features(), features);
            works(&mut s);
        }
        // A subset, once all rings are stopped.
        s.stop_queue(0);
        rig.refused(
            s.fe(),
            &Bad::u64(req::SET_FEATURES, OURS & !feature::EVENT_IDX),
        );
        s.stop_queue(1);
        s.fe().set_features(OURS & !feature::INDIRECT_DESC).unwrap();
        assert_eq!(rig.server.features(), OURS & !feature::INDIRECT_DESC);
        s.start_all();
        works(&mut s);
    });
}

#[test]
fn case_53_without_protocol_features_rings_are_enabled_at_once() {
    run("case_53", |rig| {
        // The session sends no SET_VRING_ENABLE then.
        let masked = feature::PROTOCOL_FEATURES;
        let mut s = rig.builder().without_features(masked).connect(rig.path());
        assert_eq!(s.protocol_features, 0);
        for (index, queue) in s.queues.iter_mut().enumerate() {
            echo::round_trip(queue, format!("queue {index}").as_bytes());
        }
        assert_eq!(handled(rig, req::SET_VRING_ENABLE), 0);
        s.disconnect();
        // With it they wait to be enabled, also on the next connection.
        let mut s = rig.builder().not_started().connect(rig.path());
        s.start_all();
        s.fe().set_vring_enable(0, false).unwrap();
        let head = s.queues[0].submit(&[]).err();
        assert!(head.is_some(), "an empty chain is the driver's own fault");
        s.fe().set_vring_enable(0, true).unwrap();
        works(&mut s);
    });
}

#[test]
fn enabling_needs_the_protocol_features_bit() {
    run("enable_needs_the_bit", |rig| {
        let fe = acknowledging(rig);
        fe.set_features(feature::VERSION_1).unwrap();
        rig.refused(&fe, &Bad::state(req::SET_VRING_ENABLE, 0, 1));
        fe.set_features(OURS).unwrap();
        fe.set_vring_enable(0, true).unwrap();
    });
}

#[test]
fn case_54_protocol_features_that_are_not_offered() {
    run("case_54", |rig| {
        let mut s = rig.session();
        let negotiated = s.protocol_features;
        rig.all_refused(
            &mut s,
            &[
                Bad::u64(
                    req::SET_PROTOCOL_FEATURES,
                    negotiated | protocol_feature::XEN_MMAP,
                ),
                Bad::u64(
                    req::SET_PROTOCOL_FEATURES,
                    negotiated | protocol_feature::INBAND_NOTIFICATIONS,
                ),
                Bad::u64(req::SET_PROTOCOL_FEATURES, negotiated | 1 << 40),
                Bad::u64(req::SET_PROTOCOL_FEATURES, u64::MAX),
            ],
        );
        // REPLY_ACK is still there, and so is STATUS.
        s.fe().set_status(15).unwrap();
        assert_eq!(s.fe().get_status().unwrap(), 15);
    });
}

#[test]
fn requests_need_their_protocol_feature() {
    run("requests_need_their_feature", |rig| {
        let mut fe = rig.frontend();
        fe.set_protocol_features(protocol_feature::REPLY_ACK)
            .unwrap();
        fe.set_owner().unwrap();
        let region = crate::sim::Region::new(RegionSpec::new(0, 4096)).unwrap();
        for bad in [
            Bad::u64(req::SET_STATUS, 1),
            Bad::new(req::RESET_DEVICE, []),
            Bad::new(req::SET_CONFIG, wire::config(16, 0, &[1])),
            Bad::new(req::ADD_MEM_REG, region.wire().encode_single()).fds(&[region.raw_fd()]),
            Bad::new(req::REM_MEM_REG, region.wire().encode_single()),
        ] {
            rig.refused(&fe, &bad);
        }
        // These may be asked before the answer decides what is negotiated.
        assert_eq!(fe.get_queue_num().unwrap(), 2);
        assert_eq!(fe.get_max_mem_slots().unwrap(), 509);
        assert_eq!(fe.get_config(0, 4).unwrap(), [0, 1, 2, 3]);
    });
}

#[test]
fn case_92_owner_twice_and_after_a_reconnect() {
    run("case_92", |rig| {
        let mut s = rig.session();
        for _ in 0..2 {
            s.fe().set_owner().unwrap();
            works(&mut s);
        }
        assert_eq!(
            rig.server.stats().memory_regions,
            1,
            "running rings keep their memory"
        );
        s.disconnect();
        s.reconnect(rig.path());
        works(&mut s);
        s.abort();
        s.reconnect(rig.path());
        s.fe().set_owner().unwrap();
        works(&mut s);
    });
}

#[test]
fn a_device_unplugged_and_plugged_on_the_same_connection() {
    run("replug", |rig| {
        let regions = [
            RegionSpec::new(0, 16 << 20),
            RegionSpec::new(1 << 32, 16 << 20),
        ];
        let mut s = rig
            .builder()
            .mem_slots()
            .regions(&regions)
            .connect(rig.path());
        for _ in 0..5 {
            works(&mut s);
            s.stop_all();
            assert_eq!(rig.server.stats().memory_regions, 2);
            // The next device on this connection says everything again, without having removed anything.
            s.fe().set_owner().unwrap();
            assert_eq!(rig.server.stats().memory_regions, 0);
            s.fe().set_features(s.features).unwrap();
            for region in s.memory.regions() {
                s.fe().add_mem_reg(&region).unwrap();
            }
            s.reset_rings();
            s.start_all();
        }
        works(&mut s);
    });
}

#[test]
fn an_owner_who_has_started_nothing_keeps_the_memory() {
    run("owner_keeps_memory", |rig| {
        let mut s = rig.builder().not_started().connect(rig.path());
        s.fe().set_owner().unwrap();
        assert_eq!(
            rig.server.stats().memory_regions,
            1,
            "front-ends may say it late"
        );
        s.start_all();
        works(&mut s);
    });
}

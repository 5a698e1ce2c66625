//! A front-end that names memory by the guest's addresses only (GPA_ADDRESSES).

use std::os::fd::AsRawFd;

use super::rig::{Bad, run, works};
use crate::sim::wire::{protocol_feature, req};
use crate::sim::{RegionSpec, Session};

/// Starts a ring whose areas are named by the guest's addresses.
#[track_caller]
fn start(s: &mut Session, index: usize) {
    let (number, queue) = (index as u32, &s.queues[index]);
    let layout = *queue.ring.layout();
    let mut addr = layout.vring_addr(&s.memory, number).unwrap();
    (addr.desc, addr.avail, addr.used) = (layout.desc, layout.avail, layout.used);
    let fe = s.fe();
    fe.set_vring_num(number, layout.size.into()).unwrap();
    fe.set_vring_base(number, 0).unwrap();
    fe.set_vring_addr(&addr).unwrap();
    fe.set_vring_call(number, Some(queue.call.as_raw_fd()))
        .unwrap();
    fe.set_vring_kick(number, Some(queue.kick.as_raw_fd()))
        .unwrap();
    fe.set_vring_enable(number, true).unwrap();
}

#[test]
fn memory_and_rings_are_named_by_the_guests_addresses() {
    run("gpa_addresses", |rig| {
        // The user addresses mean nothing: they overlap.
        let nowhere = 0x1234_5000;
        let regions = [
            RegionSpec::new(1 << 20, 32 << 20).user_addr(nowhere),
            RegionSpec::new(1 << 30, 1 << 20).user_addr(nowhere),
        ];
        let mut s = rig
            .builder()
            .protocol_features(protocol_feature::GPA_ADDRESSES)
            .regions(&regions)
            .not_started()
            .connect(&rig.path);
        for index in 0..2 {
            start(&mut s, index);
        }
        works(&mut s);
        // Regions come and go by them, too.
        let more = s.add_region(RegionSpec::new(1 << 40, 1 << 20).user_addr(nowhere));
        s.remove_region(more.spec().gpa);
        works(&mut s);
        // Who has announced memory cannot call it otherwise any more.
        let without = s.protocol_features & !protocol_feature::GPA_ADDRESSES;
        rig.refused(s.fe(), &Bad::u64(req::SET_PROTOCOL_FEATURES, without));
        works(&mut s);
    });
}

#[test]
fn without_the_feature_overlapping_user_addresses_are_refused() {
    run("gpa_addresses_off", |rig| {
        let s = rig.session();
        let first = s.memory.regions()[0].spec();
        let region = RegionSpec::new(1 << 40, 1 << 20).user_addr(first.user_addr);
        let region = crate::sim::Region::new(region).unwrap();
        let bad = Bad::new(req::ADD_MEM_REG, region.wire().encode_single());
        rig.refused(s.fe(), &bad.fds(&[region.raw_fd()]));
    });
}

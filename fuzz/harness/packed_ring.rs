//! A packed ring with any contents, popped by the library and by a simple reference walk: the same elements, the same
//! verdict, the same used descriptors.

mod input;
mod reference;

use std::cell::OnceCell;

use arbitrary::{Arbitrary, Unstructured};

use super::sim::packed_ring::{PackedLayout, PackedRing, used_flags};
use super::sim::ring::DESC_LEN;
use super::sim::wire::feature;
use super::split_ring::input::{TABLE_ENTRIES, TABLES};
use super::split_ring::reference::{Broken, Buffer};
use super::split_ring::rig::{Heard, Rig};
use input::Input;
use reference::{Chain, Walk};

const LAYOUT: PackedLayout = PackedLayout {
    size: 256,
    desc: 0,
    driver: 0x1_0000,
    device: 0x1_8000,
};

thread_local!(static RIG: OnceCell<Rig> = const { OnceCell::new() });

pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    RIG.with(|rig| run_in(rig.get_or_init(Rig::new), &input));
}

fn run_in(rig: &Rig, input: &Input) {
    rig.stop();
    let size = input.size();
    let layout = PackedLayout { size, ..LAYOUT };
    let ring = PackedRing::new(&rig.world.memory, layout).expect("a ring");
    fill(rig, &ring, input);
    let walk = Walk {
        memory: &rig.world.memory,
        desc: LAYOUT.desc,
        size,
        indirect: input.indirect,
    };
    let (chains, verdict) = walk.all(input.base());
    let before = Heard::by(&rig.world.device);
    let chosen = [
        (true, feature::RING_PACKED),
        (input.indirect, feature::INDIRECT_DESC),
        (input.event_idx, feature::EVENT_IDX),
    ];
    let features = chosen
        .iter()
        .filter(|on| on.0)
        .fold(0, |all, on| all | on.1);
    let base = u32::from(input.base().encode());
    let addr = layout.vring_addr(&rig.world.memory, 0).expect("addresses");
    rig.start_ring(features, size, base << 16 | base, addr);
    let heard = Heard {
        started: before.started + 1,
        broken: before.broken + u64::from(verdict.is_err()),
    };
    let device = &rig.world.device;
    rig.world
        .serve_until(&format!("{chains:x?} {verdict:?}"), None, || {
            device.held_count() == chains.len() && Heard::by(device) == heard
        });
    give_back(rig, &ring, input, &chains, &verdict);
}

fn fill(rig: &Rig, ring: &PackedRing, input: &Input) {
    ring.clear(input.base()).expect("clear");
    for table in TABLES {
        let len = usize::from(TABLE_ENTRIES) * DESC_LEN as usize;
        rig.world.memory.fill(table, len, 0).expect("clear");
    }
    for entry in input.entries.iter() {
        let (table, index, desc) = entry.place(LAYOUT.desc, input);
        let at = table + DESC_LEN * u64::from(index);
        let memory = &rig.world.memory;
        memory.write(at, &desc.encode()).expect("a descriptor");
    }
    ring.set_driver_events(input.event, input.event_flags.into())
        .expect("events");
}

fn give_back(
    rig: &Rig,
    ring: &PackedRing,
    input: &Input,
    chains: &[Chain],
    verdict: &Result<(), Broken>,
) {
    let held = rig.world.device.take_held();
    let popped: Vec<Vec<Buffer>> = held.iter().map(|element| rig.buffers(element)).collect();
    let wanted: Vec<_> = chains.iter().map(|chain| chain.buffers.clone()).collect();
    assert_eq!(popped, wanted);
    if verdict.is_err() {
        // The ring is dead.
        return drop(held);
    }
    let mut at = input.base();
    for (number, (element, chain)) in (0..).zip(held.into_iter().zip(chains)) {
        let written = element.writable_len().min(number);
        element.complete(written).expect("completed");
        let used = ring.used(at.index).expect("a descriptor");
        assert_eq!(used, (chain.id, written), "used descriptor {number}");
        let flags = ring.flags(at.index).expect("flags") & used_flags(true);
        assert_eq!(flags, used_flags(at.wrap), "flags of {number}");
        at = at.after(chain.count, input.size());
    }
}

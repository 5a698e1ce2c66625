//! The rig of the split rings, whose queue 0 is started as a packed ring for each input.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vu_server::Element;

use super::expected::{Calls, Chain, chains};
use super::input::Input;
use crate::harness::recorder::{Recorder, complete_at};
use crate::harness::sim::packed_ring::{
    DESC_AVAIL, DESC_USED, EVENTS_DESC, EVENTS_ENABLE, PackedRing, used_flags,
};
use crate::harness::sim::ring::DESC_LEN;
use crate::harness::sim::wire::{self, feature, req};
use crate::harness::sim::{EventFd, PackedLayout, Position};
use crate::harness::split_ring::input::Write;
use crate::harness::split_ring::reference::{Broken, Walk};
use crate::harness::split_ring::rig::{Heard, Rig as SplitRig, Start, features};
use crate::harness::world::{STAGE, World};

pub const LAYOUT: PackedLayout = PackedLayout {
    size: 1024,
    desc: 0,
    driver: 0x1_0000,
    device: 0x1_8000,
};

/// Never an available descriptor, nor one that the device has used.
const MARK: u8 = 0x55;

pub struct Rig {
    /// Has the connection, and knows where the regions are. Its ring is stopped between two inputs.
    rig: SplitRig,
    call: EventFd,
}

impl Rig {
    pub fn new() -> Rig {
        let rig = SplitRig::new();
        rig.stop();
        let call = EventFd::new().expect("an eventfd");
        let fd = Some(call.as_raw_fd());
        rig.peer.fe.set_vring_call(0, fd).expect("call");
        Rig { rig, call }
    }

    pub fn run(&self, input: &Input) {
        let ring = self.ring(input.size());
        self.fill(&ring, input);
        let start = self.plan(&ring, input);
        if let Some(base) = input.bad_base() {
            self.refuse(&start, base);
        }
        let walk = Walk {
            memory: &self.world().memory,
            desc: LAYOUT.desc,
            size: input.size(),
            indirect: input.indirect,
        };
        let (chains, next, verdict) = chains(&walk, input.avail());
        let before = Heard::by(&self.world().device);
        // An empty ring is nothing that a device is called for.
        let batch = input.batch && verdict.is_ok() && !chains.is_empty() && input.race().is_none();
        self.world().device.again.store(batch, Ordering::Relaxed);
        self.rig.start_with(&start);
        match input.race() {
            None => self.compare(&ring, input, &chains, next, verdict, before),
            Some(writes) => self.race(&ring, input, &writes, before),
        }
    }

    fn world(&self) -> &World {
        &self.rig.world
    }

    fn ring(&self, size: u16) -> PackedRing {
        PackedRing::new(&self.world().memory, PackedLayout { size, ..LAYOUT }).expect("a ring")
    }

    fn plan(&self, ring: &PackedRing, input: &Input) -> Start {
        let features = features(input.indirect, input.event_idx);
        let layout = ring.layout();
        Start {
            features: features | feature::RING_PACKED,
            size: input.size(),
            base: input.base(),
            addr: layout
                .vring_addr(&self.world().memory, 0)
                .expect("addresses"),
        }
    }

    fn fill(&self, ring: &PackedRing, input: &Input) {
        ring.clear(input.avail()).expect("clear");
        self.rig.clear_tables();
        input
            .contents()
            .for_each(|write| write.apply(&self.world().memory));
        let (at, flags) = input.driver_event();
        ring.set_driver_events(at, flags)
            .expect("the driver's events");
        let (at, flags) = input.device_event;
        ring.set_device_events(at, flags)
            .expect("the device's events");
    }

    /// A base outside the ring is refused, whichever side it is of.
    fn refuse(&self, start: &Start, base: u32) {
        let peer = &self.rig.peer;
        let features = start.features.to_ne_bytes();
        assert!(peer.request(req::SET_FEATURES, false, &features, &[]));
        let size = wire::vring_state(0, start.size.into());
        assert!(peer.request(req::SET_VRING_NUM, false, &size, &[]));
        assert!(peer.request(req::SET_VRING_BASE, true, &wire::vring_state(0, base), &[]));
        let reply = peer.receive().and_then(|reply| reply.u64().ok());
        assert!(
            reply.is_some_and(|status| status != 0),
            "base {base:#x}: {reply:?}"
        );
    }

    fn compare(
        &self,
        ring: &PackedRing,
        input: &Input,
        chains: &[Chain],
        next: Position,
        verdict: Result<(), Broken>,
        before: Heard,
    ) {
        let device = &self.world().device;
        let heard = Heard {
            started: before.started + 1,
            broken: before.broken + u64::from(verdict.is_err()),
        };
        let what = format!("{chains:x?} {verdict:?}");
        self.world().serve_until(&what, None, || {
            device.held_count() == chains.len() && Heard::by(device) == heard
        });
        let popped: Vec<_> = device.take_held();
        let buffers: Vec<_> = popped
            .iter()
            .map(|element| self.rig.buffers(element))
            .collect();
        let wanted: Vec<_> = chains.iter().map(|chain| chain.buffers.clone()).collect();
        assert_eq!(buffers, wanted);
        let used = if verdict.is_err() {
            // The ring is dead: nothing more is written to it.
            let memory = self.descs(input.size());
            drop(popped);
            assert_eq!(self.descs(input.size()), memory, "written to a broken ring");
            input.used()
        } else {
            let used = self.complete(ring, input, chains, popped);
            self.check_wish(ring, input, next);
            used
        };
        let base = u32::from(next.encode()) | u32::from(used.encode()) << 16;
        assert_eq!(self.rig.stop(), base, "the base");
    }

    /// The device wants to hear of the next chain.
    fn check_wish(&self, ring: &PackedRing, input: &Input, next: Position) {
        let wish = if input.event_idx {
            (next.encode(), EVENTS_DESC)
        } else {
            (0, EVENTS_ENABLE)
        };
        let told = ring.device_events().expect("the device's events");
        assert_eq!(told, wish, "the device's event suppression");
    }

    /// Completes all elements and checks what the driver gets to see. Returns where the used side is then.
    fn complete(
        &self,
        ring: &PackedRing,
        input: &Input,
        chains: &[Chain],
        popped: Vec<Element>,
    ) -> Position {
        let mut calls = Calls {
            event: input.driver_event(),
            event_idx: input.event_idx,
            size: input.size(),
            compared: false,
        };
        self.call.take().expect("calls of the start");
        let lengths: Vec<u32> = (0..)
            .zip(&popped)
            .map(|(position, element)| element.writable_len().min(position))
            .collect();
        let (mut at, size) = (input.used(), input.size());
        let together = if input.batch { STAGE } else { 1 };
        if input.batch && !chains.is_empty() {
            self.complete_in_kick(popped);
        } else {
            for (position, (element, chain)) in (0..).zip(popped.into_iter().zip(chains)) {
                let len = complete_at(position, element);
                self.check_used(ring, at, chain.id, len);
                at = at.after(chain.count, size);
            }
            at = input.used();
        }
        let mut expected = 0;
        for (batch, lengths) in chains.chunks(together).zip(lengths.chunks(together)) {
            let count = batch.iter().map(|chain| chain.count).sum();
            expected += u64::from(calls.expects(at, count));
            for (chain, &len) in batch.iter().zip(lengths) {
                self.check_used(ring, at, chain.id, len);
                at = at.after(chain.count, size);
            }
        }
        assert_eq!(self.call.take().expect("calls"), expected, "calls");
        at
    }

    /// The device completes everything within one call of its own.
    fn complete_in_kick(&self, popped: Vec<Element>) {
        let device = &self.world().device;
        device.keep(popped);
        // Relaxed: both are of this thread.
        device.completing.store(true, Ordering::Relaxed);
        self.world().serve_until("the completions", None, || {
            !device.completing.load(Ordering::Relaxed)
        });
    }

    fn check_used(&self, ring: &PackedRing, at: Position, id: u16, len: u32) {
        let flags = ring.flags(at.index).expect("flags") & (DESC_AVAIL | DESC_USED);
        assert_eq!(flags, used_flags(at.wrap), "flags at {at:?}");
        let used = ring.used(at.index).expect("a used descriptor");
        assert_eq!(used, (id, len), "used at {at:?}");
    }

    fn descs(&self, size: u16) -> Vec<u8> {
        let len = usize::from(size) * DESC_LEN as usize;
        self.world()
            .memory
            .read(LAYOUT.desc, len)
            .expect("the ring")
    }

    /// Changes the memory while the library reads it. What was popped is returned once for each element, in order and
    /// with an id of its own, or the ring is broken and nobody writes to it.
    fn race(&self, ring: &PackedRing, input: &Input, writes: &[Write], before: Heard) {
        let popped = self.rig.race(writes, before);
        assert!(popped.len() <= usize::from(input.size()));
        let mut at = None;
        let mut ids = BTreeSet::new();
        let mut dead = false;
        for (position, element) in (0..).zip(popped) {
            self.mark(input.size());
            let len = complete_at(position, element);
            let Some(index) = self.changed(input.size()) else {
                dead = true;
                continue;
            };
            assert!(!dead, "written to a broken ring");
            let place = behind(at, index, input);
            let (id, _) = ring.used(index).expect("a used descriptor");
            assert!(id < input.size() && ids.insert(id), "id {id} at {place:?}");
            self.check_used(ring, place, id, len);
            at = Some(place);
        }
        if dead {
            self.world().serve_until("the broken ring", None, || {
                Recorder::get(&self.world().device.broken) > before.broken
            });
        }
        let broken = Recorder::get(&self.world().device.broken) > before.broken;
        self.check_base(input, self.rig.stop(), dead || broken);
    }

    fn mark(&self, size: u16) {
        let len = usize::from(size) * DESC_LEN as usize;
        self.world()
            .memory
            .fill(LAYOUT.desc, len, MARK)
            .expect("mark");
    }

    /// The descriptor that was written since all were marked: one at most, and not its address.
    fn changed(&self, size: u16) -> Option<u16> {
        let descs = self.descs(size);
        let marked = [MARK; DESC_LEN as usize];
        let mut changed = (0..)
            .zip(descs.chunks_exact(marked.len()))
            .filter(|(_, desc)| *desc != marked);
        let (index, desc) = changed.next()?;
        assert_eq!(desc[..8], marked[..8], "an address is written at {index}");
        assert!(changed.next().is_none(), "two descriptors for one chain");
        Some(index)
    }

    /// As many descriptors are returned as were popped; of a broken ring, only that both places are inside.
    fn check_base(&self, input: &Input, base: u32, broken: bool) {
        let size = input.size();
        let [avail, used] = [base as u16, (base >> 16) as u16].map(Position::decode);
        assert!(avail.index < size && used.index < size, "base {base:#x}");
        if !broken {
            let moved = |from, to| {
                let rounds = 2 * u32::from(size);
                (count(to, size) + rounds - count(from, size)) % rounds
            };
            assert_eq!(
                moved(input.avail(), avail),
                moved(input.used(), used),
                "base {base:#x}"
            );
        }
    }
}

/// Where the next used descriptor is, if it is at `index` and the one before it at `last`: at most one round further.
fn behind(last: Option<Position>, index: u16, input: &Input) -> Position {
    let Some(last) = last else {
        assert_eq!(index, input.used().index, "the first used descriptor");
        return input.used();
    };
    Position {
        index,
        wrap: last.wrap ^ (index <= last.index),
    }
}

/// Descriptors since a place where the wrap counter was 1.
fn count(at: Position, size: u16) -> u32 {
    u32::from(at.index) + if at.wrap { 0 } else { size.into() }
}

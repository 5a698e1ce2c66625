//! One connection whose queue 0 is stopped, filled anew and started for each input.

use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vu_server::Element;

use super::input::{Entry, Input, TABLE_ENTRIES, TABLES};
use super::reference::{Broken, Buffer, Chain, Walk};
use crate::harness::inflight::{self, Contents, Recovered};
use crate::harness::peer::Peer;
use crate::harness::recorder::Recorder;
use crate::harness::sim::inflight::Inflight;
use crate::harness::sim::ring::{DESC_LEN, Ring};
use crate::harness::sim::wire::{self, FLAG_NEED_REPLY, VERSION, VringAddr, feature, req};
use crate::harness::sim::{EventFd, GuestMemory, RingLayout};
use crate::harness::world::{REGIONS, World};

pub const LAYOUT: RingLayout = RingLayout {
    size: 256,
    desc: 0,
    avail: 0x1_0000,
    used: 0x1_8000,
};

/// The chains that are popped, and what becomes of the ring.
type Walked = (Vec<Chain>, Result<(), Broken>);

pub struct Rig {
    pub world: Rc<World>,
    pub peer: Peer,
    pub kick: EventFd,
    /// Where the library has mapped each region.
    hosts: Vec<usize>,
    /// What is in flight is marked here.
    area: Option<Inflight>,
}

impl Rig {
    pub fn new() -> Rig {
        let world = World::get();
        let mut peer = world.connect();
        peer.negotiate();
        peer.share_memory();
        let mut rig = Rig {
            world,
            peer,
            kick: EventFd::new().expect("an eventfd"),
            hosts: Vec::new(),
            area: None,
        };
        rig.hosts = rig.find_regions();
        rig
    }

    /// A front-end that keeps a record of what is in flight.
    pub fn with_area(area: Inflight) -> Rig {
        let mut rig = Rig::new();
        rig.stop();
        rig.peer.fe.set_inflight_fd(&area).expect("the area");
        rig.area = Some(area);
        rig.start(4, 0, true, true);
        rig
    }

    /// Pops a chain with one byte in each region and looks where they are.
    fn find_regions(&self) -> Vec<usize> {
        let ring = self.ring(4);
        ring.clear().expect("clear");
        for (index, (gpa, _)) in (0..).zip(REGIONS) {
            let (next, flags) = if index < 3 { (index + 1, 1) } else { (0, 0) };
            let desc = crate::harness::sim::Desc {
                addr: gpa,
                len: 1,
                flags,
                next,
            };
            ring.set_desc(index, desc).expect("a descriptor");
        }
        ring.set_avail_entry(0, 0).expect("an entry");
        ring.set_avail_idx(1).expect("the index");
        self.start(4, 0, true, true);
        self.world.serve_until("the first element", None, || {
            self.world.device.held_count() == 1
        });
        let held = self.world.device.take_held();
        held[0]
            .readable()
            .map(|slice| slice.as_ptr().addr())
            .collect()
    }

    pub fn ring(&self, size: u16) -> Ring {
        Ring::new(&self.world.memory, RingLayout { size, ..LAYOUT }).expect("a ring")
    }

    /// Stops the ring if it runs, and starts it; the device keeps what it pops.
    fn start(&self, size: u16, base: u16, indirect: bool, event_idx: bool) {
        let chosen = [
            (indirect, feature::INDIRECT_DESC),
            (event_idx, feature::EVENT_IDX),
        ];
        let features = chosen
            .iter()
            .filter(|on| on.0)
            .fold(0, |all, on| all | on.1);
        let addr = LAYOUT.vring_addr(&self.world.memory, 0).expect("addresses");
        self.start_ring(features, size, base.into(), addr);
    }

    /// As `start`, for any kind of ring: with these features of its own.
    pub fn start_ring(&self, features: u64, size: u16, base: u32, addr: VringAddr) {
        self.hold();
        let features = features | feature::PROTOCOL_FEATURES | feature::VERSION_1;
        let state = wire::vring_state;
        let messages = [
            (req::SET_FEATURES, features.to_ne_bytes().to_vec()),
            (req::SET_VRING_NUM, state(0, size.into())),
            (req::SET_VRING_BASE, state(0, base)),
            (req::SET_VRING_ADDR, addr.encode()),
        ];
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|(request, body)| wire::message(*request, VERSION, body))
            .collect();
        assert!(self.peer.send(&bytes, &[]), "set-up");
        let kick = wire::message(req::SET_VRING_KICK, VERSION, &0u64.to_ne_bytes());
        assert!(self.peer.send(&kick, &[self.kick.as_raw_fd()]), "kick");
        let flags = VERSION | FLAG_NEED_REPLY;
        let enable = wire::message(req::SET_VRING_ENABLE, flags, &state(0, 1));
        assert!(self.peer.send(&enable, &[]), "enable");
        let reply = self.peer.receive_while(|| {});
        let ack = reply.and_then(|reply| reply.u64().ok());
        assert_eq!(ack, Some(0), "started");
    }

    /// From here on the device keeps what it pops.
    pub fn hold(&self) {
        self.world.device.holding.store(true, Ordering::Relaxed);
    }

    /// Stops the ring, which was started, and waits until the device has heard of it: what broke before is
    /// told before that.
    pub fn stop(&self) {
        let stopped = Recorder::get(&self.world.device.stopped);
        self.world.release();
        let body = wire::vring_state(0, 0);
        self.peer.request(req::GET_VRING_BASE, false, &body, &[]);
        self.peer.receive().expect("the base");
        self.world.serve_until("the end of the ring", None, || {
            Recorder::get(&self.world.device.stopped) > stopped
        });
    }

    pub fn run(&self, input: &Input, contents: Option<&Contents>) {
        self.stop();
        let ring = self.ring(input.size());
        self.fill(&ring, input);
        let recovered = match (&self.area, contents) {
            (Some(area), Some(contents)) => {
                contents.write(area, &ring, input.base);
                Some(inflight::recover(area, &ring, input.base))
            }
            _ => None,
        };
        let expected = self.expect(input, recovered.as_ref());
        let before = Heard::by(&self.world.device);
        self.start(input.size(), input.base, input.indirect, input.event_idx);
        match (input.race(), recovered) {
            (None, recovered) => self.compare(&ring, input, &expected, recovered, before),
            (Some(_), Some(Err(Broken))) => self
                .world
                .serve_until("the end", None, || Heard::by(&self.world.device) != before),
            (Some(entries), _) => self.race(input, entries, before),
        }
    }

    fn expect(&self, input: &Input, recovered: Option<&Result<Recovered, Broken>>) -> Walked {
        let (size, ahead) = (input.size(), input.ahead());
        let recovered: &[u16] = match recovered {
            Some(Err(Broken)) => return (Vec::new(), Err(Broken)),
            Some(Ok(recovered)) => &recovered.heads,
            None => &[],
        };
        if ahead > size {
            return (Vec::new(), Err(Broken));
        }
        let walk = Walk {
            memory: &self.world.memory,
            desc: LAYOUT.desc,
            size,
            indirect: input.indirect,
        };
        walk.all((0..ahead).map(|position| {
            let first = recovered.get(usize::from(position));
            first.copied().unwrap_or_else(|| input.head(position))
        }))
    }

    fn fill(&self, ring: &Ring, input: &Input) {
        ring.clear().expect("clear");
        for table in TABLES {
            let len = usize::from(TABLE_ENTRIES) * DESC_LEN as usize;
            self.world.memory.fill(table, len, 0).expect("clear");
        }
        for entry in input.entries.iter() {
            write(&self.world.memory, entry, input.size());
        }
        for position in 0..input.size() {
            let at = input.base.wrapping_add(position);
            ring.set_avail_entry(at, input.head(position))
                .expect("an entry");
        }
        ring.set_avail_flags(input.avail_flags.into())
            .expect("flags");
        ring.set_used_event(input.used_event).expect("event");
        let index = input.base.wrapping_add(input.ahead());
        ring.set_avail_idx(index).expect("the index");
        ring.set_used_idx(input.base).expect("the used index");
    }

    fn compare(
        &self,
        ring: &Ring,
        input: &Input,
        (chains, verdict): &Walked,
        recovered: Option<Result<Recovered, Broken>>,
        before: Heard,
    ) {
        let device = &self.world.device;
        // A ring whose area is nonsense does not start at all.
        let starts = !matches!(recovered, Some(Err(Broken)));
        let heard = Heard {
            started: before.started + u64::from(starts),
            broken: before.broken + u64::from(*verdict == Err(Broken)),
        };
        self.world
            .serve_until(&format!("{chains:x?} {verdict:?}"), None, || {
                device.held_count() == chains.len() && Heard::by(device) == heard
            });
        let held = device.take_held();
        let popped: Vec<Vec<Buffer>> = held.iter().map(|element| self.buffers(element)).collect();
        let wanted: Vec<_> = chains.iter().map(|chain| chain.buffers.clone()).collect();
        assert_eq!(popped, wanted);
        if verdict.is_err() {
            // The ring is dead: nothing more is written to it.
            return drop(held);
        }
        for (position, (element, chain)) in (0..).zip(held.into_iter().zip(chains)) {
            let written = element.writable_len().min(u32::from(position));
            element.complete(written).expect("completed");
            let entry = ring
                .used_entry(input.base.wrapping_add(position))
                .expect("an entry");
            assert_eq!(entry, (chain.head.into(), written), "used entry {position}");
        }
        let used = ring.used_idx().expect("the used index");
        assert_eq!(used, input.base.wrapping_add(input.ahead()));
        if let (Some(area), Some(Ok(recovered))) = (&self.area, &recovered) {
            let returned: Vec<u16> = chains.iter().map(|chain| chain.head).collect();
            inflight::check(area, recovered, &returned, used);
        }
    }

    /// Changes the memory while the library reads it. Every element is made of guest memory all the same, and
    /// the ring is done with or broken in the end.
    fn race(&self, input: &Input, entries: &[Entry], before: Heard) {
        let (stop, memory) = (AtomicBool::new(false), &self.world.memory);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Relaxed: the flag carries nothing with it.
                while !stop.load(Ordering::Relaxed) {
                    let all = entries.iter().chain(input.entries.iter());
                    all.for_each(|entry| write(memory, entry, input.size()));
                }
            });
            let _stop = StopOnDrop(&stop);
            self.world.serve_until("the ring to start", None, || {
                Heard::by(&self.world.device).started > before.started
            });
            for _ in 0..3 {
                self.kick.signal().expect("a kick");
                self.world
                    .ctx
                    .dispatch(Some(std::time::Duration::ZERO))
                    .expect("dispatch");
            }
        });
        for element in self.world.device.take_held() {
            self.buffers(&element);
        }
    }

    /// The buffers of an element as guest addresses; each lies in one region.
    pub fn buffers(&self, element: &Element) -> Vec<Buffer> {
        let readable = element.readable().map(|slice| (slice, false));
        let writable = element.writable().map(|slice| (slice, true));
        readable
            .chain(writable)
            .map(|(slice, write)| {
                let host = slice.as_ptr().addr();
                let gpa = self.guest_address(host, slice.len());
                (gpa, slice.len() as u64, write)
            })
            .collect()
    }

    fn guest_address(&self, host: usize, len: usize) -> u64 {
        let place = self
            .hosts
            .iter()
            .zip(REGIONS)
            .find_map(|(&base, (gpa, size))| {
                let offset = host.checked_sub(base)? as u64;
                (offset < size && len as u64 <= size - offset).then_some(gpa + offset)
            });
        place.unwrap_or_else(|| panic!("{len} bytes at {host:#x} are in no region"))
    }
}

/// What the device has heard of its rings.
#[derive(Clone, Copy, PartialEq)]
pub struct Heard {
    pub started: u64,
    pub broken: u64,
}

impl Heard {
    pub fn by(device: &Recorder) -> Heard {
        Heard {
            started: Recorder::get(&device.started),
            broken: Recorder::get(&device.broken),
        }
    }
}

/// Ends the writing thread, also if a check fails while it runs.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(memory: &GuestMemory, entry: &Entry, size: u16) {
    let (table, entries) = entry.table(LAYOUT.desc, size);
    let at = table + DESC_LEN * u64::from(entry.index() % entries);
    memory
        .write(at, &entry.desc().encode())
        .expect("a descriptor");
}

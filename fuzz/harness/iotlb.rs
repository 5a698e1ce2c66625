//! Translations that come and go, and chains that need them: popped when all of it is translated, asked for when
//! something is missing, broken when something is forbidden, whatever came before.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use arbitrary::{Arbitrary, Unstructured};

use super::recorder::Recorder;
use super::sim::Desc;
use super::sim::ring::{DESC_NEXT, DESC_WRITE, Ring};
use super::sim::wire::{self, FLAG_NEED_REPLY, Iotlb, VERSION, feature, req};
use super::split_ring::reference::Buffer;
use super::split_ring::rig::{LAYOUT, Rig};
use super::{Many, pick};

const PAGE: u64 = 4096;
/// The ring's three areas, as many bytes from the beginning of guest memory.
const RINGS: u64 = 1 << 45;
const RINGS_SIZE: u64 = 0x2_0000;
/// Buffers are in these pages, and in the two behind them, which are never translated.
const BUFFERS: u64 = 1 << 46;
const PAGES: u64 = 16;
const READ: u8 = 1;
const WRITE: u8 = 2;
const SIZE: u16 = 16;

thread_local!(static IOMMU: OnceCell<Iommu> = const { OnceCell::new() });

#[derive(Arbitrary, Debug)]
enum Step {
    Update {
        page: u8,
        count: u8,
        target: u8,
        permissions: u8,
    },
    Invalidate {
        page: u8,
        count: u8,
    },
    /// A message that has to be refused.
    Nonsense {
        what: u8,
        value: u64,
    },
    /// Everything goes, and the rings come back.
    InvalidateAll,
    Offer(Many<Piece>),
}

#[derive(Arbitrary, Debug)]
struct Piece {
    page: u8,
    offset: u16,
    len: u16,
    write: bool,
}

pub fn run(data: &[u8]) {
    let Ok(steps) = Many::<Step>::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    IOMMU.with(|iommu| Run::new(iommu.get_or_init(Iommu::new)).all(&steps));
}

/// A connection whose queue 0 is behind an IOMMU.
struct Iommu {
    rig: Rig,
    channel: UnixStream,
}

impl Iommu {
    fn new() -> Iommu {
        let rig = Rig::new();
        rig.stop();
        let (channel, theirs) = UnixStream::pair().expect("a channel");
        let fe = &rig.peer.fe;
        fe.set(req::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])
            .expect("the channel");
        let features = feature::PROTOCOL_FEATURES | feature::VERSION_1 | feature::ACCESS_PLATFORM;
        fe.set_features(features).expect("features");
        channel.set_nonblocking(true).expect("non-blocking");
        let iommu = Iommu { rig, channel };
        iommu.translate_rings();
        iommu.start();
        iommu
    }

    /// The acknowledgement of a message about translations.
    fn send(&self, message: Iotlb) -> u64 {
        let peer = &self.rig.peer;
        peer.request(req::IOTLB_MSG, false, &message.encode(), &[]);
        // What the device has popped meanwhile is what is looked at afterwards.
        let reply = peer.receive_while(|| {}).expect("an answer");
        reply.u64().expect("a number")
    }

    fn translate_rings(&self) {
        let user = self.rig.world.memory.user_addr(0).expect("an address");
        let rings = Iotlb {
            iova: RINGS,
            size: RINGS_SIZE,
            user,
            permissions: READ | WRITE,
            kind: Iotlb::UPDATE,
        };
        assert_eq!(self.send(rings), 0);
    }

    fn start(&self) {
        let mut addr = LAYOUT
            .vring_addr(&self.rig.world.memory, 0)
            .expect("addresses");
        (addr.desc, addr.avail, addr.used) = (
            RINGS + LAYOUT.desc,
            RINGS + LAYOUT.avail,
            RINGS + LAYOUT.used,
        );
        let messages = [
            (req::SET_VRING_NUM, wire::vring_state(0, SIZE.into())),
            (req::SET_VRING_BASE, wire::vring_state(0, 0)),
            (req::SET_VRING_ADDR, addr.encode()),
        ];
        let peer = &self.rig.peer;
        for (request, body) in messages {
            peer.request(request, false, &body, &[]);
        }
        let kick = wire::message(req::SET_VRING_KICK, VERSION, &0u64.to_ne_bytes());
        assert!(peer.send(&kick, &[self.rig.kick.as_raw_fd()]), "kick");
        let started = Recorder::get(&self.rig.world.device.started);
        let enable = wire::vring_state(0, 1);
        let enable = wire::message(req::SET_VRING_ENABLE, VERSION | FLAG_NEED_REPLY, &enable);
        assert!(peer.send(&enable, &[]), "enable");
        peer.receive_while(|| {}).expect("enabled");
        self.wait_started(started);
    }

    fn wait_started(&self, before: u64) {
        let world = &self.rig.world;
        world.serve_until("the ring to start", None, || {
            Recorder::get(&world.device.started) > before
        });
    }

    /// Takes the questions that have come; whether there was one.
    fn questions(&self) -> bool {
        let mut bytes = [0; 4096];
        matches!((&self.channel).read(&mut bytes), Ok(1..))
    }
}

/// Why a chain cannot be popped.
#[derive(Debug, PartialEq)]
enum Obstacle {
    Missing,
    Forbidden,
}

struct Run<'i> {
    iommu: &'i Iommu,
    ring: Ring,
    /// By page: the guest page behind it, and what is permitted.
    translations: HashMap<u64, (u64, u8)>,
    offered: u16,
    /// A chain that waits for a translation.
    waiting: Option<Vec<Buffer>>,
    /// Rings that had broken before this one started.
    breaks: u64,
    broken: bool,
}

impl<'i> Run<'i> {
    fn new(iommu: &'i Iommu) -> Self {
        let ring = iommu.rig.ring(SIZE);
        iommu.rig.stop();
        let run = Run {
            iommu,
            ring,
            translations: HashMap::new(),
            offered: 0,
            waiting: None,
            breaks: Recorder::get(&iommu.rig.world.device.broken),
            broken: false,
        };
        run.ring.clear().expect("clear");
        run.invalidate(0, u64::MAX);
        iommu.translate_rings();
        iommu.questions();
        iommu.rig.hold();
        iommu.start();
        run
    }

    fn all(&mut self, steps: &[Step]) {
        for step in steps {
            if !self.broken {
                self.iommu.rig.hold();
                self.take(step);
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Update {
                page,
                count,
                target,
                permissions,
            } => {
                self.update(*page, *count, *target, *permissions);
            }
            Step::Invalidate { page, count } => {
                let (first, count) = pages(*page, *count);
                self.translations
                    .retain(|page, _| !(first..first + count).contains(page));
                self.invalidate(BUFFERS + first * PAGE, count * PAGE);
            }
            Step::Nonsense { what, value } => {
                let refused = self.iommu.send(nonsense(*what, *value));
                assert_ne!(refused, 0, "{step:?}");
            }
            Step::InvalidateAll => {
                let started = Recorder::get(&self.iommu.rig.world.device.started);
                self.translations.clear();
                self.invalidate(0, u64::MAX);
                self.iommu.translate_rings();
                self.iommu.wait_started(started);
            }
            Step::Offer(pieces) if self.waiting.is_none() => self.offer(pieces),
            Step::Offer(_) => {}
        }
        self.look_again();
    }

    fn update(&mut self, page: u8, count: u8, target: u8, permissions: u8) {
        let (first, count) = pages(page, count);
        let place = u64::from(target) >> 2;
        let gpa = match target & 3 {
            0 | 1 => 0x4_0000 + place % 32 * PAGE,
            2 => (1 << 20) + place % 32 * PAGE,
            _ => (1 << 40) + place % 12 * PAGE,
        };
        let permissions = pick(permissions, &[READ, WRITE, READ | WRITE, READ | WRITE]);
        for number in 0..count {
            self.translations
                .insert(first + number, (gpa + number * PAGE, permissions));
        }
        let update = Iotlb {
            iova: BUFFERS + first * PAGE,
            size: count * PAGE,
            user: self
                .iommu
                .rig
                .world
                .memory
                .user_addr(gpa)
                .expect("an address"),
            permissions,
            kind: Iotlb::UPDATE,
        };
        assert_eq!(self.iommu.send(update), 0);
    }

    fn invalidate(&self, iova: u64, size: u64) {
        let message = Iotlb {
            iova,
            size,
            user: 0,
            permissions: 0,
            kind: Iotlb::INVALIDATE,
        };
        assert_eq!(self.iommu.send(message), 0);
    }

    /// Makes a chain available; its device-readable buffers come first.
    fn offer(&mut self, pieces: &[Piece]) {
        let mut buffers: Vec<Buffer> = pieces
            .iter()
            .take(4)
            .map(|piece| {
                let page = u64::from(piece.page) % (PAGES + 2);
                let iova = BUFFERS + page * PAGE + u64::from(piece.offset) % PAGE;
                (iova, 1 + u64::from(piece.len) % 9000, piece.write)
            })
            .collect();
        buffers.sort_by_key(|buffer| buffer.2);
        if buffers.is_empty() {
            return;
        }
        for (index, &(addr, len, write)) in (0u16..).zip(&buffers) {
            let more = usize::from(index) + 1 < buffers.len();
            let flags = if write { DESC_WRITE } else { 0 } | if more { DESC_NEXT } else { 0 };
            let desc = Desc {
                addr,
                len: len as u32,
                flags,
                next: index + 1,
            };
            self.ring.set_desc(index, desc).expect("a descriptor");
        }
        self.ring
            .set_avail_entry(self.offered, 0)
            .expect("an entry");
        self.offered = self.offered.wrapping_add(1);
        self.ring.set_avail_idx(self.offered).expect("the index");
        let missing = self.translate(&buffers) == Err(Obstacle::Missing);
        self.waiting = Some(buffers);
        self.iommu.rig.kick.signal().expect("a kick");
        if missing {
            let world = &self.iommu.rig.world;
            let what = format!("a question about {:x?}", self.waiting);
            let mut asked = false;
            world.serve_until(&what, Some(self.iommu.channel.as_raw_fd()), || {
                asked |= self.iommu.questions();
                asked
            });
        }
    }

    /// What becomes of the chain that waits.
    fn look_again(&mut self) {
        let Some(buffers) = self.waiting.take() else {
            return;
        };
        let rig = &self.iommu.rig;
        let device = &rig.world.device;
        match self.translate(&buffers) {
            Ok(wanted) => {
                rig.world
                    .serve_until(&format!("{wanted:x?}"), None, || device.held_count() == 1);
                for element in device.take_held() {
                    assert_eq!(merged(&rig.buffers(&element)), wanted);
                    element.complete(0).expect("completed");
                }
                assert_eq!(self.ring.used_idx().expect("the used index"), self.offered);
            }
            Err(Obstacle::Missing) => self.waiting = Some(buffers),
            Err(Obstacle::Forbidden) => {
                rig.world
                    .serve_until(&format!("{buffers:x?} to break the ring"), None, || {
                        Recorder::get(&device.broken) > self.breaks
                    });
                self.broken = true;
            }
        }
        let breaks = self.breaks + u64::from(self.broken);
        assert_eq!(Recorder::get(&device.broken), breaks, "rings broken");
    }

    /// The guest memory behind buffers, each as long as it goes on; the first obstacle otherwise.
    fn translate(&self, buffers: &[Buffer]) -> Result<Vec<Buffer>, Obstacle> {
        let mut pieces = Vec::new();
        for &(iova, len, write) in buffers {
            let needed = if write { WRITE } else { READ };
            let mut at = iova;
            while at < iova + len {
                let (page, offset) = ((at - BUFFERS) / PAGE, at % PAGE);
                let &(gpa, permissions) = self.translations.get(&page).ok_or(Obstacle::Missing)?;
                if permissions & needed == 0 {
                    return Err(Obstacle::Forbidden);
                }
                let run = (PAGE - offset).min(iova + len - at);
                pieces.push((gpa + offset, run, write));
                at += run;
            }
        }
        Ok(merged(&pieces))
    }
}

/// Buffers that go on where the one before ended, as one.
fn merged(buffers: &[Buffer]) -> Vec<Buffer> {
    let mut all: Vec<Buffer> = Vec::new();
    for &(gpa, len, write) in buffers {
        match all.last_mut() {
            Some(last) if last.0 + last.1 == gpa && last.2 == write => last.1 += len,
            _ => all.push((gpa, len, write)),
        }
    }
    all
}

/// One to four of the pages that can be translated.
fn pages(page: u8, count: u8) -> (u64, u64) {
    let first = u64::from(page) % PAGES;
    (first, (1 + u64::from(count) % 4).min(PAGES - first))
}

fn nonsense(what: u8, value: u64) -> Iotlb {
    let sound = Iotlb {
        iova: BUFFERS,
        size: PAGE,
        user: 8 << 44,
        permissions: READ,
        kind: Iotlb::UPDATE,
    };
    match what % 5 {
        0 => Iotlb { size: 0, ..sound },
        1 => Iotlb {
            iova: u64::MAX - value % PAGE,
            size: PAGE + 1 + value % PAGE,
            ..sound
        },
        2 => Iotlb {
            user: value % (1 << 40),
            ..sound
        },
        3 => Iotlb {
            kind: pick(value as u8, &[0, 1, 4, 5, 7, 255]),
            ..sound
        },
        _ => Iotlb {
            permissions: 4 | value as u8,
            ..sound
        },
    }
}

//! Requests as the fuzzer makes them up: fields that are right most of the time.

use arbitrary::Arbitrary;

use crate::harness::peer::layout;
use crate::harness::sim::wire::{self, MemRegion, VRING_NOFD, req};
use crate::harness::world::World;
use crate::harness::{Many, pick};

#[derive(Arbitrary, Debug)]
pub enum Request {
    /// One without a body.
    Plain(u8),
    Features {
        clear: u8,
        set: u8,
    },
    ProtocolFeatures {
        clear: u8,
        set: u8,
    },
    MemTable {
        regions: Many<AnyRegion>,
        count: Option<u8>,
        fds: Many<u8>,
    },
    AddRegion(AnyRegion),
    RemoveRegion(AnyRegion),
    VringNum {
        index: Index,
        num: u8,
    },
    VringBase {
        index: Index,
        base: u16,
    },
    VringAddr {
        index: Index,
        wrong: u8,
        offset: i8,
    },
    GetVringBase(Index),
    VringFd {
        kind: u8,
        index: Index,
        fd: Option<u8>,
        nofd: bool,
    },
    Enable {
        index: Index,
        num: u8,
    },
    GetConfig {
        offset: u8,
        size: u8,
        flags: u8,
    },
    SetConfig {
        offset: u8,
        flags: u8,
        payload: Many<u8>,
    },
    Status(u16),
    BackendChannel(u8),
    Iotlb {
        iova: u32,
        size: u32,
        user: u8,
        perm: u8,
        kind: u8,
    },
    Log {
        size: u32,
        offset: u32,
        fd: u8,
    },
    Inflight {
        set: bool,
        size: u32,
        queues: u8,
        queue_size: u16,
        fd: u8,
    },
    /// Anything.
    Raw {
        id: u8,
        body: Many<u8>,
        fds: Many<u8>,
    },
}

/// A queue's index, most often one that there is.
#[derive(Arbitrary, Debug)]
pub struct Index(u8);

impl Index {
    fn value(&self) -> u32 {
        pick(
            self.0,
            &[
                0,
                1,
                0,
                1,
                0,
                1,
                0,
                1,
                0,
                1,
                2,
                255,
                256,
                0x1_0000,
                u32::MAX,
            ],
        )
    }
}

/// One of the world's regions with at most one field wrong.
#[derive(Arbitrary, Debug)]
pub struct AnyRegion {
    which: u8,
    wrong: u8,
    by: u16,
    fd: u8,
}

impl AnyRegion {
    fn wire(&self, world: &World) -> MemRegion {
        let regions = world.memory.regions();
        let mut wire = regions[usize::from(self.which) % regions.len()].wire();
        let by = u64::from(self.by) << (self.wrong & 0x30);
        match self.wrong & 0xf {
            1 => wire.gpa = wire.gpa.wrapping_add(by),
            2 => wire.size = wire.size.wrapping_add(by),
            3 => wire.size = wire.size.wrapping_sub(by),
            4 => wire.user_addr = wire.user_addr.wrapping_add(by),
            5 => wire.mmap_offset = by,
            6 => wire.gpa = u64::MAX - by,
            _ => {}
        }
        wire
    }

    fn fd(&self, world: &World) -> i32 {
        let regions = world.memory.regions();
        match self.fd {
            0..=200 => regions[usize::from(self.which) % regions.len()].raw_fd(),
            other => world.fds.choose(other),
        }
    }
}

/// A request for the wire.
#[derive(Debug)]
pub struct Encoded {
    pub id: u32,
    pub body: Vec<u8>,
    pub fds: Vec<i32>,
}

/// Flips the bits that two numbers name, 64 for none.
fn flip(bits: u64, clear: u8, set: u8) -> u64 {
    let bit = |number: u8| if number < 64 { 1u64 << number } else { 0 };
    bits & !bit(clear) | bit(set)
}

impl Request {
    pub fn encode(&self, world: &World) -> Encoded {
        let (id, body, fds) = self.parts(world);
        Encoded { id, body, fds }
    }

    fn parts(&self, world: &World) -> (u32, Vec<u8>, Vec<i32>) {
        let word = |value: u64| value.to_ne_bytes().to_vec();
        match self {
            Request::Plain(choice) => (pick(*choice, &PLAIN), Vec::new(), Vec::new()),
            Request::Features { clear, set } => (
                req::SET_FEATURES,
                word(flip(world.taken.get().0, *clear, *set)),
                Vec::new(),
            ),
            Request::ProtocolFeatures { clear, set } => {
                let bits = flip(world.taken.get().1, *clear, *set);
                (req::SET_PROTOCOL_FEATURES, word(bits), Vec::new())
            }
            Request::MemTable {
                regions,
                count,
                fds,
            } => {
                let wires: Vec<_> = regions.iter().map(|region| region.wire(world)).collect();
                let mut body = wire::mem_table(&wires);
                if let Some(count) = count {
                    body[0] = *count;
                }
                let mut all: Vec<_> = regions.iter().map(|region| region.fd(world)).collect();
                all.extend(world.fds.list(fds));
                all.truncate(40);
                (req::SET_MEM_TABLE, body, all)
            }
            Request::AddRegion(region) => (
                req::ADD_MEM_REG,
                region.wire(world).encode_single(),
                vec![region.fd(world)],
            ),
            Request::RemoveRegion(region) => (
                req::REM_MEM_REG,
                region.wire(world).encode_single(),
                Vec::new(),
            ),
            Request::SetConfig {
                offset,
                flags,
                payload,
            } => {
                let body = wire::config((*offset).into(), (*flags).into(), payload);
                (req::SET_CONFIG, body, Vec::new())
            }
            Request::GetConfig {
                offset,
                size,
                flags,
            } => {
                let payload = vec![0; usize::from(*size)];
                let body = wire::config((*offset).into(), (*flags).into(), &payload);
                (req::GET_CONFIG, body, Vec::new())
            }
            Request::Status(status) => (req::SET_STATUS, word((*status).into()), Vec::new()),
            Request::BackendChannel(fd) => (
                req::SET_BACKEND_REQ_FD,
                Vec::new(),
                vec![world.fds.choose(*fd)],
            ),
            Request::Raw { id, body, fds } => {
                let mut all = world.fds.list(fds);
                all.truncate(40);
                (u32::from(*id), body.to_vec(), all)
            }
            _ => self.vring_or_migration(world),
        }
    }

    fn vring_or_migration(&self, world: &World) -> (u32, Vec<u8>, Vec<i32>) {
        let state =
            |id, index: &Index, num| (id, wire::vring_state(index.value(), num), Vec::new());
        match self {
            Request::VringNum { index, num } => {
                state(req::SET_VRING_NUM, index, pick(*num, &SIZES))
            }
            Request::VringBase { index, base } => state(req::SET_VRING_BASE, index, (*base).into()),
            Request::GetVringBase(index) => state(req::GET_VRING_BASE, index, 0),
            Request::Enable { index, num } => state(
                req::SET_VRING_ENABLE,
                index,
                pick(*num, &[0, 1, 1, 1, 2, u32::MAX]),
            ),
            Request::VringAddr {
                index,
                wrong,
                offset,
            } => vring_addr(world, index, *wrong, (*offset).into()),
            Request::VringFd {
                kind,
                index,
                fd,
                nofd,
            } => {
                let kinds = [req::SET_VRING_KICK, req::SET_VRING_CALL, req::SET_VRING_ERR];
                let word = u64::from(index.value()) | if *nofd { VRING_NOFD } else { 0 };
                let fds = fd.iter().map(|&fd| world.fds.choose(fd)).collect();
                (pick(*kind, &kinds), word.to_ne_bytes().to_vec(), fds)
            }
            Request::Iotlb {
                iova,
                size,
                user,
                perm,
                kind,
            } => {
                let user = u64::from(*user) << 44;
                let mut body = [u64::from(*iova), u64::from(*size), user]
                    .iter()
                    .flat_map(|field| field.to_ne_bytes())
                    .collect::<Vec<_>>();
                body.extend_from_slice(&[*perm, *kind, 0, 0, 0, 0, 0, 0]);
                (req::IOTLB_MSG, body, Vec::new())
            }
            Request::Log { size, offset, fd } => {
                let body = [u64::from(*size), u64::from(*offset)];
                let body = body.iter().flat_map(|field| field.to_ne_bytes()).collect();
                (req::SET_LOG_BASE, body, vec![world.fds.choose(*fd)])
            }
            Request::Inflight {
                set,
                size,
                queues,
                queue_size,
                fd,
            } => {
                let mut body: Vec<u8> = u64::from(*size).to_ne_bytes().to_vec();
                body.extend_from_slice(&0u64.to_ne_bytes());
                body.extend_from_slice(&u16::from(*queues).to_ne_bytes());
                body.extend_from_slice(&queue_size.to_ne_bytes());
                body.extend_from_slice(&[0; 4]);
                if *set {
                    (req::SET_INFLIGHT_FD, body, vec![world.fds.choose(*fd)])
                } else {
                    (req::GET_INFLIGHT_FD, body, Vec::new())
                }
            }
            _ => unreachable!("encoded by the caller"),
        }
    }
}

fn vring_addr(world: &World, index: &Index, wrong: u8, offset: i64) -> (u32, Vec<u8>, Vec<i32>) {
    let queue = index.value() % 2;
    let mut addr = layout(queue)
        .vring_addr(&world.memory, queue)
        .expect("addresses");
    addr.index = index.value();
    let field = match wrong & 7 {
        1 => &mut addr.desc,
        2 => &mut addr.avail,
        3 => &mut addr.used,
        4 => &mut addr.log,
        5 => {
            addr.flags = offset as u32;
            &mut addr.log
        }
        _ => return (req::SET_VRING_ADDR, addr.encode(), Vec::new()),
    };
    // To the next page, past the end of the region, or just out of place.
    *field = field.wrapping_add_signed(offset << (wrong >> 3));
    (req::SET_VRING_ADDR, addr.encode(), Vec::new())
}

/// Requests whose body is empty, and a few that do not exist.
const PLAIN: [u32; 20] = [
    req::GET_FEATURES,
    req::SET_OWNER,
    req::RESET_OWNER,
    req::GET_PROTOCOL_FEATURES,
    req::GET_QUEUE_NUM,
    req::RESET_DEVICE,
    req::GET_MAX_MEM_SLOTS,
    req::GET_STATUS,
    req::POSTCOPY_ADVISE,
    req::POSTCOPY_LISTEN,
    req::POSTCOPY_END,
    req::CHECK_DEVICE_STATE,
    req::SET_MEM_TABLE,
    req::SET_VRING_NUM,
    req::GET_CONFIG,
    0,
    44,
    45,
    63,
    u32::MAX,
];

const SIZES: [u32; 12] = [16, 16, 16, 16, 1, 8, 256, 32768, 0, 3, 65536 + 16, u32::MAX];

//! `vu-blk` serving `vhost`'s `Frontend`: the control path message by message, around a split ring
//! that the test itself drives.

#[path = "clients/mod.rs"]
mod clients;

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clients::{
    BLOCK, Backend, Deadline, Disk, Options, Pattern, RING_SIZE, ReadRequest, SharedMemory,
    SplitRing, TempDir, wait_readable,
};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Error as ProtocolError, Frontend, VhostUserFrontend};
use vhost::{Error, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const VERSION_1: u64 = 1 << 32;
const CONFIG_WCE: u64 = 1 << 11;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Offset and length of virtio-blk's configuration fields.
const CAPACITY: (u32, usize) = (0, 8);
const WRITEBACK: (u32, usize) = (32, 1);
const CONFIG_LEN: usize = 60;

const BLOCKS: u64 = 64;
const PATTERN: Pattern = Pattern { seed: 0xf0 };

/// Guest memory: region 0 holds the rings, region 1 the data buffers.
const RINGS_GUEST: u64 = 0x10_0000;
const DATA_GUEST: u64 = 0x80_0000;
const REGION: usize = 16 * BLOCK;

/// The time in which a reply or a completion must come.
const LIMIT: Duration = Duration::from_secs(10);

struct Peer {
    frontend: Frontend,
    backend: Backend,
    _dir: TempDir,
}

fn image(dir: &TempDir) -> PathBuf {
    let path = dir.join("disk.img");
    let file = File::create(&path).expect("create the image");
    for block in 0..BLOCKS {
        let bytes = PATTERN.block(block);
        let at = block * BLOCK as u64;
        file.write_all_at(&bytes, at).expect("fill the image");
    }
    path
}

fn connect(backend: &Backend) -> Frontend {
    let stream = UnixStream::connect(backend.socket()).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("time-out");
    stream.set_write_timeout(Some(LIMIT)).expect("time-out");
    // More queues than the device has, so that messages for queues beyond its own are sent.
    Frontend::from_stream(stream, 256)
}

/// A front-end that has negotiated what `vu-blk` offers, with an acknowledgement for each message.
fn negotiated(queues: u16) -> Peer {
    let dir = TempDir::new();
    let mut options = Options::new(Disk::Image(image(&dir)));
    options.queues = queues;
    let backend = Backend::start(&options);
    let frontend = negotiate(connect(&backend));
    Peer {
        frontend,
        backend,
        _dir: dir,
    }
}

fn negotiate(mut frontend: Frontend) -> Frontend {
    frontend.set_owner().expect("SET_OWNER");
    let offered = frontend.get_features().expect("GET_FEATURES");
    let wanted = VERSION_1 | PROTOCOL_FEATURES;
    assert_eq!(offered & wanted, wanted, "features {offered:#x}");
    let protocol = frontend.get_protocol_features().expect("features");
    let needed =
        Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIG | Protocol::CONFIGURE_MEM_SLOTS;
    assert!(protocol.contains(needed), "protocol features {protocol:?}");
    frontend.set_protocol_features(needed).expect("features");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // A driver that could switch the cache but not flush it would find it off, as soon as the device has heard.
    let cache = offered & (CONFIG_WCE | FLUSH);
    frontend.set_features(wanted | cache).expect("SET_FEATURES");
    frontend
}

fn region(memory: &SharedMemory, guest: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: memory.len() as u64,
        userspace_addr: memory.addr() as u64,
        mmap_offset: 0,
        mmap_handle: memory.fd(),
    }
}

/// Refused by the back-end, not by the front-end's own checks or a lost connection.
#[track_caller]
fn assert_refused<T>(result: vhost::Result<T>, what: &str) {
    match result {
        Err(Error::VhostUserProtocol(ProtocolError::BackendInternalError)) => {}
        Err(e) => panic!("{what}: {e} instead of a refusal"),
        Ok(_) => panic!("{what} was accepted"),
    }
}

#[track_caller]
fn assert_alive(frontend: &Frontend) {
    frontend.get_features().expect("the connection is lost");
}

/// The fds of queue 0.
struct Notifiers {
    kick: EventFd,
    call: EventFd,
    err: EventFd,
}

impl Notifiers {
    fn new() -> Self {
        let new = || EventFd::new(EFD_NONBLOCK).expect("eventfd");
        Notifiers {
            kick: new(),
            call: new(),
            err: new(),
        }
    }

    fn kick(&self) {
        self.kick.write(1).expect("kick");
    }
}

fn ring_config(ring: &SplitRing<'_>) -> VringConfigData {
    VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr: ring.descriptors_addr(),
        used_ring_addr: ring.used_addr(),
        avail_ring_addr: ring.available_addr(),
        log_addr: None,
    }
}

/// Starts and enables queue 0 at available index `base`.
fn start_ring(peer: &mut Peer, ring: &SplitRing<'_>, notifiers: &Notifiers, base: u16) {
    let frontend = &mut peer.frontend;
    let config = ring_config(ring);
    frontend.set_vring_num(0, RING_SIZE).expect("SET_VRING_NUM");
    frontend.set_vring_base(0, base).expect("SET_VRING_BASE");
    frontend.set_vring_addr(0, &config).expect("SET_VRING_ADDR");
    let Notifiers { kick, call, err } = notifiers;
    frontend.set_vring_call(0, call).expect("SET_VRING_CALL");
    frontend.set_vring_err(0, err).expect("SET_VRING_ERR");
    frontend.set_vring_kick(0, kick).expect("SET_VRING_KICK");
    let enabled = frontend.set_vring_enable(0, true);
    enabled.expect("SET_VRING_ENABLE");
}

/// A read of `block` into page `head` of the data region.
fn read_of(block: u64, head: u16) -> ReadRequest {
    ReadRequest {
        head,
        sector: block * (BLOCK as u64 / 512),
        data: DATA_GUEST + u64::from(head) * BLOCK as u64,
        len: BLOCK as u32,
    }
}

fn wait_signal(eventfd: &EventFd, deadline: &Deadline, what: &str) {
    // SAFETY: the eventfd is open while it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
    assert!(wait_readable(fd, deadline), "no {what} within {LIMIT:?}");
    eventfd.read().expect(what);
}

/// Waits for the completion of `read_of(block, head)` and checks everything about it.
fn expect_read(
    ring: &mut SplitRing<'_>,
    notifiers: &Notifiers,
    data: &SharedMemory,
    block: u64,
    head: u16,
) {
    let deadline = Deadline::after(LIMIT);
    let (id, written) = loop {
        if let Some(used) = ring.take_used() {
            break used;
        }
        wait_signal(&notifiers.call, &deadline, "completion");
    };
    assert_eq!(id, u32::from(head), "head of the used element");
    assert_eq!(written, BLOCK as u32 + 1, "bytes written");
    assert_eq!(ring.status(head), 0, "status");
    let mut bytes = [0; BLOCK];
    data.read(usize::from(head) * BLOCK, &mut bytes);
    PATTERN.verify(block, &bytes);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn one_read_by_hand_and_the_index_after_it() {
    let mut peer = negotiated(1);
    let (rings, data) = (SharedMemory::new(REGION), SharedMemory::new(REGION));
    let table = [region(&rings, RINGS_GUEST), region(&data, DATA_GUEST)];
    peer.frontend.set_mem_table(&table).expect("SET_MEM_TABLE");
    let mut ring = SplitRing::new(&rings, 0, RINGS_GUEST);
    let notifiers = Notifiers::new();
    start_ring(&mut peer, &ring, &notifiers, 0);

    ring.submit(&read_of(7, 0));
    notifiers.kick();
    expect_read(&mut ring, &notifiers, &data, 7, 0);
    let base = peer.frontend.get_vring_base(0).expect("GET_VRING_BASE");
    assert_eq!(base, 1, "available index");

    // A stopped ring does not move.
    ring.submit(&read_of(9, 3));
    notifiers.kick();
    assert_alive(&peer.frontend);
    assert_eq!(ring.used_index(), 1, "used index of a stopped ring");
    // Started again, it serves what was made available meanwhile, without another kick.
    let fresh = Notifiers::new();
    start_ring(&mut peer, &ring, &fresh, 1);
    expect_read(&mut ring, &fresh, &data, 9, 3);
    let base = peer.frontend.get_vring_base(0).expect("GET_VRING_BASE");
    assert_eq!(base, 2, "available index");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn memory_slots_come_and_go_under_a_running_ring() {
    let mut peer = negotiated(1);
    let rings = SharedMemory::new(REGION);
    let rings_region = region(&rings, RINGS_GUEST);
    let added = peer.frontend.add_mem_region(&rings_region);
    added.expect("ADD_MEM_REG of the rings");
    let mut ring = SplitRing::new(&rings, 0, RINGS_GUEST);
    let notifiers = Notifiers::new();
    start_ring(&mut peer, &ring, &notifiers, 0);

    for round in 0..8 {
        let data = SharedMemory::new(REGION);
        let data_region = region(&data, DATA_GUEST);
        let added = peer.frontend.add_mem_region(&data_region);
        added.expect("ADD_MEM_REG of the data");
        ring.submit(&read_of(round, 6));
        notifiers.kick();
        expect_read(&mut ring, &notifiers, &data, round, 6);
        let removed = peer.frontend.remove_mem_region(&data_region);
        removed.expect("REM_MEM_REG of the data");
    }

    // The buffer's memory is gone: this ring breaks, nothing else does.
    ring.submit(&read_of(1, 6));
    notifiers.kick();
    let deadline = Deadline::after(LIMIT);
    wait_signal(&notifiers.err, &deadline, "signal on the err fd");
    assert_alive(&peer.frontend);
    assert_eq!(ring.used_index(), 8, "used index of a broken ring");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn as_many_memory_slots_as_advertised() {
    let mut peer = negotiated(1);
    let slots = peer.frontend.get_max_mem_slots().expect("slots");
    assert!((32..=509).contains(&slots), "{slots} memory slots");
    let slots = usize::try_from(slots).expect("slots");
    let memory = SharedMemory::new((slots + 1) * BLOCK);
    let slot = |i: usize| VhostUserMemoryRegionInfo {
        // A gap between two regions, so that they are not one.
        guest_phys_addr: (2 * i * BLOCK) as u64,
        memory_size: BLOCK as u64,
        userspace_addr: (memory.addr() + i * BLOCK) as u64,
        mmap_offset: (i * BLOCK) as u64,
        mmap_handle: memory.fd(),
    };
    for round in 0..3 {
        for i in 0..slots {
            let added = peer.frontend.add_mem_region(&slot(i));
            added.unwrap_or_else(|e| panic!("round {round}: ADD_MEM_REG {i}: {e}"));
        }
        let one_more = peer.frontend.add_mem_region(&slot(slots));
        assert_refused(one_more, "a region more than there are slots");
        for i in 0..slots {
            let removed = peer.frontend.remove_mem_region(&slot(i));
            removed.unwrap_or_else(|e| panic!("round {round}: REM_MEM_REG {i}: {e}"));
        }
    }
}

fn get_config(frontend: &mut Frontend, field: (u32, usize)) -> vhost::Result<Vec<u8>> {
    let (offset, len) = field;
    let none = VhostUserConfigFlags::empty();
    let (_, bytes) = frontend.get_config(offset, len as u32, none, &vec![0; len])?;
    Ok(bytes)
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn configuration_space_read_and_written() {
    let mut peer = negotiated(3);
    let frontend = &mut peer.frontend;
    let queues = frontend.get_queue_num().expect("GET_QUEUE_NUM");
    assert_eq!(queues, 3, "GET_QUEUE_NUM");

    let all = get_config(frontend, (0, CONFIG_LEN)).expect("GET_CONFIG");
    let sectors = BLOCKS * BLOCK as u64 / 512;
    assert_eq!(all[..8], sectors.to_le_bytes(), "capacity");
    let capacity = get_config(frontend, CAPACITY).expect("GET_CONFIG");
    assert_eq!(capacity, sectors.to_le_bytes(), "capacity by itself");

    let none = VhostUserConfigFlags::empty();
    for value in [0, 1] {
        let written = frontend.set_config(WRITEBACK.0, none, &[value]);
        written.expect("SET_CONFIG of writeback");
        let now = get_config(frontend, WRITEBACK).expect("GET_CONFIG");
        assert_eq!(now, [value], "writeback");
    }
    let shrunk = frontend.set_config(CAPACITY.0, none, &[0; CAPACITY.1]);
    assert_refused(shrunk, "SET_CONFIG of the capacity");
    let after = get_config(frontend, (0, CONFIG_LEN)).expect("GET_CONFIG");
    assert_eq!(after, all, "config space after a refused write");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn a_refused_message_changes_nothing() {
    let mut peer = negotiated(2);
    let (rings, data) = (SharedMemory::new(REGION), SharedMemory::new(REGION));
    let table = [region(&rings, RINGS_GUEST), region(&data, DATA_GUEST)];
    peer.frontend.set_mem_table(&table).expect("SET_MEM_TABLE");
    let mut ring = SplitRing::new(&rings, 0, RINGS_GUEST);
    let notifiers = Notifiers::new();

    refuse_ring_set_up(&mut peer, &ring, &notifiers);
    refuse_memory(&mut peer, &rings, &data);
    let acked = VERSION_1 | PROTOCOL_FEATURES;
    let unknown = peer.frontend.set_features(acked | 1 << 63);
    assert_refused(unknown, "SET_FEATURES with an unknown bit");
    assert_alive(&peer.frontend);

    start_ring(&mut peer, &ring, &notifiers, 0);
    ring.submit(&read_of(11, 0));
    notifiers.kick();
    expect_read(&mut ring, &notifiers, &data, 11, 0);
}

fn refuse_ring_set_up(peer: &mut Peer, ring: &SplitRing<'_>, notifiers: &Notifiers) {
    let frontend = &mut peer.frontend;
    let good = ring_config(ring);
    for queue in [2, 200] {
        let Notifiers { kick, call, err } = notifiers;
        assert_refused(frontend.set_vring_num(queue, 8), "SET_VRING_NUM");
        assert_refused(frontend.set_vring_base(queue, 0), "SET_VRING_BASE");
        assert_refused(frontend.set_vring_addr(queue, &good), "SET_VRING_ADDR");
        assert_refused(frontend.set_vring_kick(queue, kick), "SET_VRING_KICK");
        assert_refused(frontend.set_vring_call(queue, call), "SET_VRING_CALL");
        assert_refused(frontend.set_vring_err(queue, err), "SET_VRING_ERR");
        let enabled = frontend.set_vring_enable(queue, true);
        assert_refused(enabled, "SET_VRING_ENABLE");
        assert_alive(frontend);
    }
    for size in [0, 3, u16::MAX] {
        let what = format!("a ring of {size} descriptors");
        assert_refused(frontend.set_vring_num(0, size), &what);
    }
    let mut misaligned = good;
    misaligned.desc_table_addr += 8;
    let mut outside = good;
    outside.used_ring_addr = 0x1000;
    frontend.set_vring_num(0, RING_SIZE).expect("SET_VRING_NUM");
    let what = "a misaligned descriptor table";
    assert_refused(frontend.set_vring_addr(0, &misaligned), what);
    let what = "a used ring outside guest memory";
    assert_refused(frontend.set_vring_addr(0, &outside), what);
    assert_alive(frontend);
}

fn refuse_memory(peer: &mut Peer, rings: &SharedMemory, data: &SharedMemory) {
    let frontend = &mut peer.frontend;
    let overlapping = region(data, RINGS_GUEST + BLOCK as u64);
    let what = "an overlapping region";
    assert_refused(frontend.add_mem_region(&overlapping), what);
    let mut shorter = region(rings, RINGS_GUEST);
    shorter.memory_size -= BLOCK as u64;
    let what = "the removal of a part of a region";
    assert_refused(frontend.remove_mem_region(&shorter), what);
    let unknown = region(data, 0x4000_0000);
    let what = "the removal of a region that is not there";
    assert_refused(frontend.remove_mem_region(&unknown), what);
    let small = SharedMemory::new(BLOCK);
    let mut beyond = region(&small, 0x4000_0000);
    beyond.memory_size = 2 * BLOCK as u64;
    let what = "a region larger than its file";
    assert_refused(frontend.add_mem_region(&beyond), what);
    assert_alive(frontend);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn get_vring_base_without_a_queue_ends_the_connection_only() {
    let peer = negotiated(1);
    // The reply has no form for an error.
    let refused = peer.frontend.get_vring_base(99);
    assert!(refused.is_err(), "index of queue 99: {refused:?}");
    drop(peer.frontend);
    let frontend = negotiate(connect(&peer.backend));
    let base = frontend.get_vring_base(0).expect("GET_VRING_BASE");
    assert_eq!(base, 0, "index of a queue that never ran");
}

//! Guest memory as vm-memory sees it.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vu_server::{Address, Server};

use crate::sim::{Deadline, Region, RegionSpec, Session, eventually};
use crate::stop::*;

const LOW: u64 = 0x1000;
const HIGH: u64 = 1 << 32;
const SIZE: u64 = 0x10000;

struct Rig {
    server: Arc<Server>,
    session: Session,
    held: Arc<Held>,
    looper: Looper,
}

impl Rig {
    fn new(regions: &[RegionSpec]) -> Self {
        let looper = Looper::new();
        let (device, held) = Probe::holding(&Journal::new());
        let server = Arc::new(Server::builder().build(device).unwrap());
        let path = socket_path("rust-vmm-memory");
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let session = Session::builder().regions(regions).connect(&path);
        Rig {
            server,
            session,
            held,
            looper,
        }
    }

    fn finish(self) {
        self.held.reply_to_all();
        self.server.stop().unwrap();
        drop(self.server);
        self.looper.finish();
    }
}

fn two_regions() -> [RegionSpec; 2] {
    [
        RegionSpec::new(LOW, SIZE).mmap_offset(0x2000),
        RegionSpec::new(HIGH, SIZE),
    ]
}

/// How often this process maps the region's file; the test's own mapping is one of them.
fn mappings_of(region: &Region) -> usize {
    use std::os::unix::fs::MetadataExt;
    let file = format!("/proc/self/fd/{}", region.raw_fd());
    let inode = std::fs::metadata(file).unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.split_whitespace().nth(4) == Some(&inode))
        .count()
}

#[test]
fn memory_is_read_and_written_at_guest_addresses() {
    let _guard = guard("rust-vmm memory", 60);
    let rig = Rig::new(&two_regions());
    let memory = rig.server.guest_memory();
    let of_guest = &rig.session.memory;

    assert_eq!(memory.num_regions(), 2);
    let regions: Vec<(u64, u64)> = memory
        .iter()
        .map(|region| (region.start_addr().0, region.len()))
        .collect();
    assert_eq!(regions, [(LOW, SIZE), (HIGH, SIZE)]);
    for gpa in [LOW, LOW + SIZE - 8, HIGH, HIGH + SIZE - 8] {
        memory.write_obj(gpa ^ 0x55, GuestAddress(gpa)).unwrap();
        assert_eq!(of_guest.read(gpa, 8).unwrap(), (gpa ^ 0x55).to_ne_bytes());
        of_guest.write(gpa, &[7; 8]).unwrap();
        assert_eq!(
            memory.read_obj::<[u8; 8]>(GuestAddress(gpa)).unwrap(),
            [7; 8]
        );
    }
    rig.finish();
}

#[test]
fn what_is_not_all_in_memory_is_an_error() {
    let _guard = guard("rust-vmm bounds", 60);
    let rig = Rig::new(&two_regions());
    let memory = rig.server.guest_memory();

    for gpa in [0, LOW - 1, LOW + SIZE, HIGH - 1, HIGH + SIZE, u64::MAX] {
        let address = GuestAddress(gpa);
        assert!(memory.find_region(address).is_none(), "{gpa:#x}");
        assert!(memory.read_obj::<u8>(address).is_err(), "{gpa:#x}");
        assert!(memory.get_host_address(address).is_err(), "{gpa:#x}");
    }
    let last = GuestAddress(LOW + SIZE - 4);
    assert!(memory.read_obj::<u32>(last).is_ok());
    assert!(memory.read_obj::<u64>(last).is_err());
    assert!(memory.get_slice(last, 4).is_ok());
    assert!(memory.get_slice(last, 5).is_err());
    assert!(memory.get_slice(last, usize::MAX).is_err());
    rig.finish();
}

#[test]
fn a_snapshot_keeps_removed_memory_mapped() {
    let _guard = guard_alone("rust-vmm snapshot", 60);
    let rig = Rig::new(&two_regions());
    let region = rig.session.memory.region_at(HIGH, 1).unwrap();
    rig.session.memory.write(HIGH, b"kept").unwrap();
    let before = rig.server.guest_memory();
    assert_eq!(mappings_of(&region), 2);

    rig.session.fe().rem_mem_reg(&region).unwrap();
    assert_eq!(rig.server.guest_memory().num_regions(), 1);
    assert_eq!(
        before.read_obj::<[u8; 4]>(GuestAddress(HIGH)).unwrap(),
        *b"kept"
    );
    drop(before);
    eventually("mappings", Deadline::after(SOON), 1, || {
        mappings_of(&region)
    });
    rig.finish();
}

#[test]
fn a_snapshot_outlives_connection_and_server() {
    let _guard = guard("rust-vmm outlives", 60);
    let mut rig = Rig::new(&two_regions());
    rig.session.memory.write(LOW, b"kept").unwrap();
    let memory = rig.server.guest_memory();
    rig.session.disconnect();
    rig.finish();
    assert_eq!(
        memory.read_obj::<[u8; 4]>(GuestAddress(LOW)).unwrap(),
        *b"kept"
    );
}

#[test]
fn an_element_knows_the_memory_it_was_popped_with() {
    let _guard = guard("rust-vmm element memory", 60);
    let mut rig = Rig::new(&two_regions());
    let gpa = rig.session.memory.alloc(16, 16).unwrap();
    let seg = crate::sim::Seg::writable(gpa, 16);
    rig.session.queues[0].submit(&[seg]).unwrap();
    rig.held.wait_for(1);
    let added = RegionSpec::new(HIGH << 1, SIZE);
    let _region = rig.session.add_region(added);

    let element = rig.held.take_one().unwrap();
    assert_eq!(element.guest_memory().num_regions(), 2);
    assert_eq!(rig.server.guest_memory().num_regions(), 3);
    element.complete(0).unwrap();
    rig.finish();
}

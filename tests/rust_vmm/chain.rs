//! Elements as slices and as descriptor chains.

use std::io::{Read, Write};
use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use vu_server::{Address, Element, Server};

use crate::sim::{RegionSpec, Seg, Session};
use crate::stop::*;

const REGION: u64 = 1 << 20;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// Calls `check` with the element of a chain of these buffers.
fn with_element(
    regions: &[RegionSpec],
    segs: impl FnOnce(&Session) -> Vec<Seg>,
    check: impl Fn(&Session, &Element),
) {
    let looper = Looper::new();
    let (device, held) = Probe::holding(&Journal::new());
    let server = Arc::new(Server::builder().build(device).unwrap());
    let path = socket_path("rust-vmm-chain");
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let mut session = Session::builder().regions(regions).connect(&path);
    let segs = segs(&session);
    for indirect in [false, true] {
        let submit = if indirect {
            session.queues[0].submit_indirect(&segs)
        } else {
            session.queues[0].submit(&segs)
        };
        submit.unwrap();
        held.wait_for(1);
        let element = held.take_one().unwrap();
        check(&session, &element);
        element.complete(0).unwrap();
        session.queues[0]
            .wait_used(crate::sim::Deadline::after(SOON))
            .unwrap();
    }
    server.stop().unwrap();
    drop(server);
    looper.finish();
}

/// Four buffers, two of them to be written.
fn four(session: &Session) -> Vec<Seg> {
    let alloc = |len: u64| session.memory.alloc(len, 16).unwrap();
    let segs = vec![
        Seg::readable(alloc(5), 5),
        Seg::readable(alloc(8), 8),
        Seg::writable(alloc(4), 4),
        Seg::writable(alloc(9), 9),
    ];
    session.memory.write(segs[0].gpa, b"Hello").unwrap();
    session.memory.write(segs[1].gpa, b", world!").unwrap();
    segs
}

fn one_region() -> [RegionSpec; 1] {
    [RegionSpec::new(0, REGION)]
}

fn descriptors(element: &Element) -> Vec<Descriptor> {
    element.chain_memory().unwrap().chain().unwrap().collect()
}

#[test]
fn a_chain_has_the_guest_addresses_lengths_and_directions_of_the_driver() {
    let _guard = guard("rust-vmm descriptors", 60);
    with_element(&one_region(), four, |_, element| {
        let seen = descriptors(element);
        let flags: Vec<u16> = seen.iter().map(|desc| desc.flags()).collect();
        assert_eq!(flags, [NEXT, NEXT, NEXT | WRITE, WRITE]);
        let lengths: Vec<u32> = seen.iter().map(|desc| desc.len()).collect();
        assert_eq!(lengths, [5, 8, 4, 9]);
        let memory = element.guest_memory();
        let text: [u8; 5] = memory.read_obj(seen[0].addr()).unwrap();
        assert_eq!(&text, b"Hello");
    });
}

#[test]
fn reader_and_writer_of_virtio_queue_work_on_a_chain() {
    let _guard = guard("rust-vmm reader", 60);
    with_element(&one_region(), four, |session, element| {
        let memory = element.chain_memory().unwrap();
        let chain = memory.chain().unwrap();
        let mut text = String::new();
        let mut reader = chain.clone().reader(&memory).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "Hello, world!");
        let mut writer = chain.writer(&memory).unwrap();
        writer.write_all(b"Goodbye!").unwrap();
        assert_eq!((writer.bytes_written(), writer.available_bytes()), (8, 5));
        let at = descriptors(element);
        assert_eq!(session.memory.read(at[2].addr().0, 4).unwrap(), b"Good");
        assert_eq!(session.memory.read(at[3].addr().0, 4).unwrap(), b"bye!");
    });
}

#[test]
fn what_the_driver_writes_over_its_descriptors_is_not_read_again() {
    let _guard = guard("rust-vmm snapshot of descriptors", 60);
    with_element(&one_region(), four, |session, element| {
        let before: Vec<(u64, u32)> = descriptors(element)
            .iter()
            .map(|d| (d.addr().0, d.len()))
            .collect();
        let layout = session.queues[0].ring.layout();
        session
            .memory
            .fill(layout.desc, 16 * usize::from(layout.size), 0xff)
            .unwrap();
        let after: Vec<(u64, u32)> = descriptors(element)
            .iter()
            .map(|d| (d.addr().0, d.len()))
            .collect();
        assert_eq!(before, after);
    });
}

#[test]
fn a_buffer_over_two_regions_is_two_descriptors() {
    let _guard = guard("rust-vmm two regions", 60);
    let regions = [RegionSpec::new(0, REGION), RegionSpec::new(REGION, REGION)];
    let across = |_: &Session| vec![Seg::writable(REGION - 3, 10)];
    with_element(&regions, across, |session, element| {
        let seen: Vec<(u64, u32)> = descriptors(element)
            .iter()
            .map(|d| (d.addr().0, d.len()))
            .collect();
        assert_eq!(seen, [(REGION - 3, 3), (REGION, 7)]);
        let memory = element.chain_memory().unwrap();
        let mut writer = memory.chain().unwrap().writer(&memory).unwrap();
        writer.write_all(b"0123456789").unwrap();
        assert_eq!(session.memory.read(REGION, 7).unwrap(), b"3456789");
    });
}

#[test]
fn the_descriptors_stand_where_the_guest_has_no_memory() {
    let _guard = guard("rust-vmm placement", 60);
    // The gap below the first region is too small for them, the one behind it is not.
    let regions = [
        RegionSpec::new(0x10, REGION),
        RegionSpec::new(2 * REGION, REGION),
    ];
    with_element(&regions, four, |_, element| {
        let memory = element.chain_memory().unwrap();
        let place = GuestAddress(0x10 + REGION);
        let readable = |address, len| memory.check_range(address, len, Permissions::Read);
        assert!(readable(place, 4 * 16));
        assert!(!readable(place, 4 * 16 + 9));
        assert!(
            !element
                .guest_memory()
                .check_range(place, 1, Permissions::Read)
        );
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(place.0 + 8)).unwrap(),
            5
        );
        // All of the guest's memory is there as well.
        assert!(readable(GuestAddress(0x10), REGION as usize));
        assert!(readable(GuestAddress(2 * REGION), REGION as usize));
    });
}

#[test]
fn slices_are_the_buffers_themselves() {
    let _guard = guard("rust-vmm slices", 60);
    with_element(&one_region(), four, |session, element| {
        let readable: Vec<_> = element.readable().map(|buffer| buffer.volatile()).collect();
        let mut text = [0; 8];
        assert_eq!(readable[1].read(&mut text, 0).unwrap(), 8);
        assert_eq!(&text, b", world!");
        let writable: Vec<_> = element.writable().map(|buffer| buffer.volatile()).collect();
        assert_eq!(
            writable.iter().map(|slice| slice.len()).collect::<Vec<_>>(),
            [4, 9]
        );
        writable[1].write_slice(b"in place", 1).unwrap();
        let at = descriptors(element)[3].addr().0;
        assert_eq!(session.memory.read(at + 1, 8).unwrap(), b"in place");
    });
}

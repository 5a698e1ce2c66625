//! A driver's side of a packed ring in real shared memory, and the tests that use it.

mod hostile;
mod notifications;
mod rules;

use std::os::fd::AsFd;
use std::ptr;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::super::packed_areas::{AVAIL, USED};
use super::super::packed_used::PackedUsed;
use super::super::used::UsedElem;
use super::*;
use crate::memory::{MemoryPolicy, RegionDesc};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const LOW: u64 = 0x10_0000;
const SIZE: u64 = 2 << 20;
/// Adjacent in the guest only.
const HIGH: u64 = LOW + SIZE;
const DESC: u64 = LOW;
const DRIVER: u64 = LOW + (1 << 19);
const DEVICE: u64 = DRIVER + 64;
/// Free for tables and buffers.
const DATA: u64 = LOW + (1 << 20);

const BOTH: RingFeatures = RingFeatures {
    indirect: true,
    event_idx: true,
    big_endian: false,
};
const NEITHER: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: false,
    big_endian: false,
};

/// A descriptor as the driver writes it, but for whose it is: address, length, id, flags.
type Raw = (u64, u32, u16, u16);

/// A buffer of an element: guest address, length, whether the device may write it.
type Buffer = (u64, u64, bool);

struct Rig {
    table: RegionTable,
    areas: PackedAreas,
    ring: PackedRing,
    used: PackedUsed,
    pool: SlotPool,
    size: u16,
    /// Where the driver makes the next descriptor available.
    next: Place,
}

fn guest_memory() -> RegionTable {
    let fd = memfd_create(c"vu-test", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
    ftruncate(&fd, 2 * SIZE as i64).expect("ftruncate");
    let regions = [(LOW, SIZE), (HIGH, 0)].map(|(gpa, mmap_offset)| {
        let desc = RegionDesc {
            gpa,
            size: SIZE,
            user_addr: gpa,
            mmap_offset,
        };
        (desc, fd.as_fd())
    });
    RegionTable::empty(0)
        .replaced(&regions, MemoryPolicy::default(), 1)
        .expect("table")
}

impl Rig {
    fn new(size: u16, features: RingFeatures) -> Rig {
        Rig::starting_at(size, features, 0)
    }

    /// A ring on which both sides have come to the descriptor `start`, counted from the first one ever.
    fn starting_at(size: u16, features: RingFeatures, start: u64) -> Rig {
        let table = guest_memory();
        let area = |gpa, len: u64| table.translate(gpa, len).expect("area");
        // SAFETY: the areas are mapped in full as long as the table of the rig lives.
        let areas = unsafe {
            PackedAreas::new(
                area(DESC, 16 * u64::from(size)),
                area(DRIVER, 4),
                area(DEVICE, 4),
                size,
            )
        }
        .expect("areas");
        let rig = Rig {
            areas,
            ring: PackedRing::new(areas, features, start),
            used: PackedUsed::new(areas, features.event_idx, start),
            pool: SlotPool::new(size, 0),
            table,
            size,
            next: Place::at(start, size),
        };
        // What the round before has left behind `start`, and this one before it.
        for behind in 0..u64::from(size) {
            let place = Place::at(start + behind, size);
            let used = if place.wrap { 0 } else { AVAIL | USED };
            rig.describe_at(DESC, place.index, (0, 0, 0, used));
        }
        rig
    }

    fn host(&self, gpa: u64, len: u64) -> *mut u8 {
        self.table.translate(gpa, len).expect("mapped")
    }

    /// Writes descriptor `index` of the table at `table`, as it is.
    fn describe_at(&self, table: u64, index: u16, (addr, len, id, flags): Raw) {
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        let host = self.host(table + 16 * u64::from(index), 16).cast::<u64>();
        // SAFETY: 16 bytes of guest memory.
        unsafe {
            host.write_unaligned(addr);
            host.add(1).write_unaligned(rest);
        }
    }

    /// Length, id and flags of the descriptor at a place.
    fn at(&self, place: Place) -> (u32, u16, u16) {
        let host = self.host(DESC + 16 * u64::from(place.index) + 8, 8);
        // SAFETY: 8 bytes of guest memory.
        let word = unsafe { host.cast::<u64>().read() };
        (word as u32, (word >> 32) as u16, (word >> 48) as u16)
    }

    /// Makes a chain available.
    fn offer(&mut self, chain: &[Raw]) {
        for &(addr, len, id, flags) in chain {
            let own = if self.next.wrap { AVAIL } else { USED };
            self.describe_at(DESC, self.next.index, (addr, len, id, flags | own));
            self.next = self.next.step(1, self.size);
        }
    }

    /// Makes a chain of `descs` writable buffers available.
    fn offer_many(&mut self, id: u16, descs: u16) {
        let chain: Vec<Raw> = (0..descs)
            .map(|n| {
                let flags = if n + 1 < descs { WRITE | NEXT } else { WRITE };
                (DATA + 64 * u64::from(n), 64, id, flags)
            })
            .collect();
        self.offer(&chain);
    }

    fn offer_one(&mut self, id: u16) {
        self.offer_many(id, 1);
    }

    fn pop(&mut self, max: usize) -> Result<Vec<*mut Slot>, RingError> {
        let mut out = vec![ptr::null_mut(); max];
        let stamp = Stamp {
            queue: ptr::without_provenance(8),
            epoch: ptr::without_provenance(16),
        };
        let count = self
            .ring
            .pop(&self.table, &mut self.pool, stamp, &mut out)?;
        out.truncate(count);
        Ok(out)
    }

    #[track_caller]
    fn pop_one(&mut self) -> *mut Slot {
        let popped = self.pop(1).expect("pop");
        *popped.first().expect("an element")
    }

    /// Offers a chain that must break the ring.
    #[track_caller]
    fn breaks(&mut self, chain: &[Raw], part: &str) -> RingError {
        let before = self.ring.popped();
        self.offer(chain);
        let error = self.pop(4).expect_err("must break");
        assert!(error.to_string().contains(part), "{error}, not {part}");
        assert_eq!(self.ring.popped(), before, "nothing is consumed");
        if !error.is_unmapped() {
            assert_eq!(self.pop(4), Err(error.clone()), "for good");
            assert_eq!(self.ring.fetch(), Err(error.clone()));
        }
        error
    }

    /// The buffers of an element, in guest addresses.
    #[track_caller]
    fn buffers(&self, slot: *mut Slot) -> Vec<Buffer> {
        // SAFETY: an element that was popped and not released.
        let elem = unsafe { &(*slot).elem };
        let list = |base: *const libc::iovec, count: u32, write| {
            (0..count as usize).map(move |i| {
                // SAFETY: within the element's buffers.
                let iovec = unsafe { *base.add(i) };
                (iovec.iov_base, iovec.iov_len as u64, write)
            })
        };
        list(elem.out, elem.out_num, false)
            .chain(list(elem.in_, elem.in_num, true))
            .map(|(base, len, write)| {
                let gpa = self.table.host_to_gpa(base.cast()).expect("a region");
                assert_eq!(self.table.translate(gpa, len), Some(base.cast()));
                (gpa, len, write)
            })
            .collect()
    }

    fn id(&self, slot: *mut Slot) -> u16 {
        // SAFETY: an element that was popped and not released.
        unsafe { (*slot).head() }
    }

    /// Completes elements on the owner's thread and publishes them; says whether to interrupt.
    fn complete(&mut self, slots: &[*mut Slot], written: u32) -> bool {
        let mut batch = Vec::new();
        for &slot in slots {
            // SAFETY: popped, and released once.
            unsafe {
                batch.push(UsedElem::of(&*slot, written));
                self.pool.release(slot);
            }
        }
        self.used.publish(&batch)
    }
}

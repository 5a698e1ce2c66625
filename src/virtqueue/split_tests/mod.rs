//! A driver's side of a split ring in real shared memory, and the tests that use it.

mod differential;
mod hostile;
mod indirect;
mod notifications;
mod rules;
mod slots;

use std::os::fd::AsFd;
use std::ptr;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::super::areas::{RingLayout, SplitAreas};
use super::super::order::Little;
use super::super::used::{UsedElem, UsedRing};
use super::*;
use crate::memory::{Access, MemoryPolicy, RegionDesc};
use crate::sync::{AtomicU16, AtomicU64};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const PAGE: u64 = 4096;
/// Where the first region begins: ring areas, tables and buffers.
const LOW: u64 = 0x10_0000;
const LOW_SIZE: u64 = 4 << 20;
/// The second region follows the first one in the guest, and precedes it in the file.
const HIGH: u64 = LOW + LOW_SIZE;
const HIGH_SIZE: u64 = 1 << 20;
const DESC: u64 = LOW;
const AVAIL: u64 = LOW + (1 << 20);
const USED: u64 = LOW + (1 << 20) + (1 << 19);
/// Free for tables and buffers, to the end of the region.
const DATA: u64 = LOW + (2 << 20);

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

/// A descriptor as the driver writes it: address, length, flags, next.
type Raw = (u64, u32, u16, u16);

/// A buffer of an element: guest address, length, whether the device may write it.
type Buffer = (u64, u64, bool);

struct Rig {
    table: RegionTable,
    areas: SplitAreas,
    ring: SplitRing<Little>,
    used: UsedRing,
    pool: SlotPool,
    size: u16,
    avail: u16,
}

fn guest_memory() -> RegionTable {
    let fd = memfd_create(c"vu-test", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
    ftruncate(&fd, (LOW_SIZE + HIGH_SIZE) as i64).expect("ftruncate");
    let region = |gpa, size, mmap_offset| {
        (
            RegionDesc {
                gpa,
                size,
                user_addr: gpa,
                mmap_offset,
            },
            fd.as_fd(),
        )
    };
    let regions = [region(LOW, LOW_SIZE, HIGH_SIZE), region(HIGH, HIGH_SIZE, 0)];
    RegionTable::empty(0)
        .replaced(&regions, MemoryPolicy::default(), 1)
        .expect("table")
}

impl Rig {
    fn new(size: u16, features: RingFeatures) -> Rig {
        Rig::starting_at(size, features, 0)
    }

    /// A ring whose indexes both begin at `start`.
    fn starting_at(size: u16, features: RingFeatures, start: u16) -> Rig {
        let table = guest_memory();
        let layout = RingLayout::split(size, features.event_idx);
        let area = |gpa, len: usize| table.translate(gpa, len as u64).expect("area");
        // SAFETY: the areas are mapped in full as long as the table of the rig lives.
        let areas = unsafe {
            SplitAreas::new(
                area(DESC, layout.desc),
                area(AVAIL, layout.avail),
                area(USED, layout.used),
                size,
            )
        }
        .expect("areas");
        let rig = Rig {
            areas,
            ring: SplitRing::<Little>::new(areas, features, start.into()),
            used: UsedRing::new(areas, features, start),
            pool: SlotPool::new(size, 40),
            table,
            size,
            avail: start,
        };
        rig.avail_index().store(start, Ordering::Relaxed);
        rig
    }

    fn host(&self, gpa: u64, len: u64) -> *mut u8 {
        self.table.translate(gpa, len).expect("mapped")
    }

    fn word(&self, gpa: u64) -> &AtomicU16 {
        // SAFETY: two bytes of guest memory, aligned as every caller gives them.
        unsafe { &*self.host(gpa, 2).cast() }
    }

    fn avail_index(&self) -> &AtomicU16 {
        self.word(AVAIL + 2)
    }

    fn used_event(&self) -> &AtomicU16 {
        self.word(AVAIL + 4 + 2 * u64::from(self.size))
    }

    fn avail_event(&self) -> &AtomicU16 {
        self.word(USED + 4 + 8 * u64::from(self.size))
    }

    /// Writes descriptor `index` of the table at `table`.
    fn describe_at(&self, table: u64, index: u16, (addr, len, flags, next): Raw) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let host = self.host(table + 16 * u64::from(index), 16).cast::<u64>();
        // SAFETY: 16 bytes of guest memory.
        unsafe {
            host.write_unaligned(addr);
            host.add(1).write_unaligned(rest);
        }
    }

    fn describe(&self, index: u16, desc: Raw) {
        self.describe_at(DESC, index, desc);
    }

    /// Makes a head available.
    fn offer(&mut self, head: u16) {
        self.word(AVAIL + 4 + 2 * u64::from(self.avail & (self.size - 1)))
            .store(head, Ordering::Relaxed);
        self.avail = self.avail.wrapping_add(1);
        self.avail_index().store(self.avail, Ordering::Release);
    }

    /// Makes a chain of one writable buffer at descriptor `head` available.
    fn offer_one(&mut self, head: u16) {
        self.describe(head, (DATA + 64 * u64::from(head), 64, WRITE, 0));
        self.offer(head);
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            queue: ptr::without_provenance(8),
            epoch: ptr::without_provenance(16),
        }
    }

    fn pop(&mut self, max: usize) -> Result<Vec<*mut Slot>, RingError> {
        let mut out = vec![ptr::null_mut(); max];
        let stamp = self.stamp();
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

    /// Offers a chain that begins at descriptor 0 and must break the ring.
    #[track_caller]
    fn breaks(&mut self, part: &str) -> RingError {
        self.offer(0);
        let error = self.pop(4).expect_err("must break");
        assert!(
            error.to_string().contains(part),
            "{error:?} says {error}, not {part}"
        );
        assert_eq!(
            self.ring.last_avail(),
            self.avail.wrapping_sub(1),
            "nothing is consumed"
        );
        error
    }

    /// The buffers of an element, in guest addresses; its sums are checked.
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
        let all: Vec<Buffer> = list(elem.out, elem.out_num, false)
            .chain(list(elem.in_, elem.in_num, true))
            .map(|(base, len, write)| {
                let gpa = self
                    .table
                    .host_to_gpa(base.cast())
                    .expect("inside a region");
                assert_eq!(
                    self.table.translate(gpa, len),
                    Some(base.cast()),
                    "one region"
                );
                (gpa, len, write)
            })
            .collect();
        let sum = |write| {
            all.iter()
                .filter(|b| b.2 == write)
                .map(|b| b.1)
                .sum::<u64>()
        };
        assert_eq!(
            (u64::from(elem.out_len), u64::from(elem.in_len)),
            (sum(false), sum(true))
        );
        all
    }

    fn head(&self, slot: *mut Slot) -> u16 {
        // SAFETY: an element that was popped and not released.
        unsafe { (*slot).head() }
    }

    /// Completes elements on the owner's thread and publishes them; says whether to interrupt.
    fn complete(&mut self, slots: &[*mut Slot], written: u32) -> bool {
        let batch: Vec<UsedElem> = slots
            .iter()
            .map(|&slot| UsedElem::new(self.head(slot), written))
            .collect();
        for &slot in slots {
            // SAFETY: popped, and released once.
            unsafe { self.pool.release(slot) };
        }
        self.used.publish(&batch)
    }

    /// The used index in guest memory and the entry before it.
    fn last_used(&self) -> (u16, u32, u32) {
        let index = self.word(USED + 2).load(Ordering::Acquire);
        let position = u64::from(index.wrapping_sub(1) & (self.size - 1));
        let host = self.host(USED + 4 + 8 * position, 8).cast::<u32>();
        // SAFETY: an entry of the used ring.
        unsafe { (index, host.read(), host.add(1).read()) }
    }
}

//! What is reachable: cached pointers, no slots, no checks but those that the loop itself needs.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::Engine;
use super::workload::{RING_SIZE, Row};

struct Region {
    gpa: u64,
    size: u64,
    host: *mut u8,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

pub struct Floor {
    memory: Vec<u64>,
    regions: Vec<Region>,
    hint: usize,
    desc: *const Desc,
    avail: *mut u16,
    used: *mut u8,
    batch: u16,
    avail_index: u16,
    next_used: u16,
    buffers: Vec<(*mut u8, u64)>,
    elements: Vec<(u16, usize)>,
    sum: usize,
}

impl Floor {
    pub fn new(row: &Row) -> Floor {
        let size = row.region_size();
        let mut memory = vec![0u64; (size * row.regions / 8) as usize + 512];
        let base = memory.as_mut_ptr().cast::<u8>();
        let base = base.wrapping_add(base.align_offset(4096));
        let regions: Vec<Region> = (0..row.regions)
            .map(|region| Region {
                gpa: row.gpa(region, 0),
                size,
                host: base.wrapping_add((region * size) as usize),
            })
            .collect();
        let mut floor = Floor {
            memory,
            regions,
            hint: 0,
            desc: std::ptr::null(),
            avail: std::ptr::null_mut(),
            used: std::ptr::null_mut(),
            batch: row.batch as u16,
            avail_index: 0,
            next_used: 0,
            buffers: Vec::with_capacity(1024),
            elements: Vec::with_capacity(64),
            sum: 0,
        };
        row.write(|gpa, bytes| {
            let host = floor.translate(gpa, bytes.len() as u64);
            // SAFETY: inside the memory above, which is nobody else's.
            unsafe { host.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        });
        floor.desc = floor.translate(row.desc(), 4096).cast();
        floor.avail = floor.translate(row.avail(), 4096).cast();
        floor.used = floor.translate(row.used(), 4096);
        floor
    }

    #[inline(always)]
    fn translate(&mut self, gpa: u64, len: u64) -> *mut u8 {
        let mut region = &self.regions[self.hint];
        let mut offset = gpa.wrapping_sub(region.gpa);
        if offset >= region.size || len > region.size - offset {
            self.hint = self.regions.partition_point(|region| region.gpa <= gpa) - 1;
            region = &self.regions[self.hint];
            offset = gpa - region.gpa;
            assert!(offset < region.size && len <= region.size - offset);
        }
        region.host.wrapping_add(offset as usize)
    }

    /// # Safety
    /// The chain at `head` is well-formed.
    #[inline(always)]
    unsafe fn walk(&mut self, head: u16) {
        let first = self.buffers.len();
        // SAFETY: the workload's descriptors are good.
        unsafe {
            let mut table = self.desc;
            let mut desc = table.add(head.into()).read_volatile();
            if desc.flags & 4 != 0 {
                table = self.translate(desc.addr, desc.len.into()).cast();
                desc = table.read_volatile();
            }
            loop {
                let host = self.translate(desc.addr, desc.len.into());
                self.buffers.push((host, desc.len.into()));
                if desc.flags & 1 == 0 {
                    break;
                }
                desc = table.add(desc.next.into()).read_volatile();
            }
        }
        self.elements.push((head, first));
    }

    /// # Safety
    /// The ring is the workload's.
    unsafe fn one_batch(&mut self) {
        let mask = RING_SIZE - 1;
        // SAFETY: all words are inside the areas, which are 4096 bytes and aligned.
        unsafe {
            let avail_index = AtomicU16::from_ptr(self.avail.add(1));
            let used_event = AtomicU16::from_ptr(self.avail.add(2 + usize::from(RING_SIZE)));
            let used_index = AtomicU16::from_ptr(self.used.cast::<u16>().add(1));
            let position = self.avail_index;
            avail_index.store(position.wrapping_add(self.batch), Ordering::Release);
            used_event.store(self.next_used.wrapping_add(30_000), Ordering::Relaxed);
            let count = avail_index.load(Ordering::Acquire).wrapping_sub(position);
            self.buffers.clear();
            self.elements.clear();
            for ahead in 0..count {
                let entry = 2 + usize::from(position.wrapping_add(ahead) & mask);
                self.walk(self.avail.add(entry).read_volatile());
            }
            self.avail_index = position.wrapping_add(count);
            let old = self.next_used;
            for &(head, first) in &self.elements {
                self.sum = self.sum.wrapping_add(self.buffers[first].0.addr());
                let entry = self.used.add(4 + 8 * usize::from(self.next_used & mask));
                entry.cast::<[u32; 2]>().write([head.into(), 0]);
                self.next_used = self.next_used.wrapping_add(1);
            }
            used_index.store(self.next_used, Ordering::Release);
            fence(Ordering::SeqCst);
            let event = used_event.load(Ordering::Relaxed);
            let new = self.next_used;
            if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
                self.sum += 1;
            }
        }
    }
}

impl Engine for Floor {
    fn run(&mut self, batches: usize) {
        for _ in 0..batches {
            // SAFETY: the workload was written at the start.
            unsafe { self.one_batch() };
        }
        std::hint::black_box((self.sum, self.memory.as_ptr()));
    }
}

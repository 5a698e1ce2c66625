//! The driver's side of one split virtqueue, as small as it can be: one read request per
//! descriptor chain, rings at fixed places in guest memory.

use std::sync::atomic::{AtomicU16, Ordering};

use super::SharedMemory;

/// Descriptors in the ring.
pub const RING_SIZE: u16 = 16;

const DESCRIPTOR: usize = 16;
const DESCRIPTORS_AT: usize = 0;
const AVAILABLE_AT: usize = 0x400;
const USED_AT: usize = 0x800;
const HEADERS_AT: usize = 0xc00;
const HEADER: usize = 32;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;

/// Where the ring's parts lie in guest memory, from `base` on; they take one page.
pub struct SplitRing<'a> {
    memory: &'a SharedMemory,
    base: usize,
    guest_base: u64,
    available: u16,
    used: u16,
}

/// A virtio-blk read whose data goes to the guest address `data`.
pub struct ReadRequest {
    /// The chain's three descriptors are `head`, `head + 1` and `head + 2`.
    pub head: u16,
    pub sector: u64,
    pub data: u64,
    pub len: u32,
}

impl<'a> SplitRing<'a> {
    /// `guest_base` is the guest address of the first byte of `memory`.
    pub fn new(memory: &'a SharedMemory, base: usize, guest_base: u64) -> Self {
        SplitRing {
            memory,
            base,
            guest_base,
            available: 0,
            used: 0,
        }
    }

    /// Addresses in this process, as SET_VRING_ADDR wants them.
    pub fn descriptors_addr(&self) -> u64 {
        (self.memory.addr() + self.base + DESCRIPTORS_AT) as u64
    }

    pub fn available_addr(&self) -> u64 {
        (self.memory.addr() + self.base + AVAILABLE_AT) as u64
    }

    pub fn used_addr(&self) -> u64 {
        (self.memory.addr() + self.base + USED_AT) as u64
    }

    /// Makes a request available to the device.
    pub fn submit(&mut self, request: &ReadRequest) {
        let head = request.head;
        assert!(head + 2 < RING_SIZE, "head {head}");
        let header_at = self.base + HEADERS_AT + usize::from(head) * HEADER;
        let mut header = [0u8; HEADER];
        header[8..16].copy_from_slice(&request.sector.to_le_bytes());
        header[16] = 0xff;
        self.memory.write(header_at, &header);

        let header_addr = self.guest_base + header_at as u64;
        self.descriptor(head, header_addr, 16, FLAG_NEXT);
        let data_flags = FLAG_NEXT | FLAG_WRITE;
        self.descriptor(head + 1, request.data, request.len, data_flags);
        self.descriptor(head + 2, header_addr + 16, 1, FLAG_WRITE);

        let entry = 4 + 2 * usize::from(self.available % RING_SIZE);
        let available_at = self.base + AVAILABLE_AT;
        self.memory.write(available_at + entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        // Release: the device's acquiring load of the index sees descriptors and entry.
        self.index(AVAILABLE_AT)
            .store(self.available.to_le(), Ordering::Release);
    }

    fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16) {
        let mut bytes = [0u8; DESCRIPTOR];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&(index + 1).to_le_bytes());
        let at = self.base + DESCRIPTORS_AT + usize::from(index) * DESCRIPTOR;
        self.memory.write(at, &bytes);
    }

    /// The next used element: the head of its chain and the bytes written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.used {
            return None;
        }
        let entry = 4 + 8 * usize::from(self.used % RING_SIZE);
        let mut bytes = [0u8; 8];
        self.memory.read(self.base + USED_AT + entry, &mut bytes);
        self.used = self.used.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = bytes;
        let id = u32::from_le_bytes([a, b, c, d]);
        Some((id, u32::from_le_bytes([e, f, g, h])))
    }

    pub fn used_index(&self) -> u16 {
        // Acquire: pairs with the device's releasing store after it has written the element.
        u16::from_le(self.index(USED_AT).load(Ordering::Acquire))
    }

    /// The status byte of the request at `head`.
    pub fn status(&self, head: u16) -> u8 {
        let mut status = [0];
        let header_at = self.base + HEADERS_AT + usize::from(head) * HEADER;
        self.memory.read(header_at + 16, &mut status);
        status[0]
    }

    /// The index field of the available or the used ring.
    fn index(&self, ring_at: usize) -> &AtomicU16 {
        let index = self.memory.at(self.base + ring_at + 2, 2).cast::<u16>();
        // SAFETY: aligned, inside the mapping, which lives as long as `self`, and accessed by
        // atomic operations only on both sides.
        unsafe { AtomicU16::from_ptr(index) }
    }
}

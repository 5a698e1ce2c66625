//! The `virtio-queue` crate over `vm-memory`, used as its documentation shows.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::Engine;
use super::workload::{RING_SIZE, Row};

pub struct Peer {
    memory: GuestMemoryMmap,
    queue: Queue,
    row: Row,
    avail_index: u16,
    heads: Vec<u16>,
    sum: usize,
}

impl Peer {
    pub fn new(row: &Row) -> Peer {
        let size = row.region_size() as usize;
        let ranges: Vec<_> = (0..row.regions)
            .map(|region| (GuestAddress(row.gpa(region, 0)), size))
            .collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
        row.write(|gpa, bytes| memory.write_slice(bytes, GuestAddress(gpa)).expect("write"));
        let mut queue = Queue::new(RING_SIZE).expect("queue");
        queue
            .try_set_desc_table_address(GuestAddress(row.desc()))
            .expect("desc");
        queue
            .try_set_avail_ring_address(GuestAddress(row.avail()))
            .expect("avail");
        queue
            .try_set_used_ring_address(GuestAddress(row.used()))
            .expect("used");
        queue.set_event_idx(true);
        queue.set_ready(true);
        Peer {
            memory,
            queue,
            row: *row,
            avail_index: 0,
            heads: Vec::new(),
            sum: 0,
        }
    }

    fn one_batch(&mut self) {
        let (memory, avail) = (&self.memory, self.row.avail());
        self.avail_index = self.avail_index.wrapping_add(self.row.batch as u16);
        memory
            .write_obj(self.avail_index, GuestAddress(avail + 2))
            .expect("avail index");
        let event = self.queue.next_used().wrapping_add(30_000);
        let used_event = avail + 4 + 2 * u64::from(RING_SIZE);
        memory
            .write_obj(event, GuestAddress(used_event))
            .expect("used event");
        self.heads.clear();
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            self.heads.push(chain.head_index());
            for desc in chain {
                let slice = memory
                    .get_slice(desc.addr(), desc.len() as usize)
                    .expect("a buffer");
                self.sum = self.sum.wrapping_add(slice.ptr_guard().as_ptr().addr());
            }
        }
        for &head in &self.heads {
            self.queue.add_used(memory, head, 0).expect("add_used");
        }
        let notify = self
            .queue
            .needs_notification(memory)
            .expect("needs_notification");
        self.sum += usize::from(notify);
    }
}

impl Engine for Peer {
    fn run(&mut self, batches: usize) {
        for _ in 0..batches {
            self.one_batch();
        }
        std::hint::black_box(self.sum);
    }
}

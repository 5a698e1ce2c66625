//! Our ring beside the `virtio-queue` crate's on the same random legal rings: the same heads and buffers, the same bytes
//! in the used ring, the same decisions to notify.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

/// What the driver does next.
#[derive(Clone, Debug)]
enum Step {
    /// Makes chains available, of so many readable and writable buffers each, directly or in a table.
    Offer(Vec<(u16, u16, bool)>),
    /// The device pops up to so many.
    Pop(usize),
    /// The device completes so many of what it has, in an order that is turned by the second number.
    Complete(usize, usize),
    /// The driver says how far it wants to hear of used entries.
    Event(i16),
    /// The driver says whether it wants interrupts at all.
    Flags(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let chain = (0..5u16, 0..5u16, any::<bool>())
        .prop_filter("a chain has a buffer", |(readable, writable, _)| {
            readable + writable > 0
        });
    let step = prop_oneof![
        3 => prop::collection::vec(chain, 1..6).prop_map(Step::Offer),
        3 => (1..8usize).prop_map(Step::Pop),
        3 => (1..8usize, 0..8usize).prop_map(|(count, turn)| Step::Complete(count, turn)),
        1 => (-3..6i16).prop_map(Step::Event),
        1 => (0..2u16).prop_map(Step::Flags),
    ];
    prop::collection::vec(step, 1..120)
}

/// Both devices, and the one driver that writes the same into the memory of each.
struct Pair {
    rig: Rig,
    memory: GuestMemoryMmap,
    queue: Queue,
    event_idx: bool,
    /// Descriptors and indirect tables that are free; a head's table is the one with its number.
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    held: Vec<*mut Slot>,
    notified: usize,
    /// Nothing has been published yet.
    silent: bool,
}

impl Pair {
    fn new(size: u16, event_idx: bool, start: u16) -> Pair {
        let features = RingFeatures {
            indirect: true,
            event_idx,
            big_endian: false,
        };
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(LOW), LOW_SIZE as usize),
            (GuestAddress(HIGH), HIGH_SIZE as usize),
        ])
        .expect("memory");
        let mut queue = Queue::new(size).expect("queue");
        queue
            .try_set_desc_table_address(GuestAddress(DESC))
            .expect("desc");
        queue
            .try_set_avail_ring_address(GuestAddress(AVAIL))
            .expect("avail");
        queue
            .try_set_used_ring_address(GuestAddress(USED))
            .expect("used");
        queue.set_event_idx(event_idx);
        queue.set_next_avail(start);
        queue.set_next_used(start);
        queue.set_ready(true);
        let pair = Pair {
            rig: Rig::starting_at(size, features, start),
            memory,
            queue,
            event_idx,
            free: (0..size).collect(),
            chains: vec![Vec::new(); size.into()],
            held: Vec::new(),
            notified: 0,
            silent: true,
        };
        pair.memory
            .write_obj(start, GuestAddress(AVAIL + 2))
            .expect("avail index");
        pair
    }

    /// Copies what the driver wrote into the other memory.
    fn mirror(&self, gpa: u64, len: u64) {
        let host = self.rig.host(gpa, len);
        // SAFETY: `len` bytes of guest memory that nobody else writes now.
        let bytes = unsafe { std::slice::from_raw_parts(host, len as usize) };
        self.memory
            .write_slice(bytes, GuestAddress(gpa))
            .expect("mirror");
    }

    fn offer(&mut self, readable: u16, writable: u16, indirect: bool, salt: u64) {
        let count = readable + writable;
        let needed = if indirect { 1 } else { count };
        if self.free.len() < needed.into() {
            return;
        }
        let own: Vec<u16> = self.free.drain(..usize::from(needed)).collect();
        let head = own[0];
        let table = DATA + u64::from(head) * 256;
        for index in 0..count {
            let write = if index < readable { 0 } else { WRITE };
            let more = if index + 1 < count { NEXT } else { 0 };
            let addr = HIGH + (salt * 7919 + u64::from(index) * 4099) % (HIGH_SIZE - PAGE);
            let len = (salt * 31 + u64::from(index)) % 700;
            let at = |index: u16| {
                if indirect {
                    index
                } else {
                    own[usize::from(index)]
                }
            };
            let next = if more == 0 { 0xdead } else { at(index + 1) };
            let base = if indirect { table } else { DESC };
            self.rig
                .describe_at(base, at(index), (addr, len as u32, write | more, next));
            self.mirror(base + 16 * u64::from(at(index)), 16);
        }
        if indirect {
            self.rig
                .describe(head, (table, u32::from(count) * 16, INDIRECT, 0));
            self.mirror(DESC + 16 * u64::from(head), 16);
        }
        self.chains[usize::from(head)] = own;
        self.rig.offer(head);
        self.mirror(AVAIL + 2, 2 + 2 * u64::from(self.rig.size));
    }

    fn pop(&mut self, max: usize) {
        let popped = self.rig.pop(max).expect("a legal ring");
        for &slot in &popped {
            let chain = self
                .queue
                .pop_descriptor_chain(&self.memory)
                .expect("a chain");
            assert_eq!(chain.head_index(), self.rig.head(slot));
            let theirs: Vec<Buffer> = chain
                .map(|desc| (desc.addr().0, desc.len().into(), desc.is_write_only()))
                .collect();
            assert_eq!(self.rig.buffers(slot), theirs);
        }
        if popped.len() < max {
            assert!(self.queue.pop_descriptor_chain(&self.memory).is_none());
        }
        assert_eq!(self.rig.ring.last_avail(), self.queue.next_avail());
        self.held.extend(popped);
    }

    fn complete(&mut self, count: usize, turn: usize) {
        let count = count.min(self.held.len());
        if count == 0 {
            return;
        }
        self.held[..count].rotate_left(turn % count);
        let batch: Vec<*mut Slot> = self.held.drain(..count).collect();
        let heads: Vec<u16> = batch.iter().map(|&slot| self.rig.head(slot)).collect();
        let ours = self.rig.complete(&batch, 77);
        for &head in &heads {
            self.queue
                .add_used(&self.memory, head, 77)
                .expect("add_used");
            self.free.append(&mut self.chains[usize::from(head)]);
        }
        let theirs = self
            .queue
            .needs_notification(&self.memory)
            .expect("needs_notification");
        // virtio-queue knows no flags, and believes what the driver was told before the start.
        let wanted = self.event_idx || self.rig.word(AVAIL).load(Ordering::Relaxed) & 1 == 0;
        let first = std::mem::replace(&mut self.silent, false) && self.event_idx;
        assert_eq!(ours, first || theirs && wanted);
        self.notified += usize::from(ours);
        assert_eq!(self.rig.used.next_index(), self.queue.next_used());
        self.compare_used();
    }

    fn compare_used(&self) {
        let len = 4 + 8 * u64::from(self.rig.size);
        let mut theirs = vec![0; len as usize];
        self.memory
            .read_slice(&mut theirs, GuestAddress(USED))
            .expect("used");
        // SAFETY: `len` bytes of guest memory that nobody writes now.
        let ours = unsafe { std::slice::from_raw_parts(self.rig.host(USED, len), len as usize) };
        assert_eq!(ours[2..], theirs[2..], "index and entries");
    }

    fn run(&mut self, steps: &[Step]) {
        for (salt, step) in (0..).zip(steps) {
            match step {
                Step::Offer(chains) => {
                    for (at, &(readable, writable, indirect)) in (0..).zip(chains) {
                        self.offer(readable, writable, indirect, salt * 8 + at);
                    }
                }
                Step::Pop(max) => self.pop(*max),
                Step::Complete(count, turn) => self.complete(*count, *turn),
                Step::Event(distance) => {
                    let event = self.rig.used.next_index().wrapping_add_signed(*distance);
                    self.rig.used_event().store(event, Ordering::Relaxed);
                    self.mirror(AVAIL + 4 + 2 * u64::from(self.rig.size), 2);
                }
                Step::Flags(flags) if !self.event_idx => {
                    self.rig.word(AVAIL).store(*flags, Ordering::Relaxed);
                }
                Step::Flags(_) => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn both_see_the_same(
        steps in steps(),
        size in prop::sample::select(vec![1u16, 2, 8, 16, 64, 256]),
        event_idx in any::<bool>(),
        start in prop_oneof![Just(0u16), 0xffd0..=0xffffu16, any::<u16>()],
    ) {
        Pair::new(size, event_idx, start).run(&steps);
    }
}

#[test]
fn both_see_the_same_over_the_whole_index() {
    for event_idx in [false, true] {
        let mut pair = Pair::new(64, event_idx, 0);
        for round in 0..25_000u64 {
            for at in 0..3 {
                let salt = round * 3 + at;
                pair.offer(
                    (salt % 3) as u16,
                    1 + (salt % 2) as u16,
                    salt % 5 == 0,
                    salt,
                );
            }
            if round % 3 == 0 {
                pair.run(&[Step::Event((round % 7) as i16)]);
            }
            pair.pop(2 + (round % 3) as usize);
            pair.complete(3, round as usize);
        }
        assert!(pair.notified > 1000, "{}", pair.notified);
        assert!(pair.rig.ring.last_avail() < 20_000, "the index has wrapped");
    }
}

//! A disk seen through the `blkio` crate's virtio-blk-vhost-user driver.

use std::mem::MaybeUninit;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use super::{BLOCK, Deadline};

/// The time in which something must complete while requests are in flight.
const PROGRESS: Duration = Duration::from_secs(20);

/// The buffers, and so the requests in flight, that each queue has.
pub const QUEUE_DEPTH: usize = 64;

pub struct BlkioDisk {
    pub blkio: Blkio,
    region: MemoryRegion,
}

/// One queue and its QUEUE_DEPTH buffers of one block each.
pub struct BlkioQueue {
    queue: Blkioq,
    buffers: usize,
}

impl BlkioDisk {
    pub fn connect(socket: &str, read_only: bool) -> blkio::Result<Blkio> {
        let mut blkio = Blkio::new("virtio-blk-vhost-user")?;
        blkio.set_str("path", socket)?;
        blkio.set_bool("read-only", read_only)?;
        blkio.connect()?;
        Ok(blkio)
    }

    pub fn start(socket: &str, queues: usize) -> (Self, Vec<BlkioQueue>) {
        let blkio = Self::connect(socket, false).expect("connect");
        Self::start_connected(blkio, queues)
    }

    pub fn start_connected(mut blkio: Blkio, queues: usize) -> (Self, Vec<BlkioQueue>) {
        let count = i32::try_from(queues).expect("number of queues");
        blkio.set_i32("num-queues", count).expect("num-queues");
        let started = blkio.start().expect("start");
        let len = queues * QUEUE_DEPTH * BLOCK;
        let region = blkio.alloc_mem_region(len).expect("alloc_mem_region");
        blkio.map_mem_region(&region).expect("map_mem_region");
        let queues = started.queues.into_iter().enumerate();
        let queues = queues
            .map(|(i, queue)| BlkioQueue {
                queue,
                buffers: region.addr + i * QUEUE_DEPTH * BLOCK,
            })
            .collect();
        (BlkioDisk { blkio, region }, queues)
    }

    /// Takes the buffers away from the back-end and gives them back.
    pub fn remap(&mut self) {
        self.blkio.unmap_mem_region(&self.region);
        self.blkio.map_mem_region(&self.region).expect("map again");
    }
}

impl BlkioQueue {
    /// Runs `count` requests at full depth: `submit` starts one with a buffer, `complete` sees the
    /// buffer afterwards. Panics when a request fails, completes twice, or does not complete.
    pub fn run(
        &mut self,
        count: u64,
        mut submit: impl FnMut(&mut Request<'_>, u64),
        mut complete: impl FnMut(u64, &mut [u8]),
    ) {
        let mut busy: [Option<u64>; QUEUE_DEPTH] = [None; QUEUE_DEPTH];
        let mut free: Vec<usize> = (0..QUEUE_DEPTH).collect();
        let (mut next, mut done) = (0, 0);
        while done < count {
            while next < count {
                let Some(slot) = free.pop() else { break };
                busy[slot] = Some(next);
                submit(&mut self.request(slot), next);
                next += 1;
            }
            for completion in self.reap() {
                let slot = completion.user_data;
                let number = busy[slot].take().expect("a request completed twice");
                assert_eq!(completion.ret, 0, "request {number} failed");
                complete(number, self.request(slot).buffer());
                free.push(slot);
                done += 1;
            }
        }
    }

    /// One request by itself; its result.
    pub fn once(&mut self, submit: impl FnOnce(&mut Request<'_>)) -> i32 {
        submit(&mut self.request(0));
        let completions = self.reap();
        assert_eq!(completions.len(), 1, "completions of one request");
        completions[0].ret
    }

    /// The content of buffer 0, which `once` uses.
    pub fn buffer(&mut self) -> &mut [u8] {
        // SAFETY: buffer 0 is BLOCK bytes of this queue's part of the region, which blkio keeps
        // until the queue is dropped; nothing is in flight between two calls of `once`.
        unsafe { std::slice::from_raw_parts_mut(self.buffers as *mut u8, BLOCK) }
    }

    fn request(&mut self, slot: usize) -> Request<'_> {
        Request {
            buffer: self.buffers + slot * BLOCK,
            slot,
            queue: &mut self.queue,
        }
    }

    fn reap(&mut self) -> Vec<Completion> {
        let completions = self.try_reap(PROGRESS);
        assert!(!completions.is_empty(), "no completion within {PROGRESS:?}");
        completions
    }

    /// Waits for one completion or more; none when the time is over.
    pub fn try_reap(&mut self, limit: Duration) -> Vec<Completion> {
        let deadline = Deadline::after(limit);
        loop {
            let mut found: [MaybeUninit<Completion>; QUEUE_DEPTH] =
                [const { MaybeUninit::uninit() }; QUEUE_DEPTH];
            let mut left = deadline.left();
            match self.queue.do_io(&mut found, 1, Some(&mut left), None) {
                Ok(count) => {
                    // SAFETY: do_io has filled the first `count` entries.
                    let filled = found.into_iter().take(count);
                    return filled.map(|c| unsafe { c.assume_init() }).collect();
                }
                Err(_) if deadline.left().is_zero() => return Vec::new(),
                // A wake-up whose completion an earlier call has taken already.
                Err(e) if e.errno() == blkio::Errno::AGAIN => {}
                Err(e) => panic!("do_io: {e}"),
            }
        }
    }

    /// Submits with buffer `slot`, for callers that keep their own books.
    pub fn submit(&mut self, slot: usize, submit: impl FnOnce(&mut Request<'_>)) {
        submit(&mut self.request(slot));
    }
}

/// A buffer and the queue on which a request may use it.
pub struct Request<'a> {
    queue: &'a mut Blkioq,
    buffer: usize,
    slot: usize,
}

impl Request<'_> {
    pub fn buffer(&mut self) -> &mut [u8] {
        // SAFETY: the slot's BLOCK bytes of the region; the slot is free, or its request has
        // completed, while a `Request` for it is in the caller's hands.
        unsafe { std::slice::from_raw_parts_mut(self.buffer as *mut u8, BLOCK) }
    }

    pub fn read(&mut self, offset: u64) {
        let buffer = self.buffer as *mut u8;
        let none = ReqFlags::empty();
        self.queue.read(offset, buffer, BLOCK, self.slot, none);
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.buffer().copy_from_slice(bytes);
        let buffer = self.buffer as *const u8;
        let none = ReqFlags::empty();
        self.queue.write(offset, buffer, BLOCK, self.slot, none);
    }

    pub fn flush(&mut self) {
        self.queue.flush(self.slot, ReqFlags::empty());
    }

    pub fn discard(&mut self, offset: u64, len: u64) {
        self.queue
            .discard(offset, len, self.slot, ReqFlags::empty());
    }

    pub fn write_zeroes(&mut self, offset: u64, len: u64, flags: ReqFlags) {
        self.queue.write_zeroes(offset, len, self.slot, flags);
    }
}

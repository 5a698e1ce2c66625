//! A virtio-blk front-end made of the `virtio-driver` crate's parts, which polls its rings or
//! waits for the back-end's notifications.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkTransport, VirtioFeatureFlags, VirtioTransport,
};

use super::{QueueGroup, SharedMemory};

/// How the client learns of completions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    Polling,
    EventFd,
}

/// What the client asks for when it connects.
#[derive(Clone, Copy)]
pub struct Setup {
    pub queues: usize,
    pub queue_size: u16,
    /// Buffers, and so requests in flight, of each queue.
    pub depth: usize,
    pub buffer_len: usize,
    pub event_idx: bool,
    pub wait: Wait,
}

pub struct BlkClient {
    // Dropped before the transport, whose memory holds the rings.
    queues: Vec<BlkQueue>,
    memory: SharedMemory,
    transport: Box<VirtioBlkTransport>,
    setup: Setup,
}

pub struct BlkQueue {
    vq: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: *mut u8,
    buffer_len: usize,
    depth: usize,
}

/// The feature bits a block driver asks for.
pub fn wanted_features(event_idx: bool) -> u64 {
    let ring = VirtioFeatureFlags::VERSION_1.bits();
    let event = VirtioFeatureFlags::RING_EVENT_IDX.bits();
    let blk = VirtioBlkFeatureFlags::all().bits();
    ring | blk | if event_idx { event } else { 0 }
}

impl BlkClient {
    pub fn connect(socket: &str, setup: Setup) -> io::Result<Self> {
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket, wanted_features(setup.event_idx))?);
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, setup.queues, setup.queue_size)?;
        let per_queue = setup.depth * setup.buffer_len;
        let memory = SharedMemory::new(setup.queues * per_queue);
        transport.map_mem_region(memory.addr(), memory.len(), memory.fd(), 0)?;
        let queues = queues.into_iter().enumerate();
        let queues = queues
            .map(|(i, vq)| {
                let buffers = memory.at(i * per_queue, per_queue);
                BlkQueue::new(vq, &*transport, i, buffers, &setup)
            })
            .collect::<io::Result<_>>()?;
        Ok(BlkClient {
            queues,
            memory,
            transport,
            setup,
        })
    }

    pub fn config(&self) -> io::Result<VirtioBlkConfig> {
        self.transport.get_config()
    }

    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    /// Gives the buffers to the back-end anew.
    pub fn remap(&mut self) -> io::Result<()> {
        let (addr, len) = (self.memory.addr(), self.memory.len());
        self.transport.unmap_mem_region(addr, len)?;
        let fd = self.memory.fd();
        self.transport.map_mem_region(addr, len, fd, 0).map(|_| ())
    }

    pub fn set_wait(&mut self, wait: Wait) {
        self.setup.wait = wait;
    }

    pub fn queues(&mut self) -> &mut [BlkQueue] {
        &mut self.queues
    }

    /// The queues of `num` threads, queue i in group i modulo `num`.
    pub fn groups(&mut self, num: usize) -> Vec<QueueGroup<'_>> {
        let mut groups: Vec<_> = std::iter::repeat_with(Vec::new).take(num).collect();
        for (i, queue) in self.queues.iter_mut().enumerate() {
            groups[i % num].push(queue);
        }
        let wait = self.setup.wait;
        let groups = groups.into_iter();
        groups.map(|queues| QueueGroup::new(queues, wait)).collect()
    }

    /// Returns when some queue has a completion; fails when none comes.
    pub fn wait(&mut self) -> io::Result<()> {
        let all = self.queues.iter_mut().collect();
        QueueGroup::new(all, self.setup.wait).wait()
    }
}

impl BlkQueue {
    fn new(
        mut vq: VirtioBlkQueue<'static, usize>,
        transport: &VirtioBlkTransport,
        index: usize,
        buffers: *mut u8,
        setup: &Setup,
    ) -> io::Result<Self> {
        let call = transport.get_completion_fd(index);
        set_nonblocking(call.as_fd())?;
        vq.set_used_notif_enabled(false);
        Ok(BlkQueue {
            vq,
            notifier: transport.get_submission_notifier(index),
            call,
            buffers,
            buffer_len: setup.buffer_len,
            depth: setup.depth,
        })
    }

    /// The buffer of `slot`, which has no request in flight.
    pub fn buffer(&mut self, slot: usize) -> &mut [u8] {
        let (buffer, len) = self.raw_buffer(slot);
        // SAFETY: the slot's own part of the client's memory, which outlives the queue.
        unsafe { std::slice::from_raw_parts_mut(buffer, len) }
    }

    fn raw_buffer(&self, slot: usize) -> (*mut u8, usize) {
        assert!(slot < self.depth, "slot {slot} of {}", self.depth);
        // SAFETY: the queue has `depth` buffers of `buffer_len` bytes, checked by `at`.
        let buffer = unsafe { self.buffers.add(slot * self.buffer_len) };
        (buffer, self.buffer_len)
    }

    pub fn read(&mut self, slot: usize, offset: u64) -> io::Result<()> {
        let (buffer, len) = self.raw_buffer(slot);
        // SAFETY: the buffer stays mapped while the queue lives, and nobody looks at a slot that
        // is in flight.
        unsafe { self.vq.read_raw(offset, buffer, len, slot) }
    }

    pub fn write(&mut self, slot: usize, offset: u64) -> io::Result<()> {
        let (buffer, len) = self.raw_buffer(slot);
        // SAFETY: as in `read`.
        unsafe { self.vq.write_raw(offset, buffer, len, slot) }
    }

    pub fn flush(&mut self, slot: usize) -> io::Result<()> {
        self.vq.flush(slot)
    }

    pub fn discard(&mut self, slot: usize, offset: u64, len: u64) -> io::Result<()> {
        self.vq.discard(offset, len, slot)
    }

    pub fn write_zeroes(&mut self, slot: usize, offset: u64, len: u64) -> io::Result<()> {
        self.vq.write_zeroes(offset, len, true, slot)
    }

    pub fn has_completion(&mut self) -> bool {
        self.vq.completions().has_next()
    }

    /// Whether the back-end shall write the call eventfd.
    pub fn set_notified(&mut self, notified: bool) {
        self.vq.set_used_notif_enabled(notified);
    }

    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Tells the back-end of what was submitted, if it wants to know.
    pub fn kick(&mut self) -> io::Result<()> {
        if self.vq.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }

    /// Hands each completed slot and its result to `each`.
    pub fn take_completions(&mut self, mut each: impl FnMut(usize, i32)) {
        for completion in self.vq.completions() {
            each(completion.context, completion.ret);
        }
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

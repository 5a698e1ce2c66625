//! The front-end of one input: sends what it is told, and checks the form of whatever comes back.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::sim::wire::{self, FLAG_NEED_REPLY, req};
use super::sim::{EventFd, Frontend, RingLayout, SplitDriver, socket::Message};
use super::world::{QUEUES, World};

/// No reply is larger (the protocol's limit of this library).
const MAX_BODY: usize = 4096;

/// Ring size of a front-end that starts everything.
pub const RING_SIZE: u16 = 16;

pub struct Peer {
    pub fe: Frontend,
    world: Rc<World>,
}

impl Peer {
    pub fn connect(world: Rc<World>, path: &Path) -> Self {
        let fe = Frontend::connect(path).expect("connect");
        Peer { fe, world }
    }

    /// Sends bytes as they are; false if the server has closed.
    pub fn send(&self, bytes: &[u8], fds: &[i32]) -> bool {
        self.fe.send_bytes(bytes, fds).is_ok()
    }

    /// Sends a request; false if the server has closed.
    pub fn request(&self, request: u32, need_reply: bool, body: &[u8], fds: &[i32]) -> bool {
        let flag = if need_reply { FLAG_NEED_REPLY } else { 0 };
        self.send(&wire::message(request, wire::VERSION | flag, body), fds)
    }

    /// The next message from the server, with the device served meanwhile; `None` at the end. What the device
    /// keeps is completed, or whoever waits for that would wait for ever.
    pub fn receive(&self) -> Option<Message> {
        self.receive_while(|| self.world.complete_held())
    }

    /// As [`receive`](Self::receive), with something else to do in between.
    pub fn receive_while(&self, mut meanwhile: impl FnMut()) -> Option<Message> {
        self.world
            .serve_until("an answer", Some(self.fe.raw_fd()), || {
                meanwhile();
                self.fe.answered_within(Duration::ZERO).expect("poll")
            });
        let message = self.fe.recv_message("reply").ok()?;
        let header = message.header;
        assert_eq!(header.flags, wire::VERSION | wire::FLAG_REPLY, "{header:?}");
        assert!(message.body.len() <= MAX_BODY, "{header:?}");
        Some(message)
    }

    /// Waits until the server has read everything, or closed.
    pub fn wait_consumed(&self) {
        self.world
            .serve_until("the server to read", Some(self.fe.raw_fd()), || {
                let mut queued: libc::c_int = 0;
                // SAFETY: SIOCOUTQ, which has TIOCOUTQ's number, writes one int.
                let status = unsafe { libc::ioctl(self.fe.raw_fd(), libc::TIOCOUTQ, &mut queued) };
                self.world.complete_held();
                status < 0 || queued == 0
            });
    }

    /// What front-ends take, without waiting for an answer.
    pub fn negotiate(&mut self) {
        let (features, protocol_features) = self.world.taken.get();
        let fe = &mut self.fe;
        fe.set_protocol_features(protocol_features)
            .expect("negotiated");
        // The typed requests wait for their acknowledgements otherwise.
        fe.acknowledged = false;
        fe.set_owner().expect("owner");
        fe.set_features(features).expect("acknowledged");
    }

    /// The memory of the world.
    pub fn share_memory(&self) {
        let regions = self.world.memory.regions();
        let regions: Vec<_> = regions.iter().map(|region| &**region).collect();
        self.fe.set_mem_table(&regions).expect("memory");
    }

    /// Every ring is started, at the same place in every world.
    pub fn start_rings(&self) -> Vec<SplitDriver> {
        (0..QUEUES).map(|index| self.start_ring(index)).collect()
    }

    fn start_ring(&self, index: u32) -> SplitDriver {
        let memory = &self.world.memory;
        let driver = SplitDriver::with_layout(memory, layout(index), true).expect("a driver");
        let addr = layout(index).vring_addr(memory, index).expect("addresses");
        let fd = |event: &EventFd| Some(event.as_raw_fd());
        let fe = &self.fe;
        fe.set_vring_num(index, RING_SIZE.into()).expect("size");
        fe.set_vring_base(index, 0).expect("base");
        fe.set_vring_addr(&addr).expect("addresses");
        fe.set_vring_err(index, fd(&driver.err)).expect("err");
        fe.set_vring_call(index, fd(&driver.call)).expect("call");
        fe.set_vring_kick(index, fd(&driver.kick)).expect("kick");
        fe.set_vring_enable(index, true).expect("enable");
        driver
    }

    /// Sends a request that is always answered and takes in everything up to its answer. `twice`: the request
    /// before it was the same one, and is answered too.
    pub fn ping(&self, twice: bool) -> Answers {
        let mut answers = Answers::default();
        // If the server has closed, what it sent before that is still there.
        let _ = self.request(req::GET_FEATURES, false, &[], &[]);
        let mut awaited = if twice { 2 } else { 1 };
        while awaited > 0 {
            let Some(message) = self.receive() else {
                answers.closed = true;
                break;
            };
            awaited -= usize::from(message.header.request == req::GET_FEATURES);
            answers.messages.push(message);
        }
        answers
    }
}

/// What came back for a request and the one behind it.
#[derive(Default)]
pub struct Answers {
    pub messages: Vec<Message>,
    /// The server closed before it answered the second one.
    pub closed: bool,
}

impl Answers {
    /// How many of the messages are answers to the first request.
    pub fn own(&self) -> usize {
        self.messages.len() - usize::from(!self.closed)
    }
}

/// Where the ring of a queue lies: at the beginning of the first region.
pub fn layout(index: u32) -> RingLayout {
    let base = u64::from(index) << 16;
    RingLayout {
        size: RING_SIZE,
        desc: base,
        avail: base + (1 << 14),
        used: base + (1 << 15),
    }
}

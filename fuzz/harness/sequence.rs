//! A sequence of well-formed and of slightly wrong requests beside what a driver does, and a small model of
//! what must hold: each request has at most one reply and exactly one when one is due, a refusal changes
//! nothing, stop is bounded, nothing is left behind.

mod request;

use std::rc::Rc;
use std::sync::atomic::Ordering;

use arbitrary::{Arbitrary, Unstructured};

use super::peer::{Answers, Peer, layout};
use super::recorder::answer;
use super::sim::wire::{protocol_feature, req};
use super::sim::{Desc, SplitDriver};
use super::world::{CONFIG_SIZE, QUEUES, World};
use request::{Encoded, Request};

/// What happens next.
#[derive(Arbitrary, Debug)]
enum Step {
    Request {
        request: Request,
        need_reply: bool,
    },
    /// The driver writes a descriptor.
    Describe {
        queue: bool,
        index: u8,
        desc: AnyDesc,
    },
    /// The driver makes heads available and perhaps kicks.
    Offer {
        queue: bool,
        heads: [u8; 2],
        kick: bool,
    },
    /// The driver writes anything anywhere into its rings.
    Scribble {
        queue: bool,
        offset: u16,
        bytes: [u8; 4],
    },
    Kick {
        queue: bool,
    },
    /// The device keeps what it pops, or answers it.
    Hold(bool),
    /// The device completes what it keeps, perhaps on another thread.
    Complete {
        elsewhere: bool,
    },
    Dispatch,
    ChangeConfig {
        offset: u8,
        byte: u8,
    },
    /// Ends the connection and makes another.
    Reconnect {
        start: bool,
    },
    /// Stops the server in the middle.
    Restart,
}

#[derive(Arbitrary, Debug)]
struct AnyDesc {
    addr: u32,
    len: u16,
    flags: u8,
    next: u8,
}

/// More steps say nothing new and take long.
const MOST_STEPS: usize = 64;

pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let world = World::get();
    let start = bool::arbitrary(&mut input).unwrap_or(true);
    let mut run = Run::new(&world, start);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else {
            break;
        };
        run.take(&step);
    }
    drop(run);
    world.check_nothing_left();
}

struct Run<'w> {
    world: &'w Rc<World>,
    peer: Peer,
    /// The drivers of the rings that were started; those of others are not needed.
    drivers: Vec<SplitDriver>,
    /// REPLY_ACK is negotiated.
    acknowledged: bool,
    closed: bool,
}

impl<'w> Run<'w> {
    fn new(world: &'w Rc<World>, start: bool) -> Self {
        let mut run = Run {
            world,
            peer: world.connect(),
            drivers: Vec::new(),
            acknowledged: false,
            closed: false,
        };
        if start {
            run.start();
        }
        run
    }

    fn start(&mut self) {
        self.peer.negotiate();
        self.peer.share_memory();
        self.drivers = self.peer.start_rings();
        assert!(!self.peer.ping(false).closed, "not started");
        self.acknowledged = true;
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Request {
                request,
                need_reply,
            } => self.request(request, *need_reply),
            Step::Describe { queue, index, desc } => self.describe(*queue, *index, desc),
            Step::Offer { queue, heads, kick } => self.offer(*queue, *heads, *kick),
            Step::Scribble {
                queue,
                offset,
                bytes,
            } => {
                let at = layout((*queue).into()).desc + u64::from(*offset);
                self.world
                    .memory
                    .write(at, bytes)
                    .expect("within the region");
            }
            Step::Kick { queue } => self.kick(*queue),
            Step::Hold(hold) => self.world.device.holding.store(*hold, Ordering::Relaxed),
            Step::Complete { elsewhere } => self.complete(*elsewhere),
            Step::Dispatch => {
                self.world
                    .ctx
                    .dispatch(Some(std::time::Duration::ZERO))
                    .expect("dispatch");
            }
            Step::ChangeConfig { offset, byte } => {
                let offset = u32::from(*offset) % CONFIG_SIZE as u32;
                self.world
                    .server
                    .set_config(offset, &[*byte])
                    .expect("inside");
            }
            Step::Reconnect { start } => self.reconnect(*start),
            Step::Restart => {
                self.world.restart();
                self.reconnect(false);
            }
        }
    }

    fn reconnect(&mut self, start: bool) {
        self.drivers.clear();
        // The old connection ends here; the new one is accepted when everything of it is gone.
        *self = Run::new(self.world, false);
        self.world.check_old_connections_gone();
        if start {
            self.start();
        }
    }

    fn describe(&self, queue: bool, index: u8, desc: &AnyDesc) {
        if let Some(driver) = self.drivers.get(usize::from(queue)) {
            let desc = Desc {
                addr: desc.addr.into(),
                len: desc.len.into(),
                flags: desc.flags.into(),
                next: desc.next.into(),
            };
            driver
                .ring
                .set_desc(u16::from(index) % driver.size(), desc)
                .expect("a descriptor");
        }
    }

    fn offer(&mut self, queue: bool, heads: [u8; 2], kick: bool) {
        if let Some(driver) = self.drivers.get_mut(usize::from(queue)) {
            for head in heads {
                driver.publish_raw(head.into()).expect("published");
            }
            if kick {
                driver.kick_always().expect("a kick");
            }
        }
    }

    fn kick(&mut self, queue: bool) {
        if let Some(driver) = self.drivers.get_mut(usize::from(queue)) {
            driver.kick_always().expect("a kick");
        }
    }

    fn complete(&self, elsewhere: bool) {
        let held = self.world.device.take_held();
        if elsewhere && !held.is_empty() {
            std::thread::scope(|scope| {
                scope.spawn(|| held.into_iter().for_each(answer));
            });
        } else {
            held.into_iter().for_each(answer);
        }
    }

    /// Sends a request and a second one that is always answered, and judges what comes back.
    fn request(&mut self, request: &Request, need_reply: bool) {
        if self.closed {
            return;
        }
        let encoded = request.encode(self.world);
        let before = self.snapshot();
        let Encoded { id, body, fds } = &encoded;
        if !self.peer.request(*id, need_reply, body, fds) {
            self.closed = true;
            return;
        }
        let answers = self.peer.ping(*id == req::GET_FEATURES);
        self.judge(&encoded, need_reply, &answers, &before);
    }

    fn judge(&mut self, sent: &Encoded, need_reply: bool, answers: &Answers, before: &Snapshot) {
        self.closed = answers.closed;
        let replies: Vec<_> = answers.messages.iter().take(answers.own()).collect();
        assert!(replies.len() <= 1, "{} replies to {sent:?}", replies.len());
        if let Some(reply) = replies.first() {
            assert_eq!(reply.header.request, sent.id, "reply to {sent:?}");
        }
        if answers.closed {
            return;
        }
        let own_reply =
            vu_server::protocol::requests::lookup(sent.id).is_some_and(|row| row.own_reply);
        let due = own_reply || need_reply && self.acknowledged;
        assert_eq!(replies.len(), usize::from(due), "replies to {sent:?}");
        let value = |reply: &&&super::sim::socket::Message| reply.u64().ok();
        let ack = replies
            .first()
            .filter(|_| !own_reply)
            .as_ref()
            .and_then(value);
        match ack {
            Some(0) | None => self.follow(sent),
            Some(_) => assert_eq!(*before, self.snapshot(), "after the refusal of {sent:?}"),
        }
    }

    /// What the model knows of a request that was served.
    fn follow(&mut self, sent: &Encoded) {
        if sent.id == req::SET_PROTOCOL_FEATURES
            && let Ok(bits) = sent.body.as_slice().try_into().map(u64::from_ne_bytes)
        {
            self.acknowledged = bits & protocol_feature::REPLY_ACK != 0;
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut config = [0; CONFIG_SIZE];
        self.world
            .server
            .config(0, &mut config)
            .expect("the config space");
        let stats = self.world.server.stats();
        Snapshot {
            features: self.world.server.features(),
            config,
            regions: stats.memory_regions,
            connections: stats.connections,
        }
    }
}

/// What a refused request must not change.
#[derive(Debug, PartialEq)]
struct Snapshot {
    features: u64,
    config: [u8; CONFIG_SIZE],
    regions: u64,
    connections: u64,
}

const _: () = assert!(QUEUES == 2, "a queue is chosen by one bit");

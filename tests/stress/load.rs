//! The driver of one queue: keeps requests in flight and checks every answer.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::move_pool::Random;
use crate::request::Request;
use crate::sim::{Deadline, Region, SplitDriver, Used};
use crate::watchdog::Beat;

/// Longer than the watchdog's, which says more.
const LIMIT: Duration = Duration::from_secs(100);

enum Order {
    /// One request in this region, held by the device or not; word when it is answered.
    Use(Arc<Region>, bool, Sender<()>),
    /// The device is gone with what it had: everything unanswered goes into a fresh ring; word when that is done.
    Resubmit(Sender<()>),
    Stop,
}

/// What a request is for.
enum Purpose {
    Load,
    Order(Sender<()>),
}

pub struct Load {
    orders: Sender<Order>,
    /// Signalled with each order: the driver may be asleep.
    call: OwnedFd,
    thread: JoinHandle<Books>,
}

/// What a driver did until its end.
pub struct Books {
    pub driver: SplitDriver,
    pub answered: u64,
    /// How often one went out again because a connection had ended.
    pub resubmitted: u64,
}

impl Load {
    pub fn start(
        driver: SplitDriver,
        memory: &Arc<Region>,
        depth: usize,
        seed: u64,
        beat: Arc<Beat>,
    ) -> Self {
        let (orders, inbox) = channel();
        let call = driver.call.as_fd().try_clone_to_owned().unwrap();
        let worker = Worker {
            driver,
            inbox,
            idle: (0..depth).map(|_| Request::new(memory)).collect(),
            busy: HashMap::new(),
            random: Random::new(seed),
            submitted: 0,
            resubmitted: 0,
            beat,
        };
        Load {
            orders,
            call,
            thread: thread::spawn(move || worker.run()),
        }
    }

    fn tell(&self, order: Order) {
        // A driver that has panicked says so when it is joined.
        let _ = self.orders.send(order);
        // A full counter wakes as well.
        let _ = nix::unistd::write(&self.call, &1u64.to_ne_bytes());
    }

    /// Sends one request through `region`; what comes when it is answered.
    pub fn order(&self, region: &Arc<Region>, hold: bool) -> Receiver<()> {
        let (reply, answered) = channel();
        self.tell(Order::Use(region.clone(), hold, reply));
        answered
    }

    /// Begins afresh with all that was not answered. No back-end has the ring.
    pub fn resubmit(&self) -> Receiver<()> {
        let (reply, done) = channel();
        self.tell(Order::Resubmit(reply));
        done
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends with nothing in flight.
    pub fn stop(self) -> Books {
        self.tell(Order::Stop);
        self.thread.join().expect("the driver's thread")
    }
}

struct Worker {
    driver: SplitDriver,
    inbox: Receiver<Order>,
    idle: Vec<Request>,
    busy: HashMap<u16, (Request, Purpose)>,
    random: Random,
    submitted: u64,
    resubmitted: u64,
    beat: Arc<Beat>,
}

impl Worker {
    fn run(mut self) -> Books {
        let mut stopping = false;
        let mut orders = Vec::new();
        while !stopping || !self.busy.is_empty() || !orders.is_empty() {
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    Order::Use(region, hold, reply) => orders.push((region, hold, reply)),
                    Order::Resubmit(done) => self.resubmit(&done),
                    Order::Stop => stopping = true,
                }
            }
            while self.has_room()
                && let Some((region, hold, reply)) = orders.pop()
            {
                self.add(Request::new(&region), hold, Purpose::Order(reply));
            }
            while !stopping
                && self.has_room()
                && let Some(request) = self.idle.pop()
            {
                self.add(request, false, Purpose::Load);
            }
            self.driver.publish().unwrap();
            self.driver.kick().unwrap();
            if !self.busy.is_empty() {
                self.reap();
            }
        }
        self.beat.end();
        Books {
            driver: self.driver,
            answered: self.submitted,
            resubmitted: self.resubmitted,
        }
    }

    /// For the longest chain.
    fn has_room(&self) -> bool {
        self.driver.free_descriptors() >= 6
    }

    fn add(&mut self, mut request: Request, hold: bool, purpose: Purpose) {
        self.submitted += 1;
        request.prepare(self.submitted, hold, &mut self.random);
        self.put(request, purpose);
    }

    fn put(&mut self, request: Request, purpose: Purpose) {
        let head = if request.is_indirect() {
            self.driver.add_indirect(request.segs())
        } else {
            self.driver.add(request.segs())
        };
        self.busy.insert(head.unwrap(), (request, purpose));
    }

    fn resubmit(&mut self, done: &Sender<()>) {
        self.take_answers();
        self.driver.reset(0).unwrap();
        for (_, (request, purpose)) in std::mem::take(&mut self.busy) {
            self.resubmitted += 1;
            self.put(request, purpose);
        }
        self.driver.publish().unwrap();
        // The test may have given up already.
        let _ = done.send(());
    }

    /// Takes what is there, or sleeps until something happens.
    fn reap(&mut self) {
        if self.take_answers() {
            return;
        }
        self.driver.enable_calls().unwrap();
        if !self.take_answers() {
            let call = &self.driver.call;
            call.wait("an answer", Deadline::after(LIMIT)).unwrap();
        }
    }

    fn take_answers(&mut self) -> bool {
        let mut any = false;
        while let Some(used) = self.driver.poll_used().unwrap() {
            self.finish(used);
            any = true;
        }
        any
    }

    fn finish(&mut self, used: Used) {
        let (request, purpose) = self.busy.remove(&used.head).expect("a head that is out");
        request.check(used);
        self.beat.step();
        match purpose {
            Purpose::Load => self.idle.push(request),
            // The test may have given up already.
            Purpose::Order(reply) => drop(reply.send(())),
        }
    }
}

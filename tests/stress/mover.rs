//! Moves everything about: queues, the whole server, and the contexts themselves.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vu_server::Server;

use crate::contexts::{Contexts, Numbered};
use crate::device::{Inverter, QUEUES, answer_now};
use crate::move_loops::{Kind, Looper};
use crate::move_pool::Random;
use crate::move_rig::Wake;
use crate::request::answer;
use crate::watchdog::Beat;

pub struct Mover<'a> {
    pub server: &'a Arc<Server>,
    pub device: &'a Arc<Inverter>,
    pub contexts: &'a Contexts,
    pub wake: &'a Wake,
    /// Starts of the server; what was asked for before one is forgotten.
    pub starts: &'a AtomicU64,
    pub random: Random,
    pub beat: Arc<Beat>,
    pub figures: Figures,
}

#[derive(Clone, Copy, Default)]
pub struct Figures {
    pub queue_moves: u64,
    pub server_moves: u64,
    pub contexts_replaced: u64,
}

impl Mover<'_> {
    /// Until `stop`; then everything is attached.
    pub fn run(mut self, stop: &AtomicBool) -> Figures {
        // Relaxed: the flag carries nothing with it.
        while !stop.load(Ordering::Relaxed) {
            self.complete_later();
            match self.random.below(64) {
                0..40 => self.move_queues(),
                40..50 => self.detach_and_attach(),
                50..54 => self.detach_on_the_owner(),
                54..58 => self.tune_busy_poll(),
                58..61 => self.count_explicitly(),
                61..63 => self.attach(),
                _ => self.replace_a_context(),
            }
            // Lets requests get somewhere between two moves, at a rate that differs.
            thread::sleep(Duration::from_micros(self.random.below(400)));
        }
        self.settle();
        self.beat.end();
        self.figures
    }

    /// Where everything is attached at the end.
    fn settle(&mut self) {
        self.beat.begin("settling");
        self.attach();
        let contexts = self.contexts.all();
        for index in 0..QUEUES {
            self.server
                .attach_queue(index as u32, Some(&contexts[index].looper.ctx))
                .unwrap();
        }
    }

    fn any<'l>(random: &mut Random, contexts: &'l [Numbered]) -> &'l Looper {
        &contexts[random.below(contexts.len() as u64) as usize].looper
    }

    /// Stages or completes on the thread of some loop, outside of any callback.
    fn complete_later(&mut self) {
        let elements = self.device.take_later();
        if elements.is_empty() {
            return;
        }
        self.beat.begin("staging on a loop's thread");
        let contexts = self.contexts.all();
        let looper = Self::any(&mut self.random, &contexts);
        let stage = self.random.below(4) != 0;
        let ctx = Arc::downgrade(&looper.ctx);
        looper.on(move || {
            let ctx = ctx.upgrade().expect("its own context");
            for element in elements {
                if stage {
                    let written = answer(&element);
                    ctx.stage(element, written).unwrap();
                } else {
                    answer_now(element);
                }
            }
        });
    }

    fn move_queues(&mut self) {
        self.beat.begin("moving queues");
        let contexts = self.contexts.all();
        for _ in 0..=self.random.below(6) {
            let index = self.random.below(QUEUES as u64) as u32;
            let target =
                (self.random.below(6) != 0).then(|| &*Self::any(&mut self.random, &contexts).ctx);
            accept(self.server.attach_queue(index, target), &[libc::ESHUTDOWN]);
            self.figures.queue_moves += 1;
        }
    }

    fn detach_and_attach(&mut self) {
        self.beat.begin("detaching the server");
        let starts = self.starts.load(Ordering::Acquire);
        let detached = accept(self.server.request_detach(), &[libc::ESHUTDOWN]);
        if detached && self.random.below(4) != 0 {
            self.wait_quiesced(starts);
        }
        self.attach();
    }

    fn wait_quiesced(&self, starts: u64) {
        self.wake.wait("quiesced", || {
            self.server.is_quiesced() || self.starts.load(Ordering::Acquire) != starts
        });
    }

    /// Does nothing while the server is attached.
    fn attach(&mut self) {
        self.beat.begin("attaching the server");
        let contexts = self.contexts.all();
        let looper = Self::any(&mut self.random, &contexts);
        let attached = self.server.attach(&looper.ctx);
        if accept(attached, &[libc::EBUSY, libc::ESHUTDOWN]) {
            self.figures.server_moves += 1;
        }
    }

    fn detach_on_the_owner(&mut self) {
        self.beat.begin("detaching on a loop's thread");
        let starts = self.starts.load(Ordering::Acquire);
        {
            let contexts = self.contexts.all();
            // One context has everything, or the call answers EBUSY, most times.
            if self.random.below(2) == 0 {
                let target = &Self::any(&mut self.random, &contexts).ctx;
                for index in 0..QUEUES as u32 {
                    let moved = self.server.attach_queue(index, Some(target));
                    accept(moved, &[libc::ESHUTDOWN]);
                }
            }
            let looper = Self::any(&mut self.random, &contexts);
            let server = Arc::downgrade(self.server);
            let detached = looper.on(move || server.upgrade().expect("the server").detach());
            if accept(detached, &[libc::EBUSY, libc::ESHUTDOWN]) {
                let quiesced = self.server.is_quiesced();
                let restarted = self.starts.load(Ordering::Acquire) != starts;
                assert!(quiesced || restarted, "detached: {:?}", self.server);
            }
        }
        self.attach();
    }

    fn tune_busy_poll(&mut self) {
        self.beat.begin("tuning busy polling");
        let contexts = self.contexts.all();
        let max = Duration::from_micros([0, 5, 100][self.random.below(3) as usize]);
        for looper in contexts.iter().map(|c| &c.looper) {
            if matches!(looper.kind(), Kind::BusyPoll(_)) {
                let ctx = Arc::downgrade(&looper.ctx);
                looper
                    .on(move || ctx.upgrade().expect("its own context").set_busy_poll(max))
                    .unwrap();
            }
        }
    }

    /// Work that the library cannot see holds up a drain for a moment.
    fn count_explicitly(&mut self) {
        self.beat.begin("counting explicitly");
        if self.server.inflight_inc().is_ok() {
            thread::sleep(Duration::from_micros(self.random.below(200)));
            self.server.inflight_dec().unwrap();
        }
    }

    fn replace_a_context(&mut self) {
        self.beat.begin("replacing a context");
        self.figures.contexts_replaced += 1;
        let server = self.server;
        let picks = RefCell::new(Random::new(self.random.below(u64::MAX)));
        let leave = |others: &[Numbered]| {
            let other = || &Self::any(&mut picks.borrow_mut(), others).ctx;
            accept(server.request_detach(), &[libc::ESHUTDOWN]);
            for index in 0..QUEUES as u32 {
                let moved = server.attach_queue(index, Some(other()));
                accept(moved, &[libc::ESHUTDOWN]);
            }
            accept(server.attach(other()), &[libc::EBUSY, libc::ESHUTDOWN]);
        };
        // A server that is being stopped leaves when it is down, and waits for these.
        let device = self.device;
        let meanwhile = || device.take_later().into_iter().for_each(answer_now);
        self.contexts.replace(&mut self.random, leave, meanwhile);
    }
}

/// Success, or one of these errors; whether it was success.
#[track_caller]
fn accept(result: vu_server::Result<()>, errors: &[i32]) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if errors.contains(&error.errno()) => false,
        Err(error) => panic!("{error}"),
    }
}

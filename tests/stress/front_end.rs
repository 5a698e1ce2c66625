//! What a front-end does to a running device, and what a program does to its server beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use vu_server::{Address, Server};

use crate::contexts::Contexts;
use crate::device::{Inverter, QUEUES};
use crate::load::Load;
use crate::move_pool::Random;
use crate::move_rig::{RingPlan, Wake};
use crate::sim::ring::Ring;
use crate::sim::{Region, RegionSpec, Session};
use crate::watchdog::Beat;

/// Longer than the watchdog's, which says more.
const LIMIT: Duration = Duration::from_secs(100);
/// Guest addresses from here on are free for memory that comes and goes.
pub const FIRST_PLUGGED: u64 = 1 << 32;
const REGION: u64 = 64 << 10;
/// As many as SET_MEM_TABLE can name beside the one that stays, and some more.
const SPARE_MAX: usize = 10;
const CONFIG_LEN: usize = 64;

pub struct FrontEnd<'a> {
    pub server: &'a Arc<Server>,
    pub device: &'a Arc<Inverter>,
    pub contexts: &'a Contexts,
    pub wake: &'a Wake,
    pub starts: &'a AtomicU64,
    pub path: PathBuf,
    pub session: Session,
    pub rings: Vec<(RingPlan, Ring)>,
    pub loads: &'a [Load],
    pub random: Random,
    pub beat: Arc<Beat>,
    pub figures: Figures,
    /// Plugged in, and not used by any request.
    pub spare: Vec<u64>,
    pub next_gpa: u64,
}

#[derive(Clone, Copy, Default)]
pub struct Figures {
    pub slots: u64,
    pub config_changes: u64,
    pub ring_changes: u64,
    pub reconnects: u64,
    pub restarts: u64,
}

impl FrontEnd<'_> {
    /// Until `stop`; then a front-end is connected and all rings run.
    pub fn run(mut self, stop: &AtomicBool) -> (Session, Figures) {
        // Relaxed: the flag carries nothing with it.
        while !stop.load(Ordering::Relaxed) {
            match self.random.below(64) {
                0..10 => self.plug_spare(),
                10..17 => self.unplug_spare(),
                17..23 => self.use_region_and_unplug(),
                23..28 => self.unplug_under_a_request(),
                28..30 => self.replace_table(),
                30..35 => self.change_config(),
                35..38 => self.write_config(),
                38..42 => self.disable_and_enable(),
                42..50 => self.change_descriptors(),
                50..55 => self.stop_and_start_ring(),
                55..58 => self.leave_and_return(),
                58..61 => self.vanish_and_return(),
                61..63 => self.restart_server(),
                _ => self.stop_under_a_detach(),
            }
            // Lets requests get somewhere between two changes, at a rate that differs.
            thread::sleep(Duration::from_micros(self.random.below(2000)));
        }
        self.beat.end();
        (self.session, self.figures)
    }

    fn any_queue(&mut self) -> usize {
        self.random.below(QUEUES as u64) as usize
    }

    // ---- memory -----------------------------------------------------------------------------------------

    fn plug(&mut self) -> Arc<Region> {
        let gpa = self.next_gpa;
        self.next_gpa += 2 * REGION;
        self.figures.slots += 1;
        self.session.add_region(RegionSpec::new(gpa, REGION))
    }

    fn unplug(&mut self, gpa: u64) {
        self.figures.slots += 1;
        self.session.remove_region(gpa);
    }

    fn plug_spare(&mut self) {
        self.beat.begin("plugging memory");
        if self.spare.len() < SPARE_MAX {
            let gpa = self.plug().spec().gpa;
            self.spare.push(gpa);
        }
    }

    fn unplug_spare(&mut self) {
        self.beat.begin("unplugging memory");
        if !self.spare.is_empty() {
            let at = self.random.below(self.spare.len() as u64) as usize;
            let gpa = self.spare.swap_remove(at);
            self.unplug(gpa);
        }
    }

    fn use_region_and_unplug(&mut self) {
        self.beat.begin("using plugged memory");
        let region = self.plug();
        let answers: Vec<_> = self
            .loads
            .iter()
            .filter(|_| self.random.below(2) == 0)
            .map(|load| load.order(&region, false))
            .collect();
        for answer in answers {
            wait(&answer);
        }
        self.beat.begin("unplugging used memory");
        self.unplug(region.spec().gpa);
    }

    /// The device works on a request whose memory is gone; its answer still arrives there.
    fn unplug_under_a_request(&mut self) {
        self.beat.begin("waiting for a held request");
        let region = self.plug();
        let queue = self.any_queue();
        let answered = self.loads[queue].order(&region, true);
        let element = self.device.wait_held();
        self.beat.begin("unplugging memory under a request");
        self.unplug(region.spec().gpa);
        match self.random.below(3) {
            // On this thread, sometimes after the queue has had to go.
            0 => {
                crate::device::answer_now(element);
            }
            1 => self.device.answer_elsewhere(element),
            _ => {
                let other = (queue + 1) % QUEUES;
                self.stop_and_start(other);
                self.device.answer_elsewhere(element);
            }
        }
        self.beat.begin("waiting for the answer");
        wait(&answered);
    }

    /// The same memory once more, in one message; nobody may notice.
    fn replace_table(&mut self) {
        self.beat.begin("sending the memory table");
        let regions = self.session.memory.regions();
        if regions.len() <= 8 {
            let regions: Vec<&Region> = regions.iter().map(Arc::as_ref).collect();
            self.session.fe().set_mem_table(&regions).unwrap();
            self.figures.slots += 1;
        }
    }

    // ---- config space -----------------------------------------------------------------------------------

    fn change_config(&mut self) {
        self.beat.begin("changing the config space");
        let backend = self.session.backend.as_ref().expect("a back-end channel");
        while backend.pending_within(Duration::ZERO).unwrap() {
            backend.expect_config_change().unwrap();
        }
        self.figures.config_changes += 1;
        let value = self.figures.config_changes.to_le_bytes();
        let offset = 8 * self.random.below(CONFIG_LEN as u64 / 8) as u32;
        self.server.set_config(offset, &value).unwrap();
        backend.expect_config_change().unwrap();
        assert_eq!(self.session.fe().get_config(offset, 8).unwrap(), value);
    }

    fn write_config(&mut self) {
        self.beat.begin("writing the config space");
        let offset = self.random.below(CONFIG_LEN as u64) as u32;
        let byte = [self.random.below(256) as u8];
        self.session.fe().set_config(offset, 0, &byte).unwrap();
        assert_eq!(self.session.fe().get_config(offset, 1).unwrap(), byte);
    }

    // ---- rings ------------------------------------------------------------------------------------------

    fn disable_and_enable(&mut self) {
        self.beat.begin("disabling a ring");
        let index = self.any_queue() as u32;
        self.figures.ring_changes += 1;
        self.session.fe().set_vring_enable(index, false).unwrap();
        self.session.fe().set_vring_enable(index, true).unwrap();
    }

    /// The same event behind a new descriptor number, or, for kicks, none at all.
    fn change_descriptors(&mut self) {
        self.beat.begin("changing descriptors");
        self.figures.ring_changes += 1;
        let queue = self.any_queue();
        let (plan, fe) = (&self.rings[queue].0, self.session.fe());
        match self.random.below(6) {
            0 | 1 => fe.set_vring_call(plan.index, Some(plan.call)).unwrap(),
            2 => fe.set_vring_err(plan.index, Some(plan.err)).unwrap(),
            3 => fe.set_vring_kick(plan.index, None).unwrap(),
            _ => fe.set_vring_kick(plan.index, Some(plan.kick)).unwrap(),
        }
    }

    fn stop_and_start_ring(&mut self) {
        let queue = self.any_queue();
        self.stop_and_start(queue);
    }

    fn stop_and_start(&mut self, queue: usize) {
        self.beat.begin("stopping a ring");
        self.figures.ring_changes += 1;
        let base = self.stop_ring(queue);
        self.beat.begin("starting a ring");
        self.rings[queue].0.start(&self.session, base);
    }

    /// Nothing is in flight then, so everything popped was answered.
    fn stop_ring(&self, queue: usize) -> u32 {
        let base = self.session.fe().get_vring_base(queue as u32).unwrap();
        assert_eq!(base, self.used_index(queue), "base of queue {queue}");
        base
    }

    fn used_index(&self, queue: usize) -> u32 {
        self.rings[queue].1.used_idx().unwrap().into()
    }

    // ---- connections ------------------------------------------------------------------------------------

    fn leave_and_return(&mut self) {
        self.beat.begin("leaving");
        for queue in 0..QUEUES {
            self.stop_ring(queue);
        }
        self.come_back();
    }

    /// Requests are in flight then. What was not published by the end of the connection is lost with it, and
    /// goes out again.
    fn vanish_and_return(&mut self) {
        self.beat.begin("vanishing");
        self.reconnect();
        let resubmitted: Vec<_> = self.loads.iter().map(Load::resubmit).collect();
        for done in resubmitted {
            wait(&done);
        }
        self.start_rings();
    }

    /// Everything that was in flight has been answered.
    fn come_back(&mut self) {
        self.reconnect();
        self.start_rings();
    }

    /// The previous connection is cleaned up when the new one is answered.
    fn reconnect(&mut self) {
        self.session.abort();
        self.beat.begin("connecting");
        self.session.reconnect(&self.path);
        self.figures.reconnects += 1;
    }

    fn start_rings(&mut self) {
        self.beat.begin("starting the rings");
        for queue in 0..QUEUES {
            let base = self.used_index(queue);
            self.rings[queue].0.start(&self.session, base);
        }
    }

    // ---- the server -------------------------------------------------------------------------------------

    fn restart_server(&mut self) {
        self.beat.begin("stopping the server");
        match self.random.below(3) {
            0 => self.server.stop().unwrap(),
            1 => thread::scope(|scope| {
                let other = scope.spawn(|| self.server.stop().unwrap());
                self.server.stop().unwrap();
                other.join().expect("the other stop");
            }),
            _ => {
                self.server.request_stop().unwrap();
                self.wait_stopped();
            }
        }
        self.start_server();
    }

    fn stop_under_a_detach(&mut self) {
        self.beat.begin("stopping the server under a detach");
        // The mover may have stopped it from being attached.
        self.server.request_detach().unwrap();
        self.server.request_stop().unwrap();
        self.wait_stopped();
        self.start_server();
    }

    fn wait_stopped(&self) {
        self.wake.wait("stopped", || self.server.is_stopped());
    }

    fn start_server(&mut self) {
        self.beat.begin("starting the server");
        self.session.fe().wait_closed().unwrap();
        self.figures.restarts += 1;
        let contexts = self.contexts.all();
        let home = self.random.below(contexts.len() as u64 + 1) as usize;
        let home = contexts.get(home).map(|c| &*c.looper.ctx);
        let address = Address::Listen(self.path.clone());
        self.server.start(address, home).unwrap();
        drop(contexts);
        // Release: pairs with the mover's Acquire.
        self.starts.fetch_add(1, Ordering::Release);
        self.wake.ring();
        self.come_back();
    }
}

#[track_caller]
fn wait(answered: &Receiver<()>) {
    answered.recv_timeout(LIMIT).expect("the answer");
}

/// The config space at the start.
pub fn config_space() -> (Vec<u8>, Vec<u8>) {
    (vec![0; CONFIG_LEN], vec![0xff; CONFIG_LEN])
}

//! One server from its start to its end, under everything at once.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vu_server::{Address, Server};

use crate::contexts::Contexts;
use crate::device::{Inverter, InverterDevice, QUEUES};
use crate::front_end::{self, FrontEnd};
use crate::load::Load;
use crate::move_pool::Random;
use crate::move_rig::{RingPlan, SetOnDrop, Wake, socket_path};
use crate::mover::{self, Mover};
use crate::plan::Parameters;
use crate::sim::ring::Ring;
use crate::sim::wire::feature;
use crate::sim::{Region, Session, process};
use crate::watchdog::{Beat, Watchdog};

/// Longer than any drain should take, and shorter than the watchdog waits: who is cut off is told.
const DRAIN: Duration = Duration::from_secs(30);
/// Longer than the watchdog's, which says more.
const PATIENCE: Duration = Duration::from_secs(100);

/// What a running round may hold: a few times of what it does.
const FDS_MAX: usize = 400;
const THREADS_MAX: usize = 40;
const REGIONS_MAX: usize = 200;

pub struct Round {
    parameters: Parameters,
    path: PathBuf,
    contexts: Contexts,
    device: Arc<Inverter>,
    wake: Arc<Wake>,
    starts: AtomicU64,
    server: Arc<Server>,
}

pub struct Figures {
    parameters: Parameters,
    requests: u64,
    arrivals: u64,
    mover: mover::Figures,
    front_end: front_end::Figures,
}

impl Round {
    pub fn new(parameters: Parameters) -> Self {
        let device = Arc::new(Inverter::new(parameters.seed));
        let wake = Arc::new(Wake::within(PATIENCE));
        let woken = wake.clone();
        let (config, writable) = front_end::config_space();
        let server = Server::builder()
            .name("stress")
            .queues(QUEUES as u32)
            .stage_max(parameters.stage_max)
            .config_space(config, writable)
            .drain_timeout(Some(DRAIN))
            .wake(move || woken.ring())
            .build(InverterDevice(device.clone()))
            .unwrap();
        Round {
            parameters,
            path: socket_path(),
            contexts: Contexts::start(),
            device,
            wake,
            starts: AtomicU64::new(0),
            server: Arc::new(server),
        }
    }

    pub fn run(self) -> Figures {
        let home = self.contexts.all()[0].looper.ctx.clone();
        self.server
            .start(Address::Listen(self.path.clone()), Some(&home))
            .unwrap();
        drop(home);
        let (session, rings, loads, mut beats) = self.connect();
        let (front_end_beat, mover_beat) = (Beat::new("front-end"), Beat::new("mover"));
        beats.extend([front_end_beat.clone(), mover_beat.clone()]);
        let watchdog = self.watch(beats);
        let (stop_front_end, stop_mover) = (AtomicBool::new(false), AtomicBool::new(false));
        let (mover, front_end, session) = thread::scope(|scope| {
            let front_end = FrontEnd {
                server: &self.server,
                device: &self.device,
                contexts: &self.contexts,
                wake: &self.wake,
                starts: &self.starts,
                path: self.path.clone(),
                session,
                rings,
                loads: &loads,
                random: Random::new(self.parameters.seed ^ 1),
                beat: front_end_beat,
                figures: front_end::Figures::default(),
                spare: Vec::new(),
                next_gpa: front_end::FIRST_PLUGGED,
            };
            let mover = Mover {
                server: &self.server,
                device: &self.device,
                contexts: &self.contexts,
                wake: &self.wake,
                starts: &self.starts,
                random: Random::new(self.parameters.seed ^ 2),
                beat: mover_beat,
                figures: mover::Figures::default(),
            };
            // The mover goes on until the front-end is through, whose requests wait for it.
            let on_panic = (SetOnDrop(&stop_front_end), SetOnDrop(&stop_mover));
            let front_end = scope.spawn(|| front_end.run(&stop_front_end));
            let mover = scope.spawn(|| mover.run(&stop_mover));
            let failed = || {
                front_end.is_finished()
                    || mover.is_finished()
                    || loads.iter().any(Load::is_finished)
            };
            self.wait(&failed);
            if failed() {
                watchdog.report();
            }
            drop(on_panic.0);
            let (session, front_end) = front_end.join().expect("the front-end");
            drop(on_panic.1);
            (mover.join().expect("the mover"), front_end, session)
        });
        let requests = self.drain(session, loads);
        drop(watchdog);
        self.end();
        Figures {
            parameters: self.parameters.clone(),
            requests,
            arrivals: self.device.arrivals.load(Ordering::Relaxed),
            mover,
            front_end,
        }
    }

    /// A session whose rings run, and a driver for each of them that has begun.
    #[allow(clippy::type_complexity, reason = "what run() takes apart at once")]
    fn connect(&self) -> (Session, Vec<(RingPlan, Ring)>, Vec<Load>, Vec<Arc<Beat>>) {
        let parameters = &self.parameters;
        let mut builder = Session::builder()
            .queues(QUEUES as u16)
            .queue_size(parameters.queue_size)
            .not_started()
            .timeout(PATIENCE);
        if !parameters.event_idx {
            builder = builder.without_features(feature::EVENT_IDX);
        }
        let mut session = builder.connect(&self.path);
        let main: Arc<Region> = session.memory.regions()[0].clone();
        let (mut rings, mut loads, mut beats) = (Vec::new(), Vec::new(), Vec::new());
        for (index, driver) in (0..).zip(std::mem::take(&mut session.queues)) {
            let plan = RingPlan::of(index, &driver);
            plan.start(&session, 0);
            let ring = Ring::new(&session.memory, plan.layout).unwrap();
            rings.push((plan, ring));
            let beat = Beat::new(format!("driver of queue {index}"));
            beats.push(beat.clone());
            let seed = parameters.seed.wrapping_add(16 + u64::from(index));
            loads.push(Load::start(driver, &main, parameters.depth, seed, beat));
        }
        (session, rings, loads, beats)
    }

    fn watch(&self, beats: Vec<Arc<Beat>>) -> Watchdog {
        let (server, device) = (Arc::downgrade(&self.server), self.device.clone());
        let parameters = self.parameters.clone();
        Watchdog::start(beats, move || {
            let stats = |index| server.upgrade().map(|s| s.queue_stats(index as u32));
            let stats: Vec<_> = (0..QUEUES).map(stats).collect();
            let server = server.upgrade();
            format!(
                "{parameters:?}, {server:?}, {}, {stats:?}",
                device.describe()
            )
        })
    }

    /// Until the time is over or somebody has failed.
    fn wait(&self, failed: &dyn Fn() -> bool) {
        let until = Instant::now() + self.parameters.time;
        while Instant::now() < until && !failed() {
            thread::sleep(Duration::from_millis(100));
            let threads = process::threads_named("").len();
            let regions = process::mappings("memfd:sim-guest");
            let fds = process::open_fds();
            assert!(
                fds < FDS_MAX && threads < THREADS_MAX && regions < REGIONS_MAX,
                "{fds} descriptors, {threads} threads, {regions} regions mapped"
            );
        }
    }

    /// Ends the drivers, stops the rings and compares the books; how many requests there were.
    fn drain(&self, session: Session, loads: Vec<Load>) -> u64 {
        self.device.close();
        self.device.assert_no_violations();
        let books: Vec<_> = loads.into_iter().map(Load::stop).collect();
        let mut requests = 0;
        for (index, books) in (0..).zip(&books) {
            let base = session.fe().get_vring_base(index).unwrap();
            assert_eq!(base, u32::from(books.driver.published()), "queue {index}");
            let stats = self.server.queue_stats(index).unwrap();
            assert_eq!((stats.dropped, stats.breaks), (0, 0), "queue {index}");
            assert_eq!(stats.pops, stats.completions, "queue {index}");
            // One that goes out again may have been popped before or not.
            let possible = books.answered..=books.answered + books.resubmitted;
            assert!(possible.contains(&stats.pops), "{possible:?}, {stats:?}");
            requests += books.answered;
        }
        requests
    }

    fn end(&self) {
        self.server.stop().unwrap();
        self.device.assert_no_violations();
        assert!(!self.server.has_inflight() && self.server.is_quiesced());
        self.contexts.end();
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "round {} (size {}, depth {}{}): {} requests; {} queue and {} server moves asked for, {} arrivals, \
             {} contexts replaced; {} memory slots, {} config and {} ring changes, {} reconnects, {} restarts",
            self.parameters.number,
            self.parameters.queue_size,
            self.parameters.depth,
            if self.parameters.event_idx {
                ", event idx"
            } else {
                ""
            },
            self.requests,
            self.mover.queue_moves,
            self.mover.server_moves,
            self.arrivals,
            self.mover.contexts_replaced,
            self.front_end.slots,
            self.front_end.config_changes,
            self.front_end.ring_changes,
            self.front_end.reconnects,
            self.front_end.restarts,
        )
    }
}

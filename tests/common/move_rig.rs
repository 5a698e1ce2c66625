//! A server with its contexts, and the loads that run against it.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vu_server::{Address, Context, Server, ServerBuilder, VqStats};

use super::move_device::{Answer, Echo, EchoDevice};
use super::move_loops::{Kind, Looper};
use crate::sim::echo::EchoLoad;
use crate::sim::{HangGuard, RingLayout, Session, SplitDriver};

const LIMIT: Duration = Duration::from_secs(10);

/// The builder's `wake`: it may only wake, so waiting on it tells whether it is called often enough.
pub struct Wake {
    woken: Mutex<u64>,
    changed: Condvar,
    limit: Duration,
}

impl Default for Wake {
    fn default() -> Self {
        Wake::within(LIMIT)
    }
}

impl Wake {
    /// A wait that takes longer than `limit` fails.
    pub fn within(limit: Duration) -> Self {
        Wake {
            woken: Mutex::default(),
            changed: Condvar::new(),
            limit,
        }
    }

    pub fn ring(&self) {
        *self.woken.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    /// Looks at `done` now and after each wake-up, never in between.
    #[track_caller]
    pub fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + self.limit;
        let mut woken = self.woken.lock().unwrap();
        while !done() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what}: no wake-up within {:?}; true now: {}",
                self.limit,
                done()
            );
            woken = self.changed.wait_timeout(woken, left).unwrap().0;
        }
        drop(woken);
    }
}

/// A socket path that no other test has.
pub fn socket_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Relaxed: the number only has to be unique.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vu-move-{}-{number}.sock", std::process::id()))
}

/// Fields are dropped in order: the server stops while its loops still run.
pub struct Rig {
    pub server: Arc<Server>,
    pub echo: Arc<Echo>,
    pub wake: Arc<Wake>,
    pub path: PathBuf,
    pub loops: Vec<Looper>,
    _guard: HangGuard,
}

impl Rig {
    /// A running server, everything in the first of the contexts.
    pub fn start(name: &str, kinds: &[Kind], queues: u32, answer: Answer) -> Self {
        Self::build(name, kinds, answer, |builder| builder.queues(queues))
    }

    pub fn build(
        name: &str,
        kinds: &[Kind],
        answer: Answer,
        configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let guard = HangGuard::secs(name, 120);
        let loops: Vec<Looper> = kinds.iter().map(|kind| Looper::start(*kind)).collect();
        let home = loops.first().map(|l| l.ctx.clone());
        let mut rig = Self::without_loops(guard, answer, home.as_deref(), configure);
        rig.loops = loops;
        rig
    }

    /// The caller runs the context, if there is one.
    pub fn without_loops(
        guard: HangGuard,
        answer: Answer,
        home: Option<&Context>,
        configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let (echo, wake, path) = (Echo::new(answer), Arc::new(Wake::default()), socket_path());
        let woken = wake.clone();
        let server = configure(Server::builder().name("move"))
            .wake(move || woken.ring())
            .build(EchoDevice(echo.clone()))
            .unwrap();
        server.start(Address::Listen(path.clone()), home).unwrap();
        Rig {
            server: Arc::new(server),
            echo,
            wake,
            path,
            loops: Vec::new(),
            _guard: guard,
        }
    }

    pub fn ctx(&self, index: usize) -> &Context {
        &self.loops[index].ctx
    }

    pub fn stats(&self, queue: u32) -> VqStats {
        self.server.queue_stats(queue).unwrap()
    }

    #[track_caller]
    pub fn wait_quiesced(&self) {
        self.wake.wait("quiesced", || self.server.is_quiesced());
    }

    /// Waits until queue `queue` has completed `more` requests from now on.
    #[track_caller]
    pub fn wait_progress(&self, queue: u32, more: u64) {
        let deadline = Instant::now() + LIMIT;
        let goal = self.stats(queue).completions + more;
        while self.stats(queue).completions < goal {
            assert!(
                Instant::now() < deadline,
                "queue {queue}: no progress within {LIMIT:?}"
            );
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Every request was popped once and completed once, and nothing broke.
    #[track_caller]
    pub fn assert_exactly_once(&self, requests: &[u64]) {
        for (queue, &count) in requests.iter().enumerate() {
            let stats = self.stats(queue as u32);
            let seen = (stats.pops, stats.completions, stats.dropped, stats.breaks);
            assert_eq!(
                seen,
                (count, count, 0, 0),
                "queue {queue}: pops, completions, dropped, breaks"
            );
        }
        self.echo.assert_no_violations();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.server.stop().unwrap();
            self.echo.assert_no_violations();
        }
    }
}

/// What SET_VRING_* need to start a ring whose driver is in other hands.
pub struct RingPlan {
    pub index: u32,
    pub layout: RingLayout,
    pub kick: RawFd,
    pub call: RawFd,
    pub err: RawFd,
}

impl RingPlan {
    pub fn of(index: u32, driver: &SplitDriver) -> Self {
        RingPlan {
            index,
            layout: *driver.ring.layout(),
            kick: driver.kick.as_raw_fd(),
            call: driver.call.as_raw_fd(),
            err: driver.err.as_raw_fd(),
        }
    }

    #[track_caller]
    pub fn start(&self, session: &Session, base: u32) {
        self.start_disabled(session, base);
        session.fe().set_vring_enable(self.index, true).unwrap();
    }

    #[track_caller]
    pub fn start_disabled(&self, session: &Session, base: u32) {
        let fe = session.fe();
        let addr = self.layout.vring_addr(&session.memory, self.index).unwrap();
        fe.set_vring_num(self.index, self.layout.size.into())
            .unwrap();
        fe.set_vring_base(self.index, base).unwrap();
        fe.set_vring_addr(&addr).unwrap();
        fe.set_vring_err(self.index, Some(self.err)).unwrap();
        fe.set_vring_call(self.index, Some(self.call)).unwrap();
        fe.set_vring_kick(self.index, Some(self.kick)).unwrap();
    }
}

/// Sets the flag also when the test fails, so that the load ends.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        // Relaxed: the flag carries nothing with it.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `body` while each queue has `depth` requests in flight, then drains; how many requests each queue
/// completed, every one of them verified.
pub fn under_load<R>(
    queues: &mut [SplitDriver],
    depth: usize,
    body: impl FnOnce() -> R,
) -> (R, Vec<u64>) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loads: Vec<_> = queues
            .iter_mut()
            .map(|queue| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut load = EchoLoad::new(queue, depth, 512);
                    load.run_until(stop);
                    load.completed
                })
            })
            .collect();
        let result = {
            let _stop = SetOnDrop(&stop);
            body()
        };
        (
            result,
            loads
                .into_iter()
                .map(|load| load.join().expect("the load"))
                .collect(),
        )
    })
}

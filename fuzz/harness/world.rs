//! A server that lives as long as the fuzzing thread, which is also the thread of its event loop.

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use vu_server::{Address, Context, Server};

use super::fds::Assortment;
use super::peer::Peer;
use super::recorder::{Recorder, Recording, answer};
use super::sim::wire::{feature, protocol_feature, req};
use super::sim::{Deadline, GuestMemory, RegionSpec, process};

pub const QUEUES: u32 = 2;
/// Completions that the library gathers within a callback.
pub const STAGE: usize = 8;
pub const CONFIG_SIZE: usize = 64;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The guest's regions: two that adjoin in the guest but not for the front-end, a small one far away, and one
/// that is large enough for chains of more than 32 bits; its file has holes only.
pub const REGIONS: [(u64, u64); 4] = [(0, MIB), (MIB, MIB), (1 << 40, MIB / 16), (1 << 41, GIB)];

/// How long anything may take that nothing should delay.
const SOON: Duration = Duration::from_secs(20);

pub struct World {
    pub server: Server,
    pub ctx: Context,
    pub device: Arc<Recorder>,
    pub memory: Arc<GuestMemory>,
    pub fds: Assortment,
    /// Features and protocol features that front-ends take: all that the server offers, except for those that
    /// change how they name memory, or the form of the rings.
    pub taken: Cell<(u64, u64)>,
    path: PathBuf,
    /// Open descriptors while no front-end is connected.
    idle_fds: Cell<usize>,
    /// Connections made.
    connects: Cell<u64>,
    /// Connections of which a stop came too early for the device to hear the beginning, and the end.
    unheard: Cell<(u64, u64)>,
}

impl World {
    /// This thread's world.
    pub fn get() -> Rc<World> {
        thread_local!(static WORLD: OnceCell<Rc<World>> = const { OnceCell::new() });
        WORLD.with(|world| world.get_or_init(World::new).clone())
    }

    fn new() -> Rc<World> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vu-fuzz-{}-{number}.sock", std::process::id());
        // Far apart for the front-end, in another order than for the guest.
        let specs: [RegionSpec; 4] = std::array::from_fn(|i| {
            let (gpa, size) = REGIONS[i];
            RegionSpec::new(gpa, size).user_addr((8 - i as u64) << 44)
        });
        let device = Arc::new(Recorder::default());
        let ctx = Context::epoll().expect("a context");
        let server = Server::builder()
            .name("fuzz")
            .queues(QUEUES)
            .stage_max(STAGE as u32)
            .config_space(vec![7; CONFIG_SIZE], vec![1; CONFIG_SIZE / 2])
            .build(Recording(device.clone()))
            .expect("a server");
        let world = Rc::new(World {
            server,
            ctx,
            device,
            memory: GuestMemory::new(&specs).expect("guest memory"),
            fds: Assortment::new(),
            taken: Cell::new((0, 0)),
            path: std::env::temp_dir().join(name),
            idle_fds: Cell::new(0),
            connects: Cell::new(0),
            unheard: Cell::new((0, 0)),
        });
        world.start();
        world.settle();
        world
    }

    fn start(&self) {
        self.server
            .start(Address::Listen(self.path.clone()), Some(&self.ctx))
            .expect("start");
    }

    /// A descriptor that is signalled keeps a number for each kind once it has had one (an eventfd is one
    /// kind, a socket the other), so both are given before the open ones are counted.
    fn settle(self: &Rc<Self>) {
        let peer = self.connect();
        let features = peer.fe.get_features().expect("features");
        let protocol_features = peer.fe.get_protocol_features().expect("protocol features");
        self.taken.set((
            features & !(feature::ACCESS_PLATFORM | feature::RING_PACKED),
            protocol_features & !protocol_feature::GPA_ADDRESSES,
        ));
        for fd in [self.fds.eventfd(), self.fds.socket()] {
            for index in 0..QUEUES {
                peer.fe.set_vring_call(index, Some(fd)).expect("call");
                peer.fe.set_vring_err(index, Some(fd)).expect("err");
            }
            peer.fe.set(req::SET_LOG_FD, &[], &[fd]).expect("log");
        }
        drop(peer);
        // Accepted only when everything of the first one is gone.
        let peer = self.connect();
        self.check_old_connections_gone();
        self.idle_fds.set(process::open_fds() - 2);
        drop(peer);
        self.check_nothing_left();
    }

    pub fn connect(self: &Rc<Self>) -> Peer {
        self.connects.set(self.connects.get() + 1);
        Peer::connect(self.clone(), &self.path)
    }

    fn is_disconnected(&self) -> bool {
        self.not_heard() == self.unheard.get()
    }

    /// Connections of which the device has not heard the beginning, and the end.
    fn not_heard(&self) -> (u64, u64) {
        let missing = |heard| self.connects.get() - Recorder::get(heard);
        (
            missing(&self.device.connected),
            missing(&self.device.disconnected),
        )
    }

    /// Dispatches until `done`. Sleeps between rounds until the loop or `also` has something.
    pub fn serve_until(&self, what: &str, also: Option<RawFd>, mut done: impl FnMut() -> bool) {
        let deadline = Deadline::after(SOON);
        while !done() {
            let ready = self.ctx.dispatch(Some(Duration::ZERO)).expect("dispatch");
            if ready == 0 && !done() {
                self.sleep(also);
            }
            assert!(!deadline.expired(), "{what}: not within {SOON:?}");
        }
    }

    /// A millisecond at most: some of what is waited for makes no noise.
    fn sleep(&self, also: Option<RawFd>) {
        let entry = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // A negative descriptor is passed over.
        let loop_fd = self.ctx.fd().expect("an epoll context").as_raw_fd();
        let mut fds = [entry(loop_fd), entry(also.unwrap_or(-1))];
        // SAFETY: two valid entries.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, 1) };
    }

    /// Completes what the device keeps.
    pub fn complete_held(&self) {
        self.device.take_held().into_iter().for_each(answer);
    }

    /// Completes what the device keeps, and from here on it answers at once.
    pub fn release(&self) {
        self.device.holding.store(false, Ordering::Relaxed);
        self.complete_held();
    }

    /// The front-end has gone: everything of its connection goes, and nothing is left behind.
    pub fn check_nothing_left(&self) {
        self.release();
        self.serve_until("the end of the connection", None, || self.is_disconnected());
        // The connection's own descriptor goes after the device has heard of its end.
        let closed = Deadline::after(SOON);
        while process::open_fds() != self.idle_fds.get() {
            assert!(
                !closed.expired(),
                "descriptors left: {:?}",
                process::fd_targets()
            );
            thread::yield_now();
        }
        assert_eq!(self.server.stats().memory_regions, 0);
        assert_eq!(self.server.features(), 0);
    }

    /// The connection before the newest one is cleaned up.
    pub fn check_old_connections_gone(&self) {
        self.release();
        self.serve_until("the new connection", None, || {
            let (connected, disconnected) = self.not_heard();
            let (early, late) = self.unheard.get();
            (connected, disconnected) == (early, late + 1)
        });
    }

    /// Stops in the middle of whatever is going on, and starts again.
    pub fn restart(&self) {
        self.release();
        self.server.stop().expect("stop");
        assert!(!self.path.exists(), "the socket file is left");
        self.unheard.set(self.not_heard());
        self.start();
    }
}

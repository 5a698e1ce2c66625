//! A running server for one test, and the four outcomes that a message or a ring can have.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use vu_server::{Address, Context, Level, Server, ServerBuilder};

use super::device::{Event, SOON, Script, Scripted, lock};
use crate::sim::wire::{self, req};
use crate::sim::{Deadline, Desc, Driver, Frontend, HangGuard, Session, SessionBuilder};
use crate::sim::{echo, eventually, process};

/// One test at a time: each counts the process's file descriptors.
static ALONE: Mutex<()> = Mutex::new(());

/// For a test with a server of its own.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// As [`alone`], for a test in which nothing hangs for ever.
pub fn alone_guarded(name: &str) -> impl Drop {
    #[expect(dead_code, reason = "held for its drop")]
    struct Alone(MutexGuard<'static, ()>, HangGuard);
    impl Drop for Alone {
        fn drop(&mut self) {}
    }
    Alone(alone(), HangGuard::secs(name, 120))
}

pub const CONFIG_SIZE: usize = 64;
/// The driver may write these bytes of the config space.
pub const CONFIG_WRITABLE: std::ops::Range<usize> = 16..32;

pub struct Rig {
    pub server: Arc<Server>,
    pub device: Arc<Script>,
    pub path: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
}

/// Runs a test against a server with two queues whose context is served by a thread of its own.
#[track_caller]
pub fn run(name: &str, test: impl FnOnce(&Rig)) {
    run_with(name, |builder| builder, test);
}

#[track_caller]
pub fn run_with(
    name: &str,
    configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    test: impl FnOnce(&Rig),
) {
    run_device(name, Script::default(), configure, test);
}

/// As [`run_with`], with a device that does what `script` says.
#[track_caller]
pub fn run_device(
    name: &str,
    script: Script,
    configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    test: impl FnOnce(&Rig),
) {
    run_device_in(name, script, configure, |rig, ctx| {
        let looper = Looper::start(ctx);
        test(rig);
        rig.server.stop().unwrap();
        looper.finish();
    });
}

/// As [`run_with`], and the test itself dispatches the context.
#[track_caller]
pub fn run_in(
    name: &str,
    configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    test: impl FnOnce(&Rig, &Arc<Context>),
) {
    run_device_in(name, Script::default(), configure, test);
}

/// As [`run_device`], and the test itself dispatches the context.
#[track_caller]
pub fn run_device_in(
    name: &str,
    script: Script,
    configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    test: impl FnOnce(&Rig, &Arc<Context>),
) {
    let epoll = || Arc::new(Context::epoll().unwrap());
    run_on(name, script, configure, epoll, test);
}

/// As [`run_device_in`], in another kind of context; nothing of it may be left in the end.
#[track_caller]
pub fn run_on(
    name: &str,
    script: Script,
    configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
    context: impl FnOnce() -> Arc<Context>,
    test: impl FnOnce(&Rig, &Arc<Context>),
) {
    let _alone = alone();
    let _hang = HangGuard::secs(name, 120);
    // Rust programs ignore it; one that does not must survive a peer that goes away, too.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let before = process::fd_targets();
    {
        let ctx = context();
        let rig = Rig::start(script, configure, &ctx);
        test(&rig, &ctx);
        rig.server.stop().unwrap();
        assert!(!rig.path.exists(), "the socket file is left");
    }
    eventually(
        "open descriptors after the test",
        Deadline::after(SOON),
        before,
        process::fd_targets,
    );
}

/// A thread that runs a context.
pub struct Looper {
    ctx: Arc<Context>,
    thread: Option<JoinHandle<()>>,
}

impl Looper {
    pub fn start(ctx: &Arc<Context>) -> Self {
        let looping = ctx.clone();
        let looper = thread::Builder::new().name("looper".into());
        let thread = looper.spawn(move || looping.run().unwrap()).unwrap();
        Looper {
            ctx: ctx.clone(),
            thread: Some(thread),
        }
    }

    #[track_caller]
    pub fn finish(mut self) {
        self.ctx.quit();
        self.thread
            .take()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}

impl Drop for Looper {
    fn drop(&mut self) {
        self.ctx.quit();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Rig {
    fn start(
        script: Script,
        configure: impl FnOnce(ServerBuilder) -> ServerBuilder,
        ctx: &Context,
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vu-protocol-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let (device, lines) = (Arc::new(script), Arc::new(Mutex::new(Vec::new())));
        let sink = lines.clone();
        let config: Vec<u8> = (0..CONFIG_SIZE as u8).collect();
        let mut writable = vec![0; CONFIG_SIZE];
        writable[CONFIG_WRITABLE].fill(1);
        let builder = Server::builder()
            .name("protocol")
            .queues(2)
            .config_space(config, writable)
            .log(Level::Warning, move |_, line| {
                lock(&sink).push(line.to_owned())
            });
        let server = configure(builder).build(Scripted(device.clone())).unwrap();
        server
            .start(Address::Listen(path.clone()), Some(ctx))
            .unwrap();
        Rig {
            server: Arc::new(server),
            device,
            path,
            lines,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection that the device has heard of: it is told of the end of such a one only.
    #[track_caller]
    pub fn frontend(&self) -> Frontend {
        let fe = Frontend::connect(&self.path).unwrap();
        alive(&fe);
        let connections = self.server.stats().connections;
        eventually(
            "connections heard of",
            Deadline::after(SOON),
            connections,
            || self.device.connections(),
        );
        fe
    }

    /// Warnings and errors so far.
    pub fn log_lines(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    pub fn builder(&self) -> SessionBuilder {
        Session::builder().queues(2)
    }

    /// Two rings that run.
    #[track_caller]
    pub fn session(&self) -> Session {
        self.builder().connect(&self.path)
    }

    pub fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; CONFIG_SIZE];
        self.server.config(0, &mut bytes).unwrap();
        bytes
    }

    // ---- outcomes ---------------------------------------------------------------------------------------

    /// REFUSE: one non-zero answer, the descriptors closed, the connection up.
    #[track_caller]
    pub fn refused(&self, fe: &Frontend, bad: &Bad) {
        let what = &bad.what;
        let (fds, refusals) = (process::open_fds(), self.server.stats().refusals);
        let ack = fe
            .request_with_ack(bad.request, &bad.body, &bad.fds)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(ack, 0, "{what}: acknowledged");
        assert_eq!(process::open_fds(), fds, "{what}: open descriptors");
        assert_eq!(
            self.server.stats().refusals,
            refusals + 1,
            "{what}: refusals counted"
        );
    }

    /// REFUSE for each, with nothing changed: the session's rings go on.
    #[track_caller]
    pub fn all_refused<D: Driver>(&self, session: &mut Session<D>, bad: &[Bad]) {
        for bad in bad {
            self.refused(session.fe(), bad);
            works(session);
        }
    }

    /// DROP: the connection ends for this reason, and the next front-end is served.
    #[track_caller]
    pub fn dropped(&self, what: &str, fe: Frontend, reason: &str) {
        fe.wait_closed()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        self.left(what, reason);
    }

    /// The device hears why a connection ended, and the next front-end is served.
    #[track_caller]
    pub fn left(&self, what: &str, reason: &str) {
        let event = self
            .device
            .take(&format!("end of the connection after {what}"), |event| {
                matches!(event, Event::Disconnected { .. })
            });
        let Event::Disconnected { reason: told, .. } = event else {
            unreachable!()
        };
        assert!(told.contains(reason), "{what}: {told:?}, want {reason:?}");
        let mut next = self.session();
        works(&mut next);
        next.disconnect();
        self.device.take("orderly end", |event| {
            matches!(event, Event::Disconnected { .. })
        });
    }

    /// BREAK of queue 0: err fd, callback and statistics say so, queue 1 goes on, and GET_VRING_BASE clears it.
    #[track_caller]
    pub fn broken<D: Driver>(&self, what: &str, session: &mut Session<D>, reason: &str) {
        self.broke(what, session, reason);
        echo::round_trip(&mut session.queues[1], what.as_bytes());
        session.restart_queue(0);
        works(session);
    }

    /// The first half of [`broken`](Self::broken): queue 0 stays as it is.
    #[track_caller]
    pub fn broke<D: Driver>(&self, what: &str, session: &Session<D>, reason: &str) {
        session.queues[0]
            .err_fd()
            .wait("signal on the err fd", Deadline::after(SOON))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let event = self
            .device
            .take(&format!("broken ring after {what}"), |event| {
                matches!(event, Event::RingBroken { .. })
            });
        let Event::RingBroken {
            index,
            reason: told,
            ..
        } = event
        else {
            unreachable!()
        };
        assert_eq!(index, 0, "{what}: index of the broken ring");
        assert!(told.contains(reason), "{what}: {told:?}, want {reason:?}");
        // It was signalled before the device heard of it, by whoever found out.
        session.queues[0].err_fd().take().unwrap();
    }
}

/// A message that must be refused.
pub struct Bad {
    pub what: String,
    pub request: u32,
    pub body: Vec<u8>,
    pub fds: Vec<RawFd>,
}

impl Bad {
    pub fn new(request: u32, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let what = format!("{} {body:x?}", wire::name(request));
        Bad {
            what,
            request,
            body,
            fds: Vec::new(),
        }
    }

    /// A vring request with an index and a number.
    pub fn state(request: u32, index: u32, num: u32) -> Self {
        let bad = Self::new(request, wire::vring_state(index, num));
        Bad {
            what: format!("{} {index:#x} {num:#x}", wire::name(request)),
            ..bad
        }
    }

    pub fn u64(request: u32, value: u64) -> Self {
        let bad = Self::new(request, value.to_ne_bytes());
        Bad {
            what: format!("{} {value:#x}", wire::name(request)),
            ..bad
        }
    }

    pub fn fds(self, fds: &[RawFd]) -> Self {
        let what = format!("{} with {} fds", self.what, fds.len());
        Bad {
            what,
            fds: fds.to_vec(),
            ..self
        }
    }

    pub fn named(self, what: impl Into<String>) -> Self {
        Bad {
            what: what.into(),
            ..self
        }
    }
}

/// All rings of a session answer, and so does the connection.
#[track_caller]
pub fn works<D: Driver>(session: &mut Session<D>) {
    for queue in &mut session.queues {
        echo::round_trip(queue, b"does this still work?");
    }
    alive(session.fe());
}

#[track_caller]
pub fn alive(fe: &Frontend) {
    let features = fe.get_features().unwrap();
    assert_ne!(
        features & wire::feature::PROTOCOL_FEATURES,
        0,
        "features {features:#x}"
    );
}

/// Writes a descriptor of queue 0 past the driver.
#[track_caller]
pub fn desc(session: &Session, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
    let desc = Desc {
        addr,
        len,
        flags,
        next,
    };
    session.queues[0].ring.set_desc(index, desc).unwrap();
}

/// Makes a head of queue 0 available and kicks.
#[track_caller]
pub fn offer(session: &mut Session, head: u16) {
    session.queues[0].publish_raw(head).unwrap();
    session.queues[0].kick_always().unwrap();
}

/// A front-end that has negotiated all that is offered, and names memory by addresses of its own.
#[track_caller]
pub fn acknowledging(rig: &Rig) -> Frontend {
    without(rig, wire::protocol_feature::GPA_ADDRESSES)
}

/// A front-end that has negotiated all that is offered but these protocol features.
#[track_caller]
pub fn without(rig: &Rig, refused: u64) -> Frontend {
    let mut fe = rig.frontend();
    let bits = fe.get_protocol_features().unwrap();
    fe.set_protocol_features(bits & !refused).unwrap();
    fe.set_owner().unwrap();
    fe
}

/// Requests that the server has handled so far.
pub fn handled(rig: &Rig, request: u32) -> u64 {
    rig.server.stats().messages_by_type[request as usize]
}

/// All requests that take no descriptor and are served, with a legal body.
pub fn without_fds() -> Vec<(u32, Vec<u8>)> {
    let word = 0u64.to_ne_bytes().to_vec();
    let state = wire::vring_state(0, 0);
    vec![
        (req::GET_FEATURES, Vec::new()),
        (req::SET_FEATURES, word.clone()),
        (req::SET_OWNER, Vec::new()),
        (req::RESET_OWNER, Vec::new()),
        (req::SET_VRING_NUM, state.clone()),
        (req::SET_VRING_ADDR, wire::VringAddr::default().encode()),
        (req::SET_VRING_BASE, state.clone()),
        (req::GET_PROTOCOL_FEATURES, Vec::new()),
        (req::SET_PROTOCOL_FEATURES, word.clone()),
        (req::GET_QUEUE_NUM, Vec::new()),
        (req::SET_VRING_ENABLE, state),
        (req::SET_CONFIG, wire::config(16, 0, &[1])),
        (req::RESET_DEVICE, Vec::new()),
        (req::GET_MAX_MEM_SLOTS, Vec::new()),
        (req::SET_STATUS, word),
        (req::GET_STATUS, Vec::new()),
    ]
}

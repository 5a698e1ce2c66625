//! The situations: a server with a queue and a front-end, and spare objects that nobody uses.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use vu_server::{
    Address, Context, Device, Element, EventLoop, Kick, Result, Server, Virtqueue, Watch,
};

use crate::cases::{Case, How};
use crate::sim::echo::{EchoRequest, round_trip};
use crate::sim::{Deadline, EventFd, Session};
use crate::stop::{Call, Journal, Probe, SOON, lock, socket_path};

/// The columns of the table. `any` is two situations: the owner's loop runs, or it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Owner,
    AnyRunning,
    AnyIdle,
    Callback,
    Detached,
}

/// A device that has nothing to do.
pub struct Silent;

impl Device for Silent {
    fn kick(&self, _: &mut Virtqueue<'_>) -> Kick {
        Kick::Done
    }
}

/// A loop that never runs, and keeps the last watch.
#[derive(Clone, Default)]
pub struct Still(Arc<Mutex<Option<Watch>>>);

impl EventLoop for Still {
    fn set_watch(&self, _: RawFd, _: u32, watch: Watch) -> Result<()> {
        *lock(&self.0) = Some(watch);
        Ok(())
    }

    fn remove_watch(&self, _: RawFd) {}
}

pub struct Scene {
    pub column: Column,
    pub server: Arc<Server>,
    pub ctx: Arc<Context>,
    pub polled: Context,
    still: Still,
    _foreign: Context,
    spare: Mutex<Option<Server>>,
    spare_ctx: Mutex<Option<Context>>,
    event: EventFd,
    element: Mutex<Option<Element>>,
    journal: Arc<Journal>,
    path: PathBuf,
    what: String,
    case: Case,
    cell: String,
    fired: Mutex<HashSet<String>>,
    /// The callbacks in which everything has been done.
    over: Arc<Journal>,
    /// A callback that panics would end the scene; the test's thread does it.
    wrong: Mutex<Vec<String>>,
}

impl Scene {
    pub fn take_spare(&self) -> Server {
        lock(&self.spare).take().unwrap()
    }

    pub fn with_spare<R>(&self, f: impl FnOnce(&Server) -> R) -> R {
        f(lock(&self.spare).as_ref().unwrap())
    }

    pub fn take_spare_ctx(&self) -> Context {
        lock(&self.spare_ctx).take().unwrap()
    }

    pub fn take_element(&self) -> Element {
        lock(&self.element).take().expect("an element")
    }

    pub fn watch(&self) -> Result<()> {
        self.ctx
            .watch(self.event.as_raw_fd(), libc::POLLIN as u32, |_| {})
    }

    pub fn unwatch(&self) -> Result<()> {
        self.ctx.unwatch(self.event.as_raw_fd())
    }

    pub fn doorbell(&self) -> Watch {
        lock(&self.still.0).clone().unwrap()
    }

    // ---- the act ----------------------------------------------------------------------------------------

    fn expect(&self, result: Result<()>) {
        let got = result.err().map_or(0, |error| error.errno());
        let want = match self.cell.as_str() {
            "yes" | "idle" => 0,
            "-EBUSY" => libc::EBUSY,
            "-EDEADLK" => libc::EDEADLK,
            "-EXDEV" => libc::EXDEV,
            other => panic!("{other:?} in the table means nothing here"),
        };
        if got != want {
            lock(&self.wrong).push(format!("{}: errno {got}, want {}", self.what, self.cell));
        }
    }

    fn act(&self) {
        if let How::Plain(call) | How::Element(call) | How::Takes(call) = self.case.how {
            self.expect(call(self));
        }
    }

    /// In the first callback of each kind.
    fn act_in(&self, name: &str, call: Call<'_, '_>) {
        let in_kick = matches!(call, Call::Kick(_));
        if self.column != Column::Callback
            || self.case.ends && !in_kick
            || !lock(&self.fired).insert(name.to_owned())
        {
            return;
        }
        match (self.case.how, call) {
            (How::Plain(call), _) => {
                let result = call(self);
                let over = self.case.drains && !in_kick;
                if !(over && matches!(&result, Err(e) if e.errno() == libc::ESHUTDOWN)) {
                    self.expect(result);
                }
            }
            (How::Element(call), Call::Kick(vq)) => {
                *lock(&self.element) = vq.pop_one().unwrap();
                self.expect(call(self));
            }
            (How::Lent(call), Call::Kick(vq)) => self.expect(call(self, vq)),
            _ => {}
        }
    }

    // ---- making it --------------------------------------------------------------------------------------

    fn make(what: String, case: Case, column: Column, cell: &str) -> Arc<Self> {
        let (journal, own) = (Journal::new(), Arc::new(OnceLock::<Weak<Scene>>::new()));
        let scene = own.clone();
        let device = Probe::new(&journal, move |name, mut call| {
            if let Some(scene) = scene.get().and_then(Weak::upgrade) {
                if let Call::Kick(vq) = &mut call
                    && scene.column != Column::Callback
                    && matches!(scene.case.how, How::Element(_))
                    && lock(&scene.fired).insert(name.to_owned())
                {
                    *lock(&scene.element) = vq.pop_one().unwrap();
                }
                scene.act_in(name, call);
                scene.over.note(name);
            }
            None
        });
        let server = Server::builder().config_space([0; 8], [1; 8]).build(device);
        let (ctx, still) = (Arc::new(Context::epoll().unwrap()), Still::default());
        let (server, path) = (server.unwrap(), socket_path("table"));
        server
            .start(Address::Listen(path.clone()), Some(&ctx))
            .unwrap();
        let scene = Arc::new(Scene {
            column,
            server: Arc::new(server),
            ctx,
            polled: Context::polled().unwrap(),
            _foreign: Context::foreign(Box::new(still.clone())).unwrap(),
            still,
            spare: Mutex::new(Some(Server::builder().build(Silent).unwrap())),
            spare_ctx: Mutex::new(Some(Context::epoll().unwrap())),
            event: EventFd::new().unwrap(),
            element: Mutex::new(None),
            journal,
            path,
            what,
            case,
            cell: cell.to_owned(),
            fired: Mutex::default(),
            over: Journal::new(),
            wrong: Mutex::default(),
        });
        own.set(Arc::downgrade(&scene)).unwrap();
        scene
    }

    fn connect(&self) -> Session {
        Session::builder().connect(&self.path)
    }

    fn submit(&self, session: &mut Session) {
        let request = EchoRequest::new(&session.memory, 8, 8);
        session.queues[0].submit(&request.segs()).unwrap();
    }

    /// On the calling thread, the owner: the queue runs, and the device has an element if the case wants one.
    fn start_queue(&self, session: &mut Session) {
        let deadline = Deadline::after(SOON);
        let dispatch_until = |done: &dyn Fn() -> bool| {
            while !done() {
                self.ctx.dispatch(Some(Duration::from_millis(10))).unwrap();
                assert!(!deadline.expired(), "{}: the queue does not run", self.what);
            }
        };
        dispatch_until(&|| self.journal.count("queue_started 0") > 0);
        if matches!(self.case.how, How::Element(_)) {
            self.submit(session);
            dispatch_until(&|| lock(&self.element).is_some());
        }
    }

    /// Through all callbacks, or to the one that ends it.
    fn play_callbacks(&self) -> Option<Session> {
        let mut session = self.connect();
        session.fe().set_config(0, 0, &[1]).unwrap();
        self.over.wait_for("config_written");
        self.submit(&mut session);
        self.over.wait_for("kick");
        if self.case.ends {
            return Some(session);
        }
        session.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        session.stop_queue(0);
        self.over.wait_for("queue_stopped");
        session.fe().reset_device().unwrap();
        self.over.wait_for("reset");
        drop(session);
        self.over.wait_for("disconnected");
        self.server.request_stop().unwrap();
        self.over.wait_for("stopped");
        None
    }

    /// Whatever it was: with the server running and attached, requests are served.
    fn verify(&self, session: Option<Session>) {
        drop(lock(&self.element).take());
        if self.what.starts_with("server_request_stop") {
            self.server.stop().unwrap();
        }
        let stopped = self.server.is_stopped();
        if stopped {
            self.server
                .start(Address::Listen(self.path.clone()), Some(&self.ctx))
                .unwrap();
        }
        if let Err(error) = self.server.attach(&self.ctx) {
            assert_eq!(error.errno(), libc::EBUSY, "{}: {error}", self.what);
        }
        let mut session = match session {
            Some(session) if !stopped && self.column != Column::Callback => session,
            gone => {
                drop(gone);
                self.connect()
            }
        };
        while session.queues[0].outstanding() > 0 {
            session.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        }
        round_trip(&mut session.queues[0], b"as ever");
        self.server.stop().unwrap();
        if let Some(spare) = &*lock(&self.spare) {
            spare.stop().unwrap();
        }
    }
}

/// Runs the context until this is dropped, whatever a case does to quit it.
struct Loop {
    ctx: Arc<Context>,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Loop {
    fn run(ctx: &Arc<Context>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (running, ended) = (ctx.clone(), end.clone());
        let (adopted, is_adopted) = mpsc::channel();
        let thread = thread::spawn(move || {
            running.adopt().unwrap();
            adopted.send(()).unwrap();
            while !ended.load(Ordering::Acquire) {
                running.run().unwrap();
            }
        });
        // As long as the calling thread owned it, a stop there would dispatch it.
        is_adopted.recv_timeout(SOON).unwrap();
        Loop {
            ctx: ctx.clone(),
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        self.ctx.quit();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One cell.
pub fn play(function: &str, case: Case, column: Column, cell: &str) {
    match case.how {
        How::None(_) => return,
        How::Lent(_) if column != Column::Callback => return,
        How::Takes(_) if column == Column::Callback => return,
        _ => {}
    }
    let what = format!("{function}, {column:?}");
    let scene = Scene::make(what.clone(), case, column, cell);
    let (session, running) = if column == Column::Callback {
        let running = Loop::run(&scene.ctx);
        (scene.play_callbacks(), running)
    } else {
        let mut session = scene.connect();
        scene.start_queue(&mut session);
        match column {
            Column::Owner => scene.act(),
            Column::Detached => {
                scene.server.detach().unwrap();
                scene.act();
            }
            Column::AnyIdle => thread::scope(|scope| {
                scope.spawn(|| scene.act());
            }),
            Column::AnyRunning | Column::Callback => {}
        }
        let running = Loop::run(&scene.ctx);
        if column == Column::AnyRunning {
            scene.act();
        }
        (Some(session), running)
    };
    scene.verify(session);
    drop(running);
    let wrong = std::mem::take(&mut *lock(&scene.wrong));
    assert!(wrong.is_empty(), "{wrong:?}");
    let fired = lock(&scene.fired).contains("kick");
    assert!(column != Column::Callback || fired, "{what}: never called");
}

//! Contexts of every kind, each run by a thread of its own.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use vu_server::{Context, EventLoop, Result, Watch};

use crate::sim::EventFd;

/// How long a loop may take to answer when nothing keeps it.
const ANSWER: Duration = Duration::from_secs(10);
/// A polled loop that finds nothing leaves the processor to others for so long.
const NAP: Duration = Duration::from_micros(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Epoll,
    /// The embedded loop, which looks at the rings for this long before it sleeps.
    BusyPoll(Duration),
    Polled,
    Foreign,
}

type Task = Box<dyn FnOnce() + Send>;

/// A context and the thread that runs it.
pub struct Looper {
    pub ctx: Arc<Context>,
    /// What a foreign loop watches.
    pub watches: Option<Arc<Watches>>,
    pub thread_id: ThreadId,
    kind: Kind,
    tasks: Sender<Task>,
    bell: Arc<EventFd>,
    quit: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Looper {
    pub fn start(kind: Kind) -> Self {
        let (tasks, inbox) = channel::<Task>();
        let (ready, started) = channel();
        let bell = Arc::new(EventFd::new().unwrap());
        let quit = Arc::new(AtomicBool::new(false));
        let run = Run {
            inbox,
            bell: bell.clone(),
            quit: quit.clone(),
        };
        let thread = thread::spawn(move || {
            let watches = (kind == Kind::Foreign).then(|| Arc::new(Watches::new()));
            let ctx = Arc::new(new_context(kind, watches.as_ref()));
            ready.send((ctx.clone(), watches.clone())).unwrap();
            match (kind, &watches) {
                (Kind::Foreign, Some(watches)) => run.foreign(watches),
                (Kind::Polled, _) => run.polled(&ctx),
                _ => run.epoll(&ctx),
            }
        });
        let (ctx, watches) = started.recv_timeout(ANSWER).expect("the loop's context");
        Looper {
            ctx,
            watches,
            thread_id: thread.thread().id(),
            kind,
            tasks,
            bell,
            quit,
            thread: Some(thread),
        }
    }

    fn wake(&self) {
        match self.kind {
            Kind::Epoll | Kind::BusyPoll(_) => self.ctx.quit(),
            Kind::Foreign => self.bell.signal().unwrap(),
            Kind::Polled => {}
        }
    }

    /// Runs `f` on the loop's thread, outside of any dispatch.
    #[track_caller]
    pub fn on<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> R {
        let (reply, answer) = channel();
        let task = Box::new(move || {
            let _ = reply.send(f());
        });
        self.tasks.send(task).expect("the loop's thread");
        self.wake();
        answer
            .recv_timeout(ANSWER)
            .expect("the loop does not answer")
    }
}

impl Looper {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Ends the thread. The context goes to whoever adopts it.
    pub fn end(self) -> (Context, Option<Arc<Watches>>) {
        let (ctx, watches) = (self.ctx.clone(), self.watches.clone());
        drop(self);
        let ctx = Arc::into_inner(ctx).expect("nobody else has the context");
        (ctx, watches)
    }
}

impl Drop for Looper {
    fn drop(&mut self) {
        // Relaxed: the flag carries nothing with it.
        self.quit.store(true, Ordering::Relaxed);
        self.wake();
        let ended = self.thread.take().map(JoinHandle::join);
        if thread::panicking() {
            return;
        }
        assert!(matches!(ended, Some(Ok(()))), "a loop's thread panicked");
        if let Some(watches) = &self.watches {
            watches.assert_no_misuse();
        }
    }
}

fn new_context(kind: Kind, watches: Option<&Arc<Watches>>) -> Context {
    match (kind, watches) {
        (Kind::Foreign, Some(watches)) => {
            Context::foreign(Box::new(PollLoop(watches.clone()))).unwrap()
        }
        (Kind::Polled, _) => Context::polled().unwrap(),
        (Kind::BusyPoll(max), _) => {
            let ctx = Context::epoll().unwrap();
            ctx.set_busy_poll(max).unwrap();
            ctx
        }
        _ => Context::epoll().unwrap(),
    }
}

/// What the thread of a loop does.
struct Run {
    inbox: Receiver<Task>,
    bell: Arc<EventFd>,
    quit: Arc<AtomicBool>,
}

impl Run {
    fn tasks(&self) {
        for task in self.inbox.try_iter() {
            task();
        }
    }

    fn quits(&self) -> bool {
        // Relaxed: the flag carries nothing with it.
        self.quit.load(Ordering::Relaxed)
    }

    fn epoll(&self, ctx: &Context) {
        while !self.quits() {
            ctx.run().unwrap();
            self.tasks();
        }
    }

    fn polled(&self, ctx: &Context) {
        while !self.quits() {
            self.tasks();
            if ctx.poll().unwrap() == 0 {
                thread::sleep(NAP);
            }
        }
    }

    fn foreign(&self, watches: &Watches) {
        while !self.quits() {
            self.tasks();
            watches.iterate(Some(&self.bell), -1);
        }
    }
}

/// A loop over poll(2) that keeps books of its watches.
pub struct Watches {
    thread: Mutex<ThreadId>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    watches: BTreeMap<RawFd, (u32, Watch)>,
    /// What the library did that it must not do.
    misuse: Vec<String>,
}

impl Watches {
    fn new() -> Self {
        Watches {
            thread: Mutex::new(thread::current().id()),
            inner: Mutex::new(Inner::default()),
        }
    }

    /// From now on the loop runs on the calling thread.
    pub fn adopt(&self) {
        *self.thread.lock().unwrap() = thread::current().id();
    }

    /// Descriptors watched now, the context's doorbell among them.
    pub fn count(&self) -> usize {
        self.inner.lock().unwrap().watches.len()
    }

    pub fn assert_no_misuse(&self) {
        let misuse = &self.inner.lock().unwrap().misuse;
        assert!(misuse.is_empty(), "misuse of the foreign loop: {misuse:?}");
    }

    /// One round. What a callback unwatches is still called if it was ready with the others: a call that
    /// comes late must do no harm.
    pub fn iterate(&self, bell: Option<&EventFd>, timeout_ms: i32) {
        let watched: Vec<_> = {
            let inner = self.inner.lock().unwrap();
            inner
                .watches
                .iter()
                .map(|(fd, (events, watch))| (*fd, *events, watch.clone()))
                .collect()
        };
        let entry = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(fd, events, _)| entry(*fd, *events as i16))
            .collect();
        fds.extend(bell.map(|bell| entry(bell.as_raw_fd(), libc::POLLIN)));
        // SAFETY: the entries are valid, and the count is theirs.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
        if ready <= 0 {
            return;
        }
        if let Some(bell) = bell {
            bell.take().unwrap();
        }
        for (entry, (fd, _, watch)) in fds.iter().zip(&watched) {
            if entry.revents & libc::POLLNVAL != 0 {
                let mut inner = self.inner.lock().unwrap();
                inner
                    .misuse
                    .push(format!("fd {fd} was closed while it was watched"));
            }
            if entry.revents != 0 {
                watch.ready(entry.revents as u16 as u32);
            }
        }
    }
}

struct PollLoop(Arc<Watches>);

impl EventLoop for PollLoop {
    fn set_watch(&self, fd: RawFd, events: u32, watch: Watch) -> Result<()> {
        let mut inner = self.0.inner.lock().unwrap();
        if thread::current().id() != *self.0.thread.lock().unwrap() {
            inner
                .misuse
                .push(format!("set_watch({fd}) on another thread"));
        }
        inner.watches.insert(fd, (events, watch));
        Ok(())
    }

    fn remove_watch(&self, fd: RawFd) {
        let mut inner = self.0.inner.lock().unwrap();
        if inner.watches.remove(&fd).is_none() {
            inner
                .misuse
                .push(format!("remove_watch({fd}) without a watch"));
        }
    }
}

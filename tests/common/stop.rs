//! What the tests about stopping and life share: a device that writes down what it hears and lets a test
//! act inside any callback, a thread that runs a context, and waiting without sleeping.

#![allow(dead_code)]

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
    mpsc,
};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use vu_server::{Context, Device, Element, Kick, Server, ServerBuilder, StopReason, Virtqueue};

use crate::sim::HangGuard;

/// How long anything may take that nothing should delay.
pub const SOON: Duration = Duration::from_secs(10);

/// A test's place in the process: shared, or alone for those that count what the process holds.
static PLACE: RwLock<()> = RwLock::new(());

pub struct Guard {
    _hang: HangGuard,
    _place: Place,
}

#[expect(dead_code, reason = "held for its drop")]
enum Place {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// The first line of every test: nothing in here hangs for ever.
pub fn guard(what: &str, secs: u64) -> Guard {
    let place = Place::Shared(PLACE.read().unwrap_or_else(|poison| poison.into_inner()));
    Guard {
        _hang: HangGuard::secs(what, secs),
        _place: place,
    }
}

/// As [`guard`], and no other test runs meanwhile.
pub fn guard_alone(what: &str, secs: u64) -> Guard {
    let place = Place::Alone(PLACE.write().unwrap_or_else(|poison| poison.into_inner()));
    Guard {
        _hang: HangGuard::secs(what, secs),
        _place: place,
    }
}

/// A path that no other test uses.
pub fn socket_path(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vu-{name}-{}-{number}.sock", std::process::id()))
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

// ---- what was heard -------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
pub struct Entry {
    pub what: String,
    pub thread: ThreadId,
}

/// Everything a device heard, in order.
#[derive(Default)]
pub struct Journal {
    entries: Mutex<Vec<Entry>>,
    changed: Condvar,
}

impl Journal {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn note(&self, what: impl Display) {
        let thread = thread::current().id();
        lock(&self.entries).push(Entry {
            what: what.to_string(),
            thread,
        });
        self.changed.notify_all();
    }

    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.entries).clone()
    }

    /// What was heard, without the kicks: how many of those come is a matter of timing.
    pub fn events(&self) -> Vec<String> {
        let is_event = |entry: &&Entry| !entry.what.starts_with("kick");
        lock(&self.entries)
            .iter()
            .filter(is_event)
            .map(|entry| entry.what.clone())
            .collect()
    }

    pub fn count(&self, what: &str) -> usize {
        lock(&self.entries)
            .iter()
            .filter(|entry| entry.what == what)
            .count()
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str) {
        self.wait_for_count(what, 1);
    }

    #[track_caller]
    pub fn wait_for_count(&self, what: &str, count: usize) {
        let deadline = Instant::now() + SOON;
        let mut entries = lock(&self.entries);
        while entries.iter().filter(|entry| entry.what == what).count() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what:?} was not heard {count} times within {SOON:?}: {entries:?}"
            );
            entries = self
                .changed
                .wait_timeout(entries, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }
}

// ---- the device -----------------------------------------------------------------------------------------

/// A callback that is running, with what it lends.
pub enum Call<'a, 'b> {
    Kick(&'a mut Virtqueue<'b>),
    QueueStarted(&'a mut Virtqueue<'b>),
    QueueStopping(&'a mut Virtqueue<'b>, StopReason),
    Other,
}

/// The name of a callback, as [`Journal`] begins its entries.
pub const CALLBACKS: [&str; 12] = [
    "connected",
    "features_acked",
    "queue_started",
    "kick",
    "config_written",
    "queue_stopping",
    "queue_stopped",
    "ring_broken",
    "reset",
    "orphaned",
    "disconnected",
    "stopped",
];

type Hook = Box<dyn Fn(&str, Call<'_, '_>) -> Option<Kick> + Send + Sync>;

/// A device that notes every callback and then does what the test's hook says. Where a hook answers `None`
/// to a kick, it echoes what comes (and keeps what begins with "hold").
pub struct Probe {
    pub journal: Arc<Journal>,
    pub held: Arc<Held>,
    hook: Hook,
}

impl Probe {
    pub fn new(
        journal: &Arc<Journal>,
        hook: impl Fn(&str, Call<'_, '_>) -> Option<Kick> + Send + Sync + 'static,
    ) -> Self {
        Probe {
            journal: journal.clone(),
            held: Held::new(),
            hook: Box::new(hook),
        }
    }

    pub fn echo(journal: &Arc<Journal>) -> Self {
        Self::new(journal, |_, _| None)
    }

    /// Keeps everything that it pops in the list that is returned.
    pub fn holding(journal: &Arc<Journal>) -> (Self, Arc<Held>) {
        let held = Held::new();
        let keep = held.clone();
        let probe = Self::new(journal, move |_, call| match call {
            Call::Kick(vq) => {
                keep.pop_all(vq);
                Some(Kick::Done)
            }
            _ => None,
        });
        (probe, held)
    }

    fn hear(&self, name: &str, details: impl Display, call: Call<'_, '_>) -> Option<Kick> {
        let details = details.to_string();
        let space = if details.is_empty() { "" } else { " " };
        self.journal.note(format_args!("{name}{space}{details}"));
        (self.hook)(name, call)
    }
}

impl Device for Probe {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let index = vq.index();
        match self.hear("kick", index, Call::Kick(vq)) {
            Some(answer) => answer,
            None => {
                echo(vq, &self.held);
                Kick::Done
            }
        }
    }

    fn queue_started(&self, vq: &mut Virtqueue<'_>) {
        self.hear("queue_started", vq.index(), Call::QueueStarted(vq));
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, reason: StopReason) {
        let details = format!("{} {reason:?}", vq.index());
        self.hear("queue_stopping", details, Call::QueueStopping(vq, reason));
    }

    fn queue_stopped(&self, index: u32) {
        self.hear("queue_stopped", index, Call::Other);
    }

    fn connected(&self) {
        self.hear("connected", "", Call::Other);
    }

    fn disconnected(&self, errno: i32, _reason: &str) {
        self.hear("disconnected", errno, Call::Other);
    }

    fn features_acked(&self, _features: u64, _protocol_features: u64) {
        self.hear("features_acked", "", Call::Other);
    }

    fn config_written(&self, offset: u32, size: u32) {
        self.hear(
            "config_written",
            format_args!("{offset} {size}"),
            Call::Other,
        );
    }

    fn reset(&self) {
        self.hear("reset", "", Call::Other);
    }

    fn ring_broken(&self, index: u32, _errno: i32, _reason: &str) {
        self.hear("ring_broken", index, Call::Other);
    }

    fn orphaned(&self, index: u32) {
        self.hear("orphaned", index, Call::Other);
    }

    fn stopped(&self) {
        self.hear("stopped", "", Call::Other);
    }

    fn destroy(&self) {
        self.hear("destroy", "", Call::Other);
    }
}

/// Echoes everything in the ring; keeps what begins with "hold".
pub fn echo(vq: &mut Virtqueue<'_>, held: &Held) {
    while let Ok(Some(element)) = vq.pop_one() {
        let mut bytes = vec![0; element.readable_len() as usize];
        element.read(0, &mut bytes);
        if bytes.starts_with(b"hold") {
            held.push(element);
        } else {
            reply(element);
        }
    }
}

/// Completes an element as an echo device does.
pub fn reply(element: Element) {
    let mut bytes = vec![0; element.readable_len() as usize];
    element.read(0, &mut bytes);
    let written = element.write(0, &bytes) as u32;
    element.complete(written).unwrap();
}

/// Elements that a device keeps.
#[derive(Default)]
pub struct Held {
    elements: Mutex<Vec<Element>>,
    changed: Condvar,
}

impl Held {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn push(&self, element: Element) {
        lock(&self.elements).push(element);
        self.changed.notify_all();
    }

    pub fn pop_all(&self, vq: &mut Virtqueue<'_>) {
        while let Ok(Some(element)) = vq.pop_one() {
            self.push(element);
        }
    }

    pub fn len(&self) -> usize {
        lock(&self.elements).len()
    }

    pub fn take(&self) -> Vec<Element> {
        std::mem::take(&mut *lock(&self.elements))
    }

    /// The newest.
    pub fn take_one(&self) -> Option<Element> {
        lock(&self.elements).pop()
    }

    pub fn reply_to_all(&self) {
        self.take().into_iter().for_each(reply);
    }

    #[track_caller]
    pub fn wait_for(&self, count: usize) {
        let deadline = Instant::now() + SOON;
        let mut elements = lock(&self.elements);
        while elements.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} elements held within {SOON:?}, want {count}",
                elements.len()
            );
            elements = self
                .changed
                .wait_timeout(elements, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }
}

// ---- servers and loops ----------------------------------------------------------------------------------

/// A server that its own device's hook can reach.
#[derive(Clone, Default)]
pub struct Handle(Arc<OnceLock<Weak<Server>>>);

impl Handle {
    /// `None` once the server is gone.
    pub fn get(&self) -> Option<Arc<Server>> {
        self.0.get()?.upgrade()
    }

    pub fn build(&self, builder: ServerBuilder, device: impl Device) -> Arc<Server> {
        let server = Arc::new(builder.build(device).unwrap());
        self.0.set(Arc::downgrade(&server)).unwrap();
        server
    }
}

/// A thread that runs a context until this is dropped.
pub struct Looper {
    pub ctx: Arc<Context>,
    thread: Option<JoinHandle<()>>,
}

impl Looper {
    pub fn new() -> Self {
        let ctx = Arc::new(Context::epoll().unwrap());
        let looping = ctx.clone();
        let (adopted, is_adopted) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("looper".into())
            .spawn(move || {
                looping.adopt().unwrap();
                adopted.send(()).unwrap();
                looping.run().unwrap();
            })
            .unwrap();
        // As long as the creating thread owned it, a stop there would dispatch it.
        is_adopted.recv_timeout(SOON).unwrap();
        Looper {
            ctx,
            thread: Some(thread),
        }
    }

    pub fn thread_id(&self) -> ThreadId {
        self.thread.as_ref().unwrap().thread().id()
    }

    /// Ends the thread. Its context must be free of everything that a test has put there.
    #[track_caller]
    pub fn finish(mut self) {
        self.join();
        let ctx = self.ctx.clone();
        drop(self);
        let ctx = Arc::into_inner(ctx).expect("the context is still in use");
        ctx.free().map_err(|(error, _)| error).unwrap();
    }

    fn join(&mut self) {
        self.ctx.quit();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
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

/// Runs `f` and asserts that it took less than `limit`.
#[track_caller]
pub fn within<R>(limit: Duration, what: &str, f: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = f();
    let took = start.elapsed();
    assert!(
        took < limit,
        "{what} took {took:?}, want less than {limit:?}"
    );
    result
}

#[track_caller]
pub fn assert_errno<T>(result: vu_server::Result<T>, errno: i32) {
    match result {
        Ok(_) => panic!("no error, want errno {errno}"),
        Err(error) => assert_eq!(error.errno(), errno, "{error}"),
    }
}

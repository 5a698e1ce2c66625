//! An echo device that writes down what it hears, and keeps elements when it is told to.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vu_server::{
    Capabilities, CryptoSession, Device, Element, Kick, RawMessage, StopReason, Verdict, Virtqueue,
};

use super::state_script::StateScript;
use crate::sim::EventFd;

/// How long anything may take that nothing should delay.
pub const SOON: Duration = Duration::from_secs(10);

/// No test sends more in one request; a legal chain can be far longer than what a device wants to copy.
const MOST_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Disconnected {
        errno: i32,
        reason: String,
    },
    Features {
        features: u64,
        protocol_features: u64,
    },
    ConfigWritten {
        offset: u32,
        size: u32,
    },
    Reset,
    QueueStarted(u32),
    BigEndian(u32),
    QueueStopping(u32, StopReason),
    QueueStopped(u32),
    RingBroken {
        index: u32,
        errno: i32,
        reason: String,
    },
    Rarp([u8; 6]),
    Mtu(u16),
    SharedObject([u8; 16]),
    CreateSession(CryptoSession),
    CloseSession(u64),
    GpuSocket,
    Status(u8),
    Message {
        request: u32,
        need_reply: bool,
        body: Vec<u8>,
        fds: usize,
    },
}

/// The lengths of an element's buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub readable: Vec<usize>,
    pub writable: Vec<usize>,
}

impl Shape {
    fn of(element: &Element) -> Self {
        Shape {
            readable: element.readable().map(|slice| slice.len()).collect(),
            writable: element.writable().map(|slice| slice.len()).collect(),
        }
    }
}

pub type MessageFn = Box<dyn Fn(&mut RawMessage) -> vu_server::Result<Verdict> + Send>;

#[derive(Default)]
pub struct Script {
    events: Mutex<Vec<Event>>,
    changed: Condvar,
    held: Mutex<Vec<Element>>,
    holding: AtomicBool,
    /// Kicks wait while it is set, with what they have popped.
    stalled: Mutex<bool>,
    in_stall: AtomicBool,
    last_shape: Mutex<Shape>,
    connections: AtomicU64,
    /// What the device says that it implements.
    capabilities: Capabilities,
    /// With which errno questions are answered; 0 is success.
    errno: AtomicI32,
    /// The ID of the next crypto session.
    pub session_id: AtomicU64,
    pub gpu_socket: Mutex<Option<OwnedFd>>,
    /// What becomes of messages that the device sees first.
    pub verdict: Mutex<Option<MessageFn>>,
    /// Questions are not answered while it is set.
    mute: Mutex<bool>,
    /// What a device that implements it does with its state.
    pub state: StateScript,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Script {
    pub fn able(capabilities: Capabilities) -> Self {
        Script {
            capabilities,
            ..Script::default()
        }
    }

    fn note(&self, event: Event) {
        lock(&self.events).push(event);
        self.changed.notify_all();
    }

    /// Connections that it has heard of.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn events(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        lock(&self.events)
            .iter()
            .filter(|event| wanted(event))
            .count()
    }

    /// Waits for the first event that `wanted` accepts and takes it out of the list.
    #[track_caller]
    pub fn take(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + SOON;
        let mut events = lock(&self.events);
        loop {
            if let Some(at) = events.iter().position(&wanted) {
                return events.remove(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} within {SOON:?}: {events:?}");
            events = self
                .changed
                .wait_timeout(events, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }

    #[track_caller]
    pub fn take_event(&self, event: Event) {
        self.take(&format!("{event:?}"), |seen| *seen == event);
    }

    /// From here on elements are kept, or answered again.
    pub fn hold(&self, hold: bool) {
        // Relaxed: the test orders it before the kick that matters.
        self.holding.store(hold, Ordering::Relaxed);
    }

    /// From here on the next kick that pops something waits, or goes on again.
    pub fn stall(&self, stall: bool) {
        *lock(&self.stalled) = stall;
        self.changed.notify_all();
    }

    /// A kick is waiting.
    pub fn is_in_stall(&self) -> bool {
        self.in_stall.load(Ordering::Acquire)
    }

    fn wait_while_stalled(&self) {
        let mut stalled = lock(&self.stalled);
        while *stalled {
            self.in_stall.store(true, Ordering::Release);
            stalled = self
                .changed
                .wait(stalled)
                .unwrap_or_else(|poison| poison.into_inner());
        }
        self.in_stall.store(false, Ordering::Release);
    }

    #[track_caller]
    pub fn wait_held(&self, count: usize) {
        let deadline = Instant::now() + SOON;
        let mut held = lock(&self.held);
        while held.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} elements held within {SOON:?}, want {count}",
                held.len()
            );
            held = self
                .changed
                .wait_timeout(held, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }

    pub fn take_held(&self) -> Vec<Element> {
        std::mem::take(&mut *lock(&self.held))
    }

    /// Answers what is held, on the calling thread.
    pub fn release(&self) {
        self.hold(false);
        self.take_held().into_iter().for_each(answer);
    }

    /// From here on questions are answered with this errno, or well again.
    pub fn fail_with(&self, errno: i32) {
        // Relaxed: the test orders it before the question that matters.
        self.errno.store(errno, Ordering::Relaxed);
    }

    /// From here on the device thinks about questions, or answers what it has been asked.
    pub fn mute(&self, mute: bool) {
        *lock(&self.mute) = mute;
        self.changed.notify_all();
    }

    /// A question of the front-end's: noted, thought about, and answered.
    fn asked(&self, question: Event) -> vu_server::Result<()> {
        self.note(question);
        self.think();
        match self.errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(vu_server::Error::new(errno, "as scripted")),
        }
    }

    fn think(&self) {
        let mute = lock(&self.mute);
        let waited = self.changed.wait_timeout_while(mute, SOON, |mute| *mute);
        let timed_out = waited.unwrap_or_else(|poison| poison.into_inner()).1;
        assert!(!timed_out.timed_out(), "mute for {SOON:?}");
    }

    /// The buffers of the newest element.
    pub fn last_shape(&self) -> Shape {
        lock(&self.last_shape).clone()
    }
}

pub fn answer(element: Element) {
    let mut bytes = vec![0; (element.readable_len() as usize).min(MOST_BYTES)];
    element.read(0, &mut bytes);
    let written = element.write(0, &bytes) as u32;
    element
        .complete(written)
        .expect("no more written than there is room for");
}

/// What the device has exported: an eventfd with this count.
pub const OBJECT: u64 = 0x0b1e_c7ed;

fn object() -> OwnedFd {
    let object = EventFd::new().unwrap();
    object.add(OBJECT).unwrap();
    object.into()
}

pub struct Scripted(pub Arc<Script>);

impl Device for Scripted {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let mut batch: [Option<Element>; 32] = Default::default();
        while let Ok(count @ 1..) = vq.pop(&mut batch) {
            self.0.wait_while_stalled();
            for element in batch[..count].iter_mut().filter_map(Option::take) {
                *lock(&self.0.last_shape) = Shape::of(&element);
                if self.0.holding.load(Ordering::Relaxed) {
                    lock(&self.0.held).push(element);
                    self.0.changed.notify_all();
                } else {
                    answer(element);
                }
            }
        }
        Kick::Done
    }

    fn queue_started(&self, vq: &mut Virtqueue<'_>) {
        self.0.note(Event::QueueStarted(vq.index()));
        if vq.is_big_endian() {
            self.0.note(Event::BigEndian(vq.index()));
        }
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, reason: StopReason) {
        self.0.note(Event::QueueStopping(vq.index(), reason));
    }

    fn queue_stopped(&self, index: u32) {
        self.0.note(Event::QueueStopped(index));
    }

    fn connected(&self) {
        // Relaxed: a counter that orders nothing.
        self.0.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn disconnected(&self, errno: i32, reason: &str) {
        self.0.note(Event::Disconnected {
            errno,
            reason: reason.to_owned(),
        });
    }

    fn features_acked(&self, features: u64, protocol_features: u64) {
        self.0.note(Event::Features {
            features,
            protocol_features,
        });
    }

    fn config_written(&self, offset: u32, size: u32) {
        self.0.note(Event::ConfigWritten { offset, size });
    }

    fn reset(&self) {
        self.0.note(Event::Reset);
    }

    fn ring_broken(&self, index: u32, errno: i32, reason: &str) {
        self.0.note(Event::RingBroken {
            index,
            errno,
            reason: reason.to_owned(),
        });
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn send_rarp(&self, mac: [u8; 6]) -> vu_server::Result<()> {
        self.0.asked(Event::Rarp(mac))
    }

    fn net_set_mtu(&self, mtu: u16) -> vu_server::Result<()> {
        self.0.asked(Event::Mtu(mtu))
    }

    fn create_crypto_session(&self, session: &CryptoSession) -> vu_server::Result<u64> {
        self.0.asked(Event::CreateSession(session.clone()))?;
        Ok(self.0.session_id.load(Ordering::Relaxed))
    }

    fn close_crypto_session(&self, id: u64) -> vu_server::Result<()> {
        self.0.asked(Event::CloseSession(id))
    }

    fn gpu_set_socket(&self, socket: OwnedFd) -> vu_server::Result<()> {
        self.0.asked(Event::GpuSocket)?;
        *lock(&self.0.gpu_socket) = Some(socket);
        Ok(())
    }

    fn message(&self, message: &mut RawMessage) -> vu_server::Result<Verdict> {
        self.0.asked(Event::Message {
            request: message.request,
            need_reply: message.need_reply,
            body: message.body.clone(),
            fds: message.fds.len(),
        })?;
        match &*lock(&self.0.verdict) {
            Some(verdict) => verdict(message),
            None => Ok(Verdict::NotMine),
        }
    }

    fn status_set(&self, status: u8) {
        self.0.note(Event::Status(status));
    }

    fn shared_object(&self, uuid: [u8; 16]) -> vu_server::Result<OwnedFd> {
        // Before the answer: a late one holds it.
        let object = object();
        self.0.asked(Event::SharedObject(uuid)).map(|()| object)
    }

    fn save_state(&self, offset: u64, buffer: &mut [u8]) -> vu_server::Result<usize> {
        self.0.think();
        self.0.state.save(offset, buffer)
    }

    fn load_state(&self, offset: u64, bytes: &[u8]) -> vu_server::Result<()> {
        self.0.think();
        self.0.state.load(offset, bytes)
    }
}

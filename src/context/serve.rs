//! What is done inside a dispatch: taking queues, serving them, giving them back, delivering events.

use crate::callback;
use crate::device::Kick;
use crate::shared::Shared;
use crate::stream::Event;
use crate::sync::Arc;
use crate::virtqueue::kick::{Drained, KickSource};
use crate::virtqueue::{Look, Queue, Virtqueue};

use super::core::{ContextCore, Held, Mail};
use super::event_loop::Kind;
use super::hand_over::offer_stream;
use super::owner::{CtxId, State};
use super::registry;
use super::watch::{Target, WatchSlot};

/// How often `kick` is called in a row for a ring that refills, before others get their turn.
const KICKS_IN_A_ROW: u32 = 8;

/// Which callbacks may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    /// Inside a stop: recalls of every server, other callbacks only of stopping servers.
    Stopping,
}

impl Scope {
    fn allows(self, server: &Shared) -> bool {
        self == Scope::All || server.lifecycle.is_stopping()
    }
}

const BROKEN_EVENTS: u32 = (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) as u32;

impl ContextCore {
    /// A watched descriptor is ready.
    pub(super) fn dispatch_slot(self: &Arc<Self>, slot: &Arc<WatchSlot>, revents: u32) {
        if let Ok(_dispatch) = self.enter() {
            self.handle_slot(slot, revents);
        }
    }

    /// As [`dispatch_slot`](Self::dispatch_slot), inside of a dispatch.
    pub(super) fn handle_slot(self: &Arc<Self>, slot: &Arc<WatchSlot>, revents: u32) {
        match slot.target() {
            Target::Nothing => {}
            Target::Doorbell => self.answer_doorbell(),
            Target::Kick(queue, kick) => self.kicked(&queue, &kick, revents),
            Target::User(_, watch) => {
                self.call_out(|| callback::run(0, || watch(revents)));
            }
        }
    }

    fn answer_doorbell(self: &Arc<Self>) {
        if let Some(doorbell) = &self.doorbell {
            doorbell.silence();
        }
        self.flush();
        self.read_mail(Scope::All);
        self.serve_again();
    }

    fn kicked(self: &Arc<Self>, queue: &Arc<Queue>, kick: &KickSource, revents: u32) {
        let drained = kick.drain();
        let gone = match drained {
            Drained::Ok if revents & BROKEN_EVENTS == 0 => None,
            // What was signalled before the other end went is still served.
            Drained::Ok if revents & libc::POLLIN as u32 != 0 => None,
            // A call that comes late may speak of another descriptor that had this slot.
            Drained::Ok if !kick.is_gone() => None,
            Drained::Ok | Drained::Gone => Some((
                libc::EBADMSG,
                "nobody can signal the kick descriptor any more",
            )),
            Drained::Failed(errno) => Some((errno as i32, errno.desc())),
        };
        match gone {
            None => self.serve(queue),
            Some((errno, why)) => {
                queue.fail_kick(errno, why);
                self.give_up(queue);
            }
        }
    }

    /// Reads the mail that is there now; true if something was done. What `scope` does not allow stays in the box.
    pub(crate) fn read_mail(self: &Arc<Self>, scope: Scope) -> bool {
        let mut did = false;
        // One at a time: a loop that nests in a callback finds the rest in the box.
        for _ in 0..self.mailbox.len() {
            let Some(mail) = self.mailbox.take() else {
                break;
            };
            let handled = match &mail {
                Mail::Queue(queue) => self.read_queue_mail(queue, scope),
                Mail::Stream(server) => self.read_stream_mail(server, scope),
            };
            if !handled {
                self.post(mail);
            }
            did |= handled;
        }
        did
    }

    fn read_queue_mail(self: &Arc<Self>, queue: &Arc<Queue>, scope: Scope) -> bool {
        let ownership = queue.owner.load();
        if ownership.context != self.id {
            return true;
        }
        match ownership.state {
            State::Internal => {}
            State::Offered if scope.allows(&queue.server) => self.accept(queue),
            State::Offered => return false,
            State::Recalled => self.give_up(queue),
            // The internal thread reports it.
            State::Owned if queue.is_broken() => self.give_up(queue),
            State::Owned if scope.allows(&queue.server) => self.serve(queue),
            State::Owned => return false,
        }
        true
    }

    // ---- queues come and go -----------------------------------------------------------------------------

    /// Takes a queue that is offered: sets the watch, tells the device, looks at the ring once.
    fn accept(self: &Arc<Self>, queue: &Arc<Queue>) {
        if registry::change(|| queue.owner.take(self.id)).is_none() {
            return;
        }
        let kick = match queue.arrive(self) {
            Ok(kick) => kick,
            Err(_) => return self.hand_back(queue),
        };
        let slot = match self.watch_kick(queue, &kick) {
            Ok(slot) => slot,
            Err(error) => {
                queue.fail_kick(error.errno(), error.message());
                return self.hand_back(queue);
            }
        };
        self.inner.lock().held.push(Held {
            queue: queue.clone(),
            slot,
        });
        self.call_out(|| {
            queue
                .server
                .call(|device| device.queue_started(&mut Virtqueue::lend(queue)))
        });
        self.serve(queue);
    }

    fn watch_kick(
        &self,
        queue: &Arc<Queue>,
        kick: &Arc<KickSource>,
    ) -> crate::Result<Option<Arc<WatchSlot>>> {
        if matches!(self.kind, Kind::Polled) {
            return Ok(None);
        }
        let target = Target::Kick(queue.clone(), kick.clone());
        self.watch(kick.raw(), libc::POLLIN as u32, target)
            .map(Some)
    }

    /// Hands a queue back, unless its `kick` is on the stack: then it goes when that returns.
    pub(crate) fn give_up(self: &Arc<Self>, queue: &Arc<Queue>) {
        if queue.is_in_kick() {
            return;
        }
        let held = {
            let mut inner = self.inner.lock();
            let at = inner
                .held
                .iter()
                .position(|held| Arc::ptr_eq(&held.queue, queue));
            at.map(|at| inner.held.swap_remove(at))
        };
        let Some(held) = held else {
            return;
        };
        if let Some(slot) = held.slot {
            let fd = match slot.target() {
                Target::Kick(_, kick) => kick.raw(),
                _ => -1,
            };
            self.unwatch(fd, &slot);
        }
        if !queue.is_orphaned() {
            let reason = queue.reason(self.id);
            self.call_out(|| {
                queue
                    .server
                    .call(|device| device.queue_stopping(&mut Virtqueue::lend(queue), reason))
            });
        }
        self.hand_back(queue);
    }

    fn hand_back(&self, queue: &Arc<Queue>) {
        queue.depart();
        registry::change(|| queue.owner.give_back(self.id));
        queue.server.handed_back();
    }

    /// A context that is being freed keeps nothing for queues that a drain time-out cut off.
    pub(super) fn let_orphans_go(&self) {
        let Some(this) = self.arc() else {
            return;
        };
        let orphans: Vec<_> = {
            let inner = self.inner.lock();
            inner
                .held
                .iter()
                .map(|held| held.queue.clone())
                .filter(|q| q.is_orphaned())
                .collect()
        };
        for queue in orphans {
            this.give_up(&queue);
        }
    }

    // ---- serving ----------------------------------------------------------------------------------------

    /// Lets the device work on a queue until its ring has nothing new.
    pub(super) fn serve(self: &Arc<Self>, queue: &Arc<Queue>) {
        self.serve_as_asked(queue, false);
    }

    /// As [`serve`](Self::serve); a device that `asked` for it is called also when its ring has nothing new.
    fn serve_as_asked(self: &Arc<Self>, queue: &Arc<Queue>, mut asked: bool) {
        if queue.owner.is_recalled_relaxed() {
            return self.give_up(queue);
        }
        let polled = matches!(self.kind, Kind::Polled);
        for _ in 0..KICKS_IN_A_ROW {
            match queue.look() {
                Look::Busy => return,
                Look::Broken => return self.give_up(queue),
                Look::Empty if !asked => {}
                Look::Empty | Look::Work => {
                    asked = false;
                    if !self.kick(queue) {
                        return;
                    }
                }
            }
            if polled {
                return;
            }
            if self.busy.is_on() {
                return self.stay_unarmed(queue);
            }
            if !queue.rearm() {
                return;
            }
            queue.disable_notifications();
        }
        self.serve_later(queue);
    }

    /// One call of `kick`, and what must follow it. False if the queue needs no further look now.
    fn kick(self: &Arc<Self>, queue: &Arc<Queue>) -> bool {
        queue.disable_notifications();
        queue.set_in_kick(true);
        let answer = self.call_out(|| {
            queue
                .server
                .call(|device| device.kick(&mut Virtqueue::lend(queue)))
        });
        queue.set_in_kick(false);
        // The caller of a callback that has unwound or has lost the queue finds the same below.
        let _ = queue.flush();
        if queue.owner.is_recalled_relaxed() || queue.is_broken() {
            self.give_up(queue);
            return false;
        }
        match answer {
            Some(Kick::Done) => true,
            Some(Kick::Again) => {
                self.serve_later(queue);
                false
            }
            // Poisoned: the internal thread takes everything down.
            None => false,
        }
    }

    fn serve_later(&self, queue: &Arc<Queue>) {
        let first = {
            let mut inner = self.inner.lock();
            let first = inner.again.is_empty();
            if !inner.again.iter().any(|other| Arc::ptr_eq(other, queue)) {
                inner.again.push_back(queue.clone());
            }
            first
        };
        if first && self.is_foreign() {
            // At once: the loop may go on nested in another queue's callback.
            self.ring();
        }
    }

    /// Serves each queue that asked for it once; true if there were any.
    pub(super) fn serve_again(self: &Arc<Self>) -> bool {
        let waiting = self.inner.lock().again.len();
        // One at a time: a loop that nests in one's kick serves the others.
        for _ in 0..waiting {
            let Some(queue) = self.inner.lock().again.pop_front() else {
                break;
            };
            if queue.owner.load().held_by(self.id) {
                self.serve_as_asked(&queue, true);
            }
        }
        waiting > 0
    }

    fn stay_unarmed(&self, queue: &Arc<Queue>) {
        let mut inner = self.inner.lock();
        if !inner.unarmed.iter().any(|other| Arc::ptr_eq(other, queue)) {
            inner.unarmed.push_back(queue.clone());
        }
    }

    /// The next held queue, from `from` on, whose ring has something new. One relaxed load a queue.
    pub(super) fn next_ready(&self, from: usize) -> Option<(usize, Arc<Queue>)> {
        let inner = self.inner.lock();
        inner.held[from.min(inner.held.len())..]
            .iter()
            .position(|held| held.queue.peek())
            .map(|at| (from + at, inner.held[from + at].queue.clone()))
    }

    // ---- events -----------------------------------------------------------------------------------------

    fn read_stream_mail(self: &Arc<Self>, server: &Arc<Shared>, scope: Scope) -> bool {
        let ownership = server.stream.owner.load();
        if ownership.context != self.id {
            return true;
        }
        match ownership.state {
            State::Offered if !scope.allows(server) => return false,
            State::Offered => {
                if registry::change(|| server.stream.owner.take(self.id)).is_some() {
                    self.deliver(server);
                }
            }
            // Being delivered further down the stack, which looks at the word again.
            _ if server.stream.is_delivering() => {}
            State::Owned | State::Recalled => self.deliver(server),
            State::Internal => {}
        }
        true
    }

    /// Delivers what is pending, then hands the stream back.
    pub(crate) fn deliver(self: &Arc<Self>, server: &Arc<Shared>) {
        while !server.stream.owner.is_recalled_relaxed() {
            let Some((number, event)) = server.stream.next() else {
                break;
            };
            self.call_out(|| deliver_event(server, event));
            server.stream.finished(number);
        }
        self.hand_back_stream(server);
    }

    pub(crate) fn hand_back_stream(&self, server: &Arc<Shared>) {
        registry::change(|| server.stream.owner.give_back(self.id));
        if server.lifecycle.is_idle() {
            // `stopped` may have come after the last look at the stream, and nobody else is left to offer it.
            offer_stream(server);
        }
        // `stopped` was the last event: the context is no longer attached, unless the server is started again.
        server.lifecycle.while_idle(|| {
            if server.stream.is_empty() && server.stream.owner.load().state == State::Internal {
                registry::change(|| server.stream.owner.set_target(CtxId::NONE));
            }
        });
        server.handed_back();
    }
}

fn deliver_event(server: &Arc<Shared>, event: Event) {
    let event = match event {
        Event::Stopped => return server.call_stopped(),
        Event::Completed(finished) => return server.tell(finished),
        event => event,
    };
    server.call(|device| match event {
        Event::Connected => device.connected(),
        Event::FeaturesAcked {
            features,
            protocol_features,
        } => device.features_acked(features, protocol_features),
        Event::ConfigWritten { offset, size } => device.config_written(offset, size),
        Event::Reset => device.reset(),
        Event::StatusSet { status } => device.status_set(status),
        Event::Asked(question) => question.put(device),
        Event::QueueStopped { index } => device.queue_stopped(index),
        Event::RingBroken {
            index,
            errno,
            reason,
        } => device.ring_broken(index, errno, &reason),
        Event::Orphaned { index } => device.orphaned(index),
        Event::Disconnected { errno, reason } => device.disconnected(errno, &reason),
        // Above.
        Event::Stopped | Event::Completed(_) => {}
    });
}

//! Setting rings up, starting and stopping them.

use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::context::owner::State;
use crate::context::{Mail, registry};
use crate::device::StopReason;
use crate::error::Error;
use crate::features::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::protocol::features::F_PROTOCOL_FEATURES;
use crate::protocol::messages::{VringFd, VringState};
use crate::stream::Event;
use crate::sync::Arc;
use crate::transport::Message;
use crate::virtqueue::kick::KickSource;
use crate::virtqueue::place::Base;
use crate::virtqueue::ring::RingFeatures;
use crate::virtqueue::signal::SignalFd;
use crate::virtqueue::vq::resolve;
use crate::virtqueue::{Queue, Setup};

use super::dispatch::{Answer, Fault, Handled};
use super::vring::Vring;
use super::{End, Session};

impl Session {
    pub(super) fn has_event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    pub(super) fn any_started(&self) -> bool {
        self.vrings.iter().any(|vring| vring.is_started())
    }

    pub(super) fn check_index(&self, index: u32) -> Result<usize, Fault> {
        if (index as usize) < self.vrings.len() {
            return Ok(index as usize);
        }
        Err(Fault::refuse(
            libc::EINVAL,
            format!("queue {index}: the device has {}", self.vrings.len()),
        ))
    }

    /// Where the ring begins: what the front-end has said, or the beginning, where a packed ring has both wrap counters 1.
    ///
    /// # Errors
    /// A packed ring of this size has no such place.
    fn base(&self, index: usize) -> Result<Base, Fault> {
        let Vring { base, size, .. } = self.vrings[index];
        match base {
            None => Ok(Base::default()),
            Some(num) if self.is_packed() => {
                Base::packed(num, size).ok_or_else(|| bad_base(index, num, size))
            }
            Some(num) => Ok(Base::split(num)),
        }
    }

    /// A base in the form of SET_VRING_BASE.
    fn base_word(&self, base: Base, size: u16) -> u32 {
        if self.is_packed() {
            base.packed_word(size)
        } else {
            base.split_word()
        }
    }

    /// The ring runs, or will as soon as the device has heard what precedes it. One that was only kicked runs
    /// when its last piece comes: front-ends may send the pieces in any order.
    fn is_running(&self, index: usize) -> bool {
        let may_run = || {
            let queue = self.shared.queue(index as u32)?;
            let setup = self.setup(index)?;
            let _ = self.base(index).ok()?;
            let enabled = queue.is_enabled() || self.shared.config.run_disabled_queues;
            let resolved = resolve(&setup, &self.shared.table.current(), index as u32).is_ok();
            Some(enabled && resolved)
        };
        self.vrings[index].prepared || may_run() == Some(true)
    }

    /// A ring that was kicked and enabled and yet cannot run would otherwise wait without a word.
    fn log_why_waiting(&self, index: usize) {
        let (Some(setup), Some(queue)) = (self.setup(index), self.shared.queue(index as u32))
        else {
            return;
        };
        if !queue.is_enabled() {
            return;
        }
        if let Err(Fault::Refuse(error)) = self.base(index) {
            self.shared
                .logger
                .warning(format_args!("{error}; the ring waits for another one"));
        }
        if let Err(error) = resolve(&setup, &self.shared.table.current(), index as u32) {
            self.shared
                .logger
                .warning(format_args!("{error}; the ring waits for its memory"));
        }
    }

    pub(super) fn refuse_running(&self, index: usize, what: &str) -> Result<(), Fault> {
        if self.is_running(index) {
            return Err(Fault::refuse(
                libc::EBUSY,
                format!("queue {index}: {what} changed while the ring is started"),
            ));
        }
        Ok(())
    }

    pub(super) fn queue(&self, index: usize) -> Result<Arc<Queue>, Fault> {
        self.shared
            .queue(index as u32)
            .ok_or_else(|| Fault::refuse(libc::EINVAL, format!("queue {index}: gone")))
    }

    pub(super) fn set_vring_num(&mut self, message: &mut Message) -> Handled {
        let VringState { index, num } = VringState::decode(&message.body)?;
        let index = self.check_index(index)?;
        let max = u32::from(self.shared.config.max_queue_size);
        // Before the features are known it may be either kind of ring.
        let odd = self.features_set && !self.is_packed() && !num.is_power_of_two();
        if odd || num == 0 || num > max {
            let legal = if odd { "a power of two" } else { "1" };
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: size {num}: not {legal} up to {max}"),
            ));
        }
        if num as u16 != self.vrings[index].size {
            self.refuse_running(index, "size")?;
        }
        self.vrings[index].size = num as u16;
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_base(&mut self, message: &mut Message) -> Handled {
        let VringState { index, num } = VringState::decode(&message.body)?;
        let index = self.check_index(index)?;
        self.refuse_running(index, "base")?;
        let size = self.vrings[index].size;
        if self.is_packed() && size != 0 && Base::packed(num, size).is_none() {
            return Err(bad_base(index, num, size));
        }
        self.vrings[index].base = Some(num);
        self.vrings[index].stood = None;
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_endian(&mut self, message: &mut Message) -> Handled {
        let VringState { index, num } = VringState::decode(&message.body)?;
        let index = self.check_index(index)?;
        let refuse = |why: &str| {
            Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: byte order {num}: {why}"),
            )
        };
        if num > 1 {
            return Err(refuse("neither 0 (little-endian) nor 1 (big-endian)"));
        }
        if num == 1 && self.features & VERSION_1 != 0 {
            return Err(refuse("a ring of a modern device is little-endian"));
        }
        self.refuse_running(index, "byte order")?;
        self.vrings[index].big_endian = Some(num == 1);
        Ok(Answer::Done)
    }

    fn is_big_endian(&self, vring: &Vring) -> bool {
        let legacy = self.features & VERSION_1 == 0;
        legacy && vring.big_endian.unwrap_or(cfg!(target_endian = "big"))
    }

    // ---- descriptors ------------------------------------------------------------------------------------

    /// The index, and the descriptor unless the message says that there is none.
    fn vring_fd(
        &self,
        message: &mut Message,
    ) -> Result<(usize, Option<std::os::fd::OwnedFd>), Fault> {
        let VringFd { index, nofd } = VringFd::decode(&message.body)?;
        let index = self.check_index(index)?;
        // The table of requests has made sure that there is one exactly when there must be.
        Ok((index, if nofd { None } else { message.fds.pop() }))
    }

    pub(super) fn set_vring_kick(&mut self, message: &mut Message) -> Handled {
        let (index, fd) = self.vring_fd(message)?;
        let source = match fd {
            Some(fd) => KickSource::from_fd(fd),
            None if self.is_in_band() => KickSource::in_band(),
            None => KickSource::timer(),
        }
        .map_err(|e| descriptor_error(index, "kick", e))?;
        if self.vrings[index].is_started() {
            // Through the owner, so that the old watch is removed before its descriptor is closed.
            self.take_back(index, StopReason::Reconfigured)?;
            self.vrings[index].kick = Some(Arc::new(source));
            self.change_kick(index)?;
            return Ok(Answer::Done);
        }
        self.start_ring(index, source);
        Ok(Answer::Done)
    }

    pub(super) fn start_ring(&mut self, index: usize, source: KickSource) {
        // What runs changes the state, and a transfer is of one that does not.
        self.cancel_transfer("a ring is started");
        let after_event = self.shared.stream.newest();
        let vring = &mut self.vrings[index];
        vring.kick = Some(Arc::new(source));
        vring.stood = None;
        vring.prepared = false;
        vring.after_event = after_event;
        self.used_since_owner = true;
        self.log_why_waiting(index);
    }

    fn change_kick(&mut self, index: usize) -> Result<(), Fault> {
        if self.vrings[index].prepared
            && let Some(setup) = self.setup(index)
        {
            self.queue(index)?.prepare(setup, None);
        }
        Ok(())
    }

    pub(super) fn set_vring_call(&mut self, message: &mut Message) -> Handled {
        let (index, fd) = self.vring_fd(message)?;
        let queue = self.queue(index)?;
        self.set_signal(index, "call", &queue.call, fd)?;
        if self.vrings[index].is_started() {
            // A completion may have signalled the old descriptor just now, which nobody reads any more.
            queue.notify();
        }
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_err(&mut self, message: &mut Message) -> Handled {
        let (index, fd) = self.vring_fd(message)?;
        let queue = self.queue(index)?;
        self.set_signal(index, "err", &queue.err, fd)?;
        Ok(Answer::Done)
    }

    fn set_signal(
        &self,
        index: usize,
        name: &str,
        signal: &SignalFd,
        fd: Option<std::os::fd::OwnedFd>,
    ) -> Result<(), Fault> {
        match fd {
            Some(fd) => signal
                .set(fd, self.shared.internal.as_fd())
                .map_err(|e| descriptor_error(index, name, e)),
            None => {
                signal.clear(self.shared.internal.as_fd(), self.is_in_band());
                Ok(())
            }
        }
    }

    // ---- starting and stopping --------------------------------------------------------------------------

    pub(super) fn set_vring_enable(&mut self, message: &mut Message) -> Handled {
        let VringState { index, num } = VringState::decode(&message.body)?;
        let index = self.check_index(index)?;
        // QEMU enables the rings of a network device before it sends the features.
        if self.features_set && self.features & F_PROTOCOL_FEATURES == 0 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: enable without the protocol features bit"),
            ));
        }
        if num > 1 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: enable {num}"),
            ));
        }
        let queue = self.queue(index)?;
        queue.set_enabled(num == 1);
        if num == 1 {
            self.look_again(&queue);
            self.log_why_waiting(index);
        }
        if num == 0 && !self.shared.config.run_disabled_queues && self.vrings[index].is_started() {
            self.take_back(index, StopReason::Disabled)?;
        }
        Ok(Answer::Done)
    }

    /// A device that runs disabled rings may have left buffers lying because this one was.
    pub(super) fn look_again(&self, queue: &Arc<Queue>) {
        let ownership = queue.owner.load();
        if ownership.state == State::Owned
            && let Some(context) = registry::get(ownership.context)
        {
            context.post(Mail::Queue(queue.clone()));
        }
    }

    /// What the owner needs to know about a ring; `None` until size, addresses and kick are known.
    fn setup(&self, index: usize) -> Option<Setup> {
        let vring = &self.vrings[index];
        let kick = vring.kick.clone()?;
        if vring.size == 0 {
            return None;
        }
        let [desc, avail, used] = self.user_areas(index)?;
        Some(Setup {
            incarnation: 0,
            size: vring.size,
            packed: self.is_packed(),
            desc,
            avail,
            used,
            features: RingFeatures {
                indirect: self.features & INDIRECT_DESC != 0,
                event_idx: self.has_event_idx(),
                big_endian: self.is_big_endian(vring),
            },
            inflight: self
                .inflight
                .as_ref()
                .filter(|_| !self.is_packed())
                .and_then(|area| area.region(index)),
            kick,
        })
    }

    /// Prepares a ring for its first offer. False while something is missing: nothing touches a ring until
    /// its size, addresses, memory and kick are all there.
    pub(super) fn prepare(&mut self, index: usize) -> bool {
        if self.vrings[index].prepared {
            return true;
        }
        let (Some(setup), Some(queue)) = (self.setup(index), self.shared.queue(index as u32))
        else {
            self.ask_for_areas(index);
            return false;
        };
        let Ok(base) = self.base(index) else {
            return false;
        };
        if resolve(&setup, &self.shared.table.current(), index as u32).is_err() {
            return false;
        }
        let log_base = self.vrings[index].addresses.and_then(|a| a.log_base());
        queue.set_used_log_base(log_base);
        queue.prepare(setup, Some(base));
        self.vrings[index].prepared = true;
        true
    }

    pub(super) fn get_vring_base(&mut self, message: &mut Message) -> Handled {
        let VringState { index, .. } = VringState::decode(&message.body)?;
        let at = self.check_index(index)?;
        if self.vrings[at].is_started() {
            self.stop_rings(&[at], StopReason::VringBase)?;
        }
        let Vring {
            base, stood, size, ..
        } = self.vrings[at];
        let num = stood
            .or(base)
            .unwrap_or_else(|| self.base_word(Base::default(), size));
        let reply = VringState { index, num };
        Ok(Answer::Reply(reply.encode()))
    }

    /// Stops started rings: takes them back, waits for what each has in flight, and remembers where each
    /// stands. Other rings go on.
    pub(super) fn stop_rings(&mut self, indexes: &[usize], reason: StopReason) -> Result<(), End> {
        let mut queues = Vec::with_capacity(indexes.len());
        for &index in indexes {
            // From here on it is not offered again.
            self.vrings[index].kick = None;
            if let Some(queue) = self.shared.queue(index as u32) {
                self.recall(&queue, reason);
                queues.push((index, queue));
            }
        }
        self.wait_until(|_| queues.iter().all(|(_, queue)| queue.is_drained()))?;
        // What broke as it was given back is told before it is forgotten.
        self.report_broken()?;
        for (index, queue) in queues {
            queue.retire();
            queue.forget_setup();
            if self.vrings[index].prepared {
                let base = self.base_word(queue.base(), self.vrings[index].size);
                let vring = &mut self.vrings[index];
                vring.base = Some(base);
                vring.prepared = false;
                self.shared.stream.push(Event::QueueStopped {
                    index: index as u32,
                });
            }
        }
        Ok(())
    }
}

fn bad_base(index: usize, num: u32, size: u16) -> Fault {
    Fault::refuse(
        libc::EINVAL,
        format!("queue {index}: base {num:#x}: an index is not below the queue size {size}"),
    )
}

fn descriptor_error(index: usize, name: &str, errno: Errno) -> Fault {
    Fault::Refuse(Error::new(
        errno as i32,
        format!("queue {index}: {name} descriptor: {}", errno.desc()),
    ))
}

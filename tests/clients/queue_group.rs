//! Some queues of a client, for one thread that drives them.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{BlkQueue, Deadline, Wait};

/// The time in which something must complete while requests are in flight.
const PROGRESS: Duration = Duration::from_secs(20);

pub struct QueueGroup<'a> {
    queues: Vec<&'a mut BlkQueue>,
    wait: Wait,
}

// SAFETY: the group has its queues for itself, and a queue is its own part of the shared memory with
// descriptors of its own: nothing of it belongs to a thread.
unsafe impl Send for QueueGroup<'_> {}

impl<'a> QueueGroup<'a> {
    pub fn new(queues: Vec<&'a mut BlkQueue>, wait: Wait) -> Self {
        QueueGroup { queues, wait }
    }

    pub fn queues(&mut self) -> impl ExactSizeIterator<Item = &mut BlkQueue> {
        self.queues.iter_mut().map(|queue| &mut **queue)
    }

    /// Returns when some queue has a completion; fails when none comes.
    pub fn wait(&mut self) -> io::Result<()> {
        let deadline = Deadline::after(PROGRESS);
        match self.wait {
            Wait::Polling => self.spin(&deadline),
            Wait::EventFd => self.sleep(&deadline),
        }
    }

    fn has_completion(&mut self) -> bool {
        self.queues().any(BlkQueue::has_completion)
    }

    fn spin(&mut self, deadline: &Deadline) -> io::Result<()> {
        let mut turns = 0u32;
        while !self.has_completion() {
            std::hint::spin_loop();
            turns = turns.wrapping_add(1);
            // A look at the clock takes longer than a look at the ring.
            if turns & 0xffff == 0 && deadline.left().is_zero() {
                return Err(no_completion());
            }
        }
        Ok(())
    }

    fn sleep(&mut self, deadline: &Deadline) -> io::Result<()> {
        self.queues().for_each(|queue| queue.set_notified(true));
        let mut found = self.has_completion();
        while !found && !deadline.left().is_zero() {
            self.wait_for_call(deadline)?;
            found = self.has_completion();
        }
        self.queues().for_each(|queue| queue.set_notified(false));
        if found { Ok(()) } else { Err(no_completion()) }
    }

    fn wait_for_call(&self, deadline: &Deadline) -> io::Result<()> {
        let calls = self.queues.iter().map(|queue| queue.call().as_fd());
        let mut fds: Vec<PollFd> = calls.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let millis = u16::try_from(deadline.left().as_millis() + 1).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        for queue in &self.queues {
            // Another queue's eventfd may have been the one that was signalled.
            match queue.call().read() {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn no_completion() -> io::Error {
    let text = format!("no completion within {PROGRESS:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

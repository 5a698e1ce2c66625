//! What the drivers of both kinds of ring have in common, for all that does not care which it is.

use std::sync::Arc;

use super::deadline::Deadline;
use super::driver::{Seg, SplitDriver, Used};
use super::error::Result;
use super::eventfd::EventFd;
use super::inflight::Form;
use super::memory::GuestMemory;
use super::packed_driver::PackedDriver;
use super::packed_ring::Position;
use super::wire::{VringAddr, feature};

pub trait Driver: Sized {
    /// Features that choose this kind of ring.
    const FEATURES: u64;
    /// The base of a ring that was never used.
    const START: u32;
    /// Of its in-flight region.
    const INFLIGHT: Form;

    fn new(memory: &Arc<GuestMemory>, size: u16, event_idx: bool) -> Result<Self>;
    /// Forgets everything and clears the ring, as a rebooted guest does.
    fn restart(&mut self) -> Result<()>;
    fn vring_addr(&self, index: u32) -> Result<VringAddr>;
    /// The base for a device that is to go on behind the last completion.
    fn used_base(&self) -> Result<u32>;

    fn size(&self) -> u16;
    fn memory(&self) -> &Arc<GuestMemory>;
    fn kick_fd(&self) -> &EventFd;
    fn call_fd(&self) -> &EventFd;
    fn err_fd(&self) -> &EventFd;

    fn add(&mut self, segs: &[Seg]) -> Result<u16>;
    fn add_indirect(&mut self, segs: &[Seg]) -> Result<u16>;
    fn publish(&mut self) -> Result<()>;
    fn kick(&mut self) -> Result<bool>;
    fn poll_used(&mut self) -> Result<Option<Used>>;
    fn wait_used(&mut self, deadline: Deadline) -> Result<Used>;

    /// Adds a direct chain, publishes it and kicks if wanted.
    fn submit(&mut self, segs: &[Seg]) -> Result<u16> {
        let head = self.add(segs)?;
        self.publish()?;
        self.kick()?;
        Ok(head)
    }
}

/// What has the same name and meaning in both.
macro_rules! same {
    ($driver:ident) => {
        fn new(memory: &Arc<GuestMemory>, size: u16, event_idx: bool) -> Result<Self> {
            $driver::new(memory, size, event_idx)
        }

        fn vring_addr(&self, index: u32) -> Result<VringAddr> {
            self.ring.layout().vring_addr(self.memory(), index)
        }

        fn size(&self) -> u16 {
            $driver::size(self)
        }

        fn memory(&self) -> &Arc<GuestMemory> {
            $driver::memory(self)
        }

        fn kick_fd(&self) -> &EventFd {
            &self.kick
        }

        fn call_fd(&self) -> &EventFd {
            &self.call
        }

        fn err_fd(&self) -> &EventFd {
            &self.err
        }

        fn add(&mut self, segs: &[Seg]) -> Result<u16> {
            $driver::add(self, segs)
        }

        fn add_indirect(&mut self, segs: &[Seg]) -> Result<u16> {
            $driver::add_indirect(self, segs)
        }

        fn publish(&mut self) -> Result<()> {
            $driver::publish(self)
        }

        fn kick(&mut self) -> Result<bool> {
            $driver::kick(self)
        }

        fn poll_used(&mut self) -> Result<Option<Used>> {
            $driver::poll_used(self)
        }

        fn wait_used(&mut self, deadline: Deadline) -> Result<Used> {
            $driver::wait_used(self, deadline)
        }
    };
}

impl Driver for SplitDriver {
    const FEATURES: u64 = 0;
    const START: u32 = 0;
    const INFLIGHT: Form = Form::SPLIT;

    fn restart(&mut self) -> Result<()> {
        self.reset(0)
    }

    fn used_base(&self) -> Result<u32> {
        self.ring.used_idx().map(u32::from)
    }

    same!(SplitDriver);
}

impl Driver for PackedDriver {
    const FEATURES: u64 = feature::RING_PACKED;
    const START: u32 = 0x8000_8000;
    const INFLIGHT: Form = Form::PACKED;

    fn restart(&mut self) -> Result<()> {
        self.reset(Position::START)
    }

    fn used_base(&self) -> Result<u32> {
        let used = u32::from(self.used()?.encode());
        Ok(used << 16 | used)
    }

    same!(PackedDriver);
}

//! Guest memory: the table, and regions that come and go while rings run.

use crate::context::owner::State;
use crate::context::{Mail, registry};
use crate::memory::{MAX_SLOTS, MemoryError, MemoryPolicy, RegionDesc, RegionTable};
use crate::protocol::messages::{MemTable, MemoryRegion, SingleRegion, is_postcopy_marker};
use crate::sync::Ordering;
use crate::transport::Message;

use super::dispatch::{Answer, Fault, Handled};
use super::{End, Session};

fn desc(region: &MemoryRegion) -> RegionDesc {
    RegionDesc {
        gpa: region.guest_address,
        size: region.size,
        user_addr: region.user_address,
        mmap_offset: region.mmap_offset,
    }
}

impl From<MemoryError> for Fault {
    fn from(error: MemoryError) -> Self {
        Fault::refuse(error.errno(), error.to_string())
    }
}

/// The acknowledgement marker of postcopy has no meaning without postcopy.
fn refuse_marker(message: &Message) -> Result<(), Fault> {
    if is_postcopy_marker(&message.body) {
        return Err(Fault::refuse(
            libc::EINVAL,
            "postcopy marker without postcopy",
        ));
    }
    Ok(())
}

impl Session {
    pub(super) fn policy(&self) -> MemoryPolicy {
        MemoryPolicy {
            require_shrink_seal: self.shared.config.require_sealed_memory,
        }
    }

    pub(super) fn set_mem_table(&mut self, message: &mut Message) -> Handled {
        refuse_marker(message)?;
        let table = MemTable::decode(&message.body)?;
        let regions: Vec<_> = table
            .regions
            .iter()
            .map(desc)
            .zip(message.fds.drain(..))
            .collect();
        let current = self.shared.table.current();
        let next = current.replaced(&regions, self.policy(), current.generation() + 1)?;
        self.publish(next)?;
        Ok(Answer::Done)
    }

    pub(super) fn get_max_mem_slots(&mut self, _: &mut Message) -> Handled {
        Ok(Answer::u64(MAX_SLOTS as u64))
    }

    pub(super) fn add_mem_reg(&mut self, message: &mut Message) -> Handled {
        use std::os::fd::AsFd;
        refuse_marker(message)?;
        let SingleRegion(region) = SingleRegion::decode_add(&message.body)?;
        let Some(fd) = message.fds.first() else {
            return Err(Fault::refuse(
                libc::EINVAL,
                "memory region without a descriptor",
            ));
        };
        let current = self.shared.table.current();
        let next = current.with_added(
            desc(&region),
            fd.as_fd(),
            self.policy(),
            current.generation() + 1,
        )?;
        self.publish(next)?;
        Ok(Answer::Done)
    }

    pub(super) fn rem_mem_reg(&mut self, message: &mut Message) -> Handled {
        refuse_marker(message)?;
        let SingleRegion(region) = SingleRegion::decode_remove(&message.body)?;
        let current = self.shared.table.current();
        let next = current.with_removed(
            region.guest_address,
            region.size,
            region.user_address,
            current.generation() + 1,
        )?;
        self.publish(next)?;
        Ok(Answer::Done)
    }

    /// The same memory, with what else a table says as it is now.
    pub(super) fn publish_again(&mut self) -> Result<(), End> {
        let current = self.shared.table.current();
        self.publish(current.again(current.generation() + 1))
    }

    pub(super) fn forget_memory(&mut self) -> Result<(), End> {
        let generation = self.shared.table.generation();
        self.publish(RegionTable::empty(generation + 1))
    }

    /// Makes `table` the current one. When this returns, no pop uses an older one; what is mapped only in
    /// older ones goes with its last element and the last queue's pin.
    pub(super) fn publish(&mut self, table: RegionTable) -> Result<(), End> {
        let table = table
            .logged(self.active_log())
            .translated(self.translations());
        self.shared
            .counters
            .memory_regions
            .store(table.len() as u64, Ordering::Relaxed);
        self.shared.table.publish(table);
        let table = self.shared.table.current();
        for queue in self.shared.queues() {
            let ownership = queue.owner.load();
            match ownership.state {
                State::Internal => queue.rebase(&table),
                // Its owner renews the pin at its next pop or dispatch, unless it is just giving it back.
                _ => {
                    self.pins_pending = true;
                    if let Some(context) = registry::get(ownership.context) {
                        context.post(Mail::Queue(queue));
                    }
                }
            }
        }
        self.wait_for_pops()
    }

    /// A queue that was given back while the table changed has nobody else to let go of the old one.
    pub(super) fn renew_pins(&mut self) {
        if !std::mem::take(&mut self.pins_pending) {
            return;
        }
        let table = self.shared.table.current();
        for queue in self.shared.queues() {
            if !queue.is_behind(table.generation()) {
                continue;
            }
            match queue.owner.load().state {
                State::Internal => queue.rebase(&table),
                _ => self.pins_pending = true,
            }
        }
    }
}

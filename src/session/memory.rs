//! Guest memory: the table, and regions that come and go while rings run.

use crate::context::owner::State;
use crate::context::{Mail, registry};
use crate::memory::{MAX_SLOTS, MemoryError, MemoryPolicy, RegionDesc, RegionTable};
use crate::protocol::features::ProtocolFeatures;
use crate::protocol::messages::{MemTable, MemoryRegion, SingleRegion, is_postcopy_marker};
use crate::sync::{Arc, Ordering};
use crate::transport::Message;
use crate::virtqueue::Queue;

use super::dispatch::{Answer, Fault, Handled};
use super::{End, Session};

impl From<MemoryError> for Fault {
    fn from(error: MemoryError) -> Self {
        Fault::refuse(error.errno(), error.to_string())
    }
}

impl Session {
    pub(super) fn policy(&self) -> MemoryPolicy {
        MemoryPolicy {
            require_shrink_seal: self.shared.config.require_sealed_memory,
        }
    }

    /// The front-end's own address of a region, by which it names rings and translations. With GPA_ADDRESSES it names them
    /// by the guest's.
    pub(super) fn user_address_of(&self, region: &MemoryRegion) -> u64 {
        if self
            .protocol_features
            .contains(ProtocolFeatures::GPA_ADDRESSES)
        {
            region.guest_address
        } else {
            region.user_address
        }
    }

    fn desc(&self, region: &MemoryRegion) -> RegionDesc {
        RegionDesc {
            gpa: region.guest_address,
            size: region.size,
            user_addr: self.user_address_of(region),
            mmap_offset: region.mmap_offset,
        }
    }

    pub(super) fn set_mem_table(&mut self, message: &mut Message) -> Handled {
        if is_postcopy_marker(&message.body) {
            return self.finish_update();
        }
        let table = MemTable::decode(&message.body)?;
        let regions: Vec<_> = table
            .regions
            .iter()
            .map(|region| self.desc(region))
            .zip(message.fds.drain(..))
            .collect();
        let newest = self.newest_table();
        let next = newest.replaced(&regions, self.policy(), newest.generation() + 1)?;
        if self.postcopy.is_listening() {
            return self.announce_table(table, next);
        }
        self.publish(next)?;
        Ok(Answer::Done)
    }

    pub(super) fn get_max_mem_slots(&mut self, _: &mut Message) -> Handled {
        Ok(Answer::u64(MAX_SLOTS as u64))
    }

    pub(super) fn add_mem_reg(&mut self, message: &mut Message) -> Handled {
        use std::os::fd::AsFd;
        if is_postcopy_marker(&message.body) {
            return self.finish_update();
        }
        let SingleRegion(region) = SingleRegion::decode_add(&message.body)?;
        let Some(fd) = message.fds.first() else {
            return Err(Fault::refuse(
                libc::EINVAL,
                "memory region without a descriptor",
            ));
        };
        let newest = self.newest_table();
        let next = newest.with_added(
            self.desc(&region),
            fd.as_fd(),
            self.policy(),
            newest.generation() + 1,
        )?;
        if self.postcopy.is_listening() {
            return self.announce_region(region, next);
        }
        self.publish(next)?;
        Ok(Answer::Done)
    }

    pub(super) fn rem_mem_reg(&mut self, message: &mut Message) -> Handled {
        if is_postcopy_marker(&message.body) {
            return self.finish_update();
        }
        let SingleRegion(region) = SingleRegion::decode_remove(&message.body)?;
        let user_address = self.user_address_of(&region);
        let without = |table: &RegionTable, generation| {
            table.with_removed(region.guest_address, region.size, user_address, generation)
        };
        let (current, newest) = (self.shared.table.current(), self.newest_table());
        let update = without(&newest, newest.generation())?;
        // A region of an unfinished update may not be in use yet; one that is goes at once.
        let next = without(&current, current.generation() + 1);
        self.postcopy.replace_update(update);
        if let Ok(next) = next {
            self.publish(next)?;
        }
        Ok(Answer::Done)
    }

    /// The same memory, with what else a table says as it is now.
    pub(super) fn publish_again(&mut self) -> Result<(), End> {
        self.install_again();
        self.wait_for_pops()
    }

    /// As [`publish_again`](Self::publish_again), if a pop may go on with what the table said before.
    pub(super) fn install_again(&mut self) {
        let current = self.shared.table.current();
        self.install(current.again(current.generation() + 1));
    }

    pub(super) fn forget_memory(&mut self) -> Result<(), End> {
        let generation = self.shared.table.generation();
        self.postcopy.take_update();
        self.publish(RegionTable::empty(generation + 1))
    }

    /// Makes `table` the current one. When this returns, no pop uses an older one; what is mapped only in
    /// older ones goes with its last element and the last queue's pin.
    pub(super) fn publish(&mut self, table: RegionTable) -> Result<(), End> {
        self.install(table);
        self.wait_for_pops()
    }

    /// As [`publish`](Self::publish), where a pop may be stuck: if nothing is taken away, the front-end that could help it
    /// need not wait for it.
    pub(super) fn publish_update(&mut self, update: &RegionTable) -> Result<(), End> {
        let older = self.shared.table.current();
        self.install(update.again(older.generation() + 1));
        let keeps_all = self.shared.table.current().keeps_all_of(&older);
        drop(older);
        if keeps_all {
            return Ok(());
        }
        self.wait_for_pops()
    }

    fn install(&mut self, table: RegionTable) {
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
                State::Internal => self.rebase(&queue, &table),
                // Its owner renews the pin at its next pop or dispatch, unless it is just giving it back.
                _ => {
                    self.pins_pending = true;
                    if let Some(context) = registry::get(ownership.context) {
                        context.post(Mail::Queue(queue));
                    }
                }
            }
        }
        self.postcopy.keep_only(&table);
    }

    fn rebase(&mut self, queue: &Queue, table: &Arc<RegionTable>) {
        if !self.postcopy.is_listening() {
            queue.rebase(table);
        } else if !queue.try_rebase(table) {
            self.pins_pending = true;
            self.look_again_soon = true;
        }
    }

    /// A queue that was given back while the table changed has nobody else to let go of the old one.
    pub(super) fn renew_pins(&mut self) {
        self.look_again_soon = false;
        if !std::mem::take(&mut self.pins_pending) {
            return;
        }
        let table = self.shared.table.current();
        for queue in self.shared.queues() {
            if !queue.is_behind(table.generation()) {
                continue;
            }
            match queue.owner.load().state {
                State::Internal => self.rebase(&queue, &table),
                _ => self.pins_pending = true,
            }
        }
    }
}

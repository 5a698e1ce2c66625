//! Where the areas of a ring are, and how long.

use crate::features::RING_PACKED;
use crate::memory::Access;
use crate::protocol::messages::VringAddr;
use crate::transport::Message;
use crate::virtqueue::areas::{MAX_RING_SIZE, PACKED_AREAS, RingLayout, SPLIT_AREAS, SplitAreas};
use crate::virtqueue::packed_areas::PackedAreas;

use super::Session;
use super::dispatch::{Answer, Fault, Handled};

impl Session {
    /// The rings are packed ones, as far as the front-end has said.
    pub(super) fn is_packed(&self) -> bool {
        self.features & RING_PACKED != 0
    }

    /// How long the areas of a ring of this size are.
    pub(super) fn layout(&self, size: u16) -> RingLayout {
        if self.is_packed() {
            RingLayout::packed(size)
        } else {
            RingLayout::split(size, self.has_event_idx())
        }
    }

    /// Descriptor, available and used area: where the front-end says, how long, and what is done there. The descriptors of a
    /// packed ring are read and written.
    pub(super) fn areas(&self, index: usize, addr: &VringAddr) -> [(u64, u64, Access); 3] {
        let layout = self.layout(self.vrings[index].size);
        let desc = if self.is_packed() {
            Access::ReadWrite
        } else {
            Access::Read
        };
        [
            (addr.descriptor, layout.desc as u64, desc),
            (addr.available, layout.avail as u64, Access::Read),
            (addr.used, layout.used as u64, Access::Write),
        ]
    }

    fn area_names(&self) -> [&'static str; 3] {
        if self.is_packed() {
            PACKED_AREAS
        } else {
            SPLIT_AREAS
        }
    }

    fn aligns(&self) -> [usize; 3] {
        if self.is_packed() {
            let event = PackedAreas::EVENT_ALIGN;
            [PackedAreas::DESC_ALIGN, event, event]
        } else {
            [
                SplitAreas::DESC_ALIGN,
                SplitAreas::AVAIL_ALIGN,
                SplitAreas::USED_ALIGN,
            ]
        }
    }

    pub(super) fn set_vring_addr(&mut self, message: &mut Message) -> Handled {
        let addr = VringAddr::decode(&message.body)?;
        let index = self.check_index(addr.index)?;
        self.check_log_base(index, &addr)?;
        if addr.flags & !VringAddr::FLAG_LOG != 0 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: address flags {:#x}: unknown", addr.flags),
            ));
        }
        let addresses = [addr.descriptor, addr.available, addr.used];
        for ((name, address), align) in self.area_names().iter().zip(addresses).zip(self.aligns()) {
            if address % align as u64 != 0 {
                return Err(Fault::refuse(
                    libc::EINVAL,
                    format!("queue {index}: {name} at {address:#x}: not {align}-aligned"),
                ));
            }
        }
        let before = self.vrings[index].addresses;
        let same = before.is_some_and(|before| {
            (before.descriptor, before.available, before.used)
                == (addr.descriptor, addr.available, addr.used)
        });
        if !same {
            self.refuse_running(index, "addresses")?;
        }
        self.check_areas(index, &addr)?;
        self.vrings[index].addresses = Some(addr);
        if same && self.vrings[index].prepared {
            // At a migration the front-end says on a running ring that writes to it are to be logged, or are no more.
            self.queue(index)?.set_used_log_base(addr.log_base());
            if self.active_log().is_some() {
                self.change_logging()?;
            }
        }
        Ok(Answer::Done)
    }

    /// What is logged of the ring does not wrap in the log.
    fn check_log_base(&self, index: usize, addr: &VringAddr) -> Result<(), Fault> {
        let longest = if self.is_packed() {
            RingLayout::packed(MAX_RING_SIZE).desc as u64
        } else {
            RingLayout::split(MAX_RING_SIZE, true).used as u64
        };
        if addr.is_logged() && addr.log.checked_add(longest).is_none() {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("queue {index}: log address {:#x}: wraps", addr.log),
            ));
        }
        Ok(())
    }

    /// The rings lie in guest memory, in full length, as far as size and memory are known by now.
    fn check_areas(&self, index: usize, addr: &VringAddr) -> Result<(), Fault> {
        let table = self.shared.table.current();
        // What an IOMMU makes of the addresses is known when the ring starts.
        if table.is_empty() || self.vrings[index].size == 0 || self.iotlb.is_some() {
            return Ok(());
        }
        let areas = self.areas(index, addr);
        for (name, (address, len, _)) in self.area_names().iter().zip(areas) {
            if table.translate_user(address, len).is_none() {
                return Err(Fault::refuse(
                    libc::EFAULT,
                    format!(
                        "queue {index}: {name} at {address:#x}, {len} bytes: not in one region"
                    ),
                ));
            }
        }
        Ok(())
    }
}

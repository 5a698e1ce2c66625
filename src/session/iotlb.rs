//! Addresses behind an IOMMU (vhost-user specification, "IOMMU support").
//!
//! Buffers are translated when a chain is popped; a miss pauses that queue. Rings are translated before they are offered,
//! and the translation is theirs until they stop, so that a completion never misses. A translation that goes stops what
//! uses it before it is acknowledged: pops, and rings that lie in it. Requests that are popped keep the host's memory,
//! which stays mapped; a driver takes back what it has mapped for them only when they are completed.

use crate::device::StopReason;
use crate::memory::{Access, Iotlb as Translations, Obstacle};
use crate::protocol::messages::{Iotlb, IotlbKind};
use crate::sync::Arc;
use crate::transport::Message;

use super::dispatch::{Answer, Fault, Handled};
use super::{End, Session};

impl Session {
    /// The driver puts its addresses through an IOMMU, or does not.
    pub(super) fn switch_iotlb(&mut self, on: bool) -> Result<(), End> {
        if on == self.iotlb.is_some() {
            return Ok(());
        }
        self.iotlb = on.then(Arc::default);
        self.shared.misses.clear();
        self.publish_again()
    }

    pub(super) fn iotlb_msg(&mut self, message: &mut Message) -> Handled {
        let Some(current) = self.iotlb.clone() else {
            return Err(Fault::refuse(
                libc::ENOTSUP,
                "VIRTIO_F_ACCESS_PLATFORM: not negotiated",
            ));
        };
        let Iotlb {
            iova: first,
            size,
            user_address,
            permissions,
            kind,
        } = Iotlb::decode(&message.body)?;
        let last = first + (size - 1);
        let next = if kind == IotlbKind::Update {
            let user = self.user_address(user_address, size)?;
            current.with(first, last, user, permissions)
        } else {
            self.park_rings(first, last)?;
            current.without(first, last)
        };
        let keeps_all = next.keeps_all_of(&current);
        self.iotlb = Some(Arc::new(next));
        self.shared.misses.answered(first, last);
        if keeps_all {
            self.install_again();
        } else {
            self.publish_again()?;
        }
        Ok(Answer::u64(0))
    }

    /// The front-end's address in an update, all of whose bytes are guest memory.
    fn user_address(&self, user: u64, size: u64) -> Result<u64, Fault> {
        match self.shared.table.current().translate_user(user, size) {
            Some(_) => Ok(user),
            None => Err(Fault::refuse(
                libc::EFAULT,
                format!("IOTLB user address {user:#x}, size {size:#x}: not in one region"),
            )),
        }
    }

    /// Stops the rings that lie in a range of I/O virtual addresses, until they are translated anew.
    fn park_rings(&mut self, first: u64, last: u64) -> Result<(), End> {
        let hit: Vec<usize> = (0..self.vrings.len())
            .filter(|&index| self.vrings[index].prepared && self.lies_in(index, first, last))
            .collect();
        if hit.is_empty() {
            return Ok(());
        }
        let kicks: Vec<_> = hit.iter().map(|&i| self.vrings[i].kick.clone()).collect();
        self.stop_rings(&hit, StopReason::Reconfigured)?;
        for (index, kick) in hit.into_iter().zip(kicks) {
            self.vrings[index].kick = kick;
        }
        Ok(())
    }

    fn lies_in(&self, index: usize, first: u64, last: u64) -> bool {
        let overlaps = |(iova, len, _): (u64, u64, Access)| {
            iova <= last && first <= iova.saturating_add(len - 1)
        };
        self.vrings[index]
            .addresses
            .is_some_and(|addr| self.areas(index, &addr).into_iter().any(overlaps))
    }

    /// The front-end's own addresses of a ring: those it gave, or what they are translated to.
    pub(super) fn user_areas(&self, index: usize) -> Option<[u64; 3]> {
        let addr = self.vrings[index].addresses?;
        let areas = self.areas(index, &addr);
        match &self.iotlb {
            None => Some(areas.map(|(user, ..)| user)),
            Some(iotlb) => {
                let [desc, avail, used] =
                    areas.map(|(iova, len, access)| iotlb.to_user(iova, len, access));
                Some([desc.ok()?, avail.ok()?, used.ok()?])
            }
        }
    }

    /// Asks for what keeps a ring from being translated.
    pub(super) fn ask_for_areas(&self, index: usize) {
        let (Some(iotlb), Some(addr)) = (&self.iotlb, self.vrings[index].addresses) else {
            return;
        };
        for (iova, len, access) in self.areas(index, &addr) {
            if let Err(Obstacle::Miss(missing)) = iotlb.to_user(iova, len, access) {
                self.shared.ask_for_translation(missing, access);
            }
        }
    }

    /// There is a new channel, on which nothing has been asked yet.
    pub(super) fn ask_again(&mut self) {
        if self.iotlb.is_none() {
            return;
        }
        self.shared.misses.clear();
        for index in 0..self.vrings.len() {
            if !self.vrings[index].prepared {
                self.ask_for_areas(index);
            }
        }
        // Queues that are paused look again.
        self.install_again();
    }

    /// How the guest's addresses are translated now.
    pub(super) fn translations(&self) -> Option<Arc<Translations>> {
        self.iotlb.clone()
    }
}

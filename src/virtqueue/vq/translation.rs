//! A chain whose addresses the IOMMU has not translated yet: the queue pauses, the front-end is asked, and its answer is a
//! new table, with which the queue goes on by itself.

use crate::error::Result;
use crate::memory::Obstacle;
use crate::virtqueue::ring_error::RingError;

use super::set_up::ring_error;
use super::{Private, Queue};

impl Private {
    /// The next chain waits for a translation that the table does not have.
    pub(super) fn is_paused(&self) -> bool {
        let held = self.table.as_ref().map_or(0, |table| table.generation());
        self.paused != 0 && self.paused == held
    }
}

impl Queue {
    /// A chain cannot be popped because of an address. If that only lacks a translation, there is nothing to pop now: the
    /// available index stays where it is.
    pub(super) fn ask_for_translation(
        &self,
        private: &mut Private,
        error: RingError,
    ) -> Result<usize> {
        let broken = |error| Err(ring_error(self.index, &error));
        let RingError::Unmapped {
            head,
            addr,
            len,
            access,
        } = error
        else {
            return broken(error);
        };
        let Some(table) = &private.table else {
            return broken(error);
        };
        let Some(iotlb) = table.iotlb() else {
            return broken(error);
        };
        match iotlb.obstacle(table.regions(), addr, len.into(), access) {
            Some(Obstacle::Miss(iova)) => {
                private.paused = table.generation();
                self.server.ask_for_translation(iova, access);
                Ok(0)
            }
            Some(Obstacle::Denied(iova)) => {
                self.server.tell_denied(iova, access);
                broken(RingError::Denied {
                    head,
                    addr: iova,
                    access,
                })
            }
            Some(Obstacle::Unmapped(_)) | None => broken(error),
        }
    }
}

//! The in-flight area: memory in which a successor of this back-end finds what it was doing.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::error::{Error, Result};
use crate::memory::SharedArea;
use crate::protocol::messages::Inflight;
use crate::sync::Arc;
use crate::transport::Message;
use crate::virtqueue::inflight_area::InflightRegion;

use super::Session;
use super::dispatch::{Answer, Fault, Handled};

/// The area that the front-end has given.
pub(super) struct InflightArea {
    area: Arc<SharedArea>,
    queue_size: u16,
    /// Its regions are those of packed rings.
    packed: bool,
}

impl InflightArea {
    /// The region of a queue; `None` for one that the front-end has no region for, or one for the other kind of ring.
    pub(super) fn region(&self, index: usize, packed: bool) -> Option<InflightRegion> {
        let area = &self.area;
        let region = || InflightRegion::new(packed, area, index, self.queue_size);
        (packed == self.packed).then(region).flatten()
    }
}

impl Session {
    /// The front-end keeps what it gets here, and gives it back with [`set_inflight_fd`](Self::set_inflight_fd), also to
    /// whoever comes after this process.
    pub(super) fn get_inflight_fd(&mut self, message: &mut Message) -> Handled {
        let wanted = Inflight::decode(&message.body)?;
        let size = self.check_inflight(&wanted)?;
        let file = new_area(size)?;
        let reply = Inflight {
            mmap_size: size,
            mmap_offset: 0,
            ..wanted
        };
        Ok(Answer::ReplyWithFds(reply.encode(), vec![file]))
    }

    /// Rings that are started from here on use it.
    pub(super) fn set_inflight_fd(&mut self, message: &mut Message) -> Handled {
        let given = Inflight::decode(&message.body)?;
        let needed = self.check_inflight(&given)?;
        let Inflight {
            mmap_size,
            mmap_offset,
            queue_size,
            ..
        } = given;
        if mmap_size < needed {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("in-flight area of {mmap_size:#x} bytes: {needed:#x} are needed"),
            ));
        }
        if self.any_started() {
            return Err(Fault::refuse(
                libc::EBUSY,
                "in-flight area while a ring is started",
            ));
        }
        let Some(fd) = message.fds.first() else {
            return Err(Fault::refuse(
                libc::EINVAL,
                "in-flight area without a descriptor",
            ));
        };
        let area = SharedArea::map(
            "in-flight area",
            fd.as_fd(),
            mmap_offset,
            needed,
            self.policy(),
        )?;
        self.inflight = Some(InflightArea {
            area: Arc::new(area),
            queue_size,
            packed: self.is_packed(),
        });
        Ok(Answer::Done)
    }

    /// Bytes of the area that a message is about, for the kind of ring that is negotiated.
    fn check_inflight(&self, inflight: &Inflight) -> std::result::Result<u64, Fault> {
        let Inflight {
            num_queues,
            queue_size,
            ..
        } = *inflight;
        let (queues, size) = (
            self.shared.config.num_queues,
            self.shared.config.max_queue_size,
        );
        if u32::from(num_queues) > queues {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("in-flight area for {num_queues} queues: the device has {queues}"),
            ));
        }
        if queue_size > size {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("in-flight area for rings of {queue_size}: the largest is {size}"),
            ));
        }
        let region = InflightRegion::size(self.is_packed(), queue_size);
        Ok(u64::from(num_queues) * region as u64)
    }
}

/// Zeroes, in a file that nobody can make shorter.
fn new_area(size: u64) -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create(c"vu-inflight", flags)?;
    let length = i64::try_from(size)
        .map_err(|_| Error::invalid(format!("in-flight area of {size:#x} bytes")))?;
    ftruncate(&file, length)?;
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

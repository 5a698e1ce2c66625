//! Requests to the front-end.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::error::{Error, Result};
use crate::outbox::Reply;
use crate::protocol::messages::{ShmemArea, UUID_SIZE, VringArea};
use crate::protocol::requests::backend_id;

use super::Server;

/// A part of a shared memory region of the device's, and the part of a file that is to be seen there; see
/// [`Server::shmem_map`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemMapping {
    /// The region's shared memory ID: its place in [`ServerBuilder::shmem_regions`](crate::ServerBuilder).
    pub region: u8,
    /// Where in the region, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Where in the file, in bytes.
    pub fd_offset: u64,
    /// The driver may write there, too.
    pub writable: bool,
}

/// # Requests to the front-end
///
/// All may be made from any thread, and none waits: a request is queued, or refused at once with an error, and
/// then `done` is dropped without a call. Otherwise `done` is called exactly once, in the home context, in
/// order with the device's events (or at the latest when the server is freed, on the freeing thread): with the
/// front-end's answer, if REPLY_ACK is negotiated, else as soon as the request is on its way. Its errors are
/// `EREMOTEIO` (the front-end refuses), `ETIMEDOUT`
/// ([`ServerBuilder::reply_timeout`](crate::ServerBuilder::reply_timeout)) and `ECANCELED` (disconnect, stop,
/// or the front-end has closed or broken its channel).
///
/// The errors at once: `ENOTCONN` without a front-end that listens, `EOPNOTSUPP` without the protocol feature
/// (named in the message), `EAGAIN` when too many requests wait already (64 for their answers, 256 to be
/// sent), `EINVAL` for arguments out of range, `EMFILE`.
impl Server {
    /// Makes an object of this device's known to the others (SHARED_OBJECT_ADD). Who looks it up is referred
    /// to [`Device::shared_object`](crate::Device::shared_object).
    ///
    /// # Errors
    /// See above.
    pub fn object_add(
        &self,
        uuid: [u8; UUID_SIZE],
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.request(backend_id::SHARED_OBJECT_ADD, uuid.to_vec(), None, done)
    }

    /// Withdraws it (SHARED_OBJECT_REMOVE).
    ///
    /// # Errors
    /// See above.
    pub fn object_remove(
        &self,
        uuid: [u8; UUID_SIZE],
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.request(backend_id::SHARED_OBJECT_REMOVE, uuid.to_vec(), None, done)
    }

    /// Asks for the dma-buf of an object of any device (SHARED_OBJECT_LOOKUP). It has a reply of its own, with
    /// or without REPLY_ACK.
    ///
    /// # Errors
    /// See above; in `done` also `EREMOTEIO` if there is no such object.
    pub fn object_lookup(
        &self,
        uuid: [u8; UUID_SIZE],
        done: impl FnOnce(Result<OwnedFd>) + Send + 'static,
    ) -> Result<()> {
        self.queue_request(
            backend_id::SHARED_OBJECT_LOOKUP,
            uuid.to_vec(),
            None,
            Reply::Descriptor,
            move |result| {
                // An answer without a descriptor never comes as a success.
                done(result.and_then(|fd| fd.ok_or_else(|| Error::new(libc::EREMOTEIO, "no fd"))));
            },
        )
    }

    /// Shows a part of a file in a shared memory region of the device's (SHMEM_MAP; virtio 1.3, 2.10). The
    /// file is duplicated. The area must be free, and page-aligned as the front-end sees it.
    ///
    /// # Errors
    /// See above; `EINVAL` for an area outside of its region.
    pub fn shmem_map(
        &self,
        mapping: ShmemMapping,
        file: BorrowedFd<'_>,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.check_mapping(&mapping)?;
        let file = duplicate(file)?;
        let body = area(&mapping).encode();
        self.request(backend_id::SHMEM_MAP, body, Some(file), done)
    }

    /// Ends what [`shmem_map`](Self::shmem_map) began (SHMEM_UNMAP): `region`, `offset` and `len` are those of
    /// a whole mapping.
    ///
    /// # Errors
    /// See above; `EINVAL` for an area outside of its region.
    pub fn shmem_unmap(
        &self,
        mapping: ShmemMapping,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.check_mapping(&mapping)?;
        let body = ShmemArea {
            fd_offset: 0,
            writable: false,
            ..area(&mapping)
        };
        self.request(backend_id::SHMEM_UNMAP, body.encode(), None, done)
    }

    /// Lets the driver ring a queue's doorbell at `size` bytes from `offset` of `file` on, a page of hardware
    /// for one, in place of the kick descriptor; with `None` no longer (VRING_HOST_NOTIFIER_MSG). The file is
    /// duplicated.
    ///
    /// # Errors
    /// See above; `EINVAL` for a queue that there is not, or one above 255, which the message cannot name.
    pub fn set_host_notifier(
        &self,
        queue: u32,
        notifier: Option<(BorrowedFd<'_>, u64, u64)>,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let index = u8::try_from(self.queue(queue)?.index)
            .map_err(|_| Error::invalid(format!("queue {queue}: more than 255")))?;
        let (file, offset, size) = match notifier {
            Some((file, offset, size)) => (Some(duplicate(file)?), offset, size),
            None => (None, 0, 0),
        };
        if file.is_some() && (size == 0 || offset.checked_add(size).is_none()) {
            return Err(Error::invalid(format!(
                "host notifier of {size:#x} bytes at {offset:#x}"
            )));
        }
        let area = VringArea {
            index,
            nofd: file.is_none(),
            size,
            offset,
        };
        let id = backend_id::VRING_HOST_NOTIFIER_MSG;
        self.request(id, area.encode(), file, done)
    }

    fn request(
        &self,
        id: u32,
        body: Vec<u8>,
        fd: Option<OwnedFd>,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.queue_request(id, body, fd, Reply::Ack, move |result| {
            done(result.map(drop))
        })
    }

    fn queue_request(
        &self,
        id: u32,
        body: Vec<u8>,
        fd: Option<OwnedFd>,
        reply: Reply,
        done: impl FnOnce(Result<Option<OwnedFd>>) + Send + 'static,
    ) -> Result<()> {
        self.shared.check_poison()?;
        let timeout = self.shared.config.reply_timeout;
        self.shared
            .outbox
            .request(id, body, fd, reply, timeout, Box::new(done))?;
        self.shared.internal.ring();
        Ok(())
    }

    fn check_mapping(&self, mapping: &ShmemMapping) -> Result<()> {
        let regions = &self.shared.config.shmem_regions;
        let size = regions.get(usize::from(mapping.region)).copied();
        let end = mapping.offset.checked_add(mapping.len);
        let fits = size.zip(end).is_some_and(|(size, end)| end <= size);
        if mapping.len == 0 || !fits || mapping.fd_offset.checked_add(mapping.len).is_none() {
            return Err(Error::invalid(format!("{mapping:x?}: not in a region")));
        }
        Ok(())
    }
}

fn area(mapping: &ShmemMapping) -> ShmemArea {
    ShmemArea {
        region: mapping.region,
        fd_offset: mapping.fd_offset,
        offset: mapping.offset,
        len: mapping.len,
        writable: mapping.writable,
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
        Error::new(errno, format!("descriptor to be sent: {error}"))
    })
}

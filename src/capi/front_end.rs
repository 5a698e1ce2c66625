//! Requests to the front-end.

use std::ffi::{c_int, c_void};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};

use crate::error::{Error, Result};
use crate::protocol::messages::UUID_SIZE;
use crate::server::ShmemMapping;

use super::server::{vu_server, with_server};
use super::structs::{self, Extensible, layout};

/// Hears what has become of a request to the front-end; see
/// vu_server_object_add(). Called exactly once, in the home context, in order
/// with the device's other callbacks, or at the latest inside vu_server_free().
///
/// @param error 0; -EREMOTEIO: the front-end refuses; -ETIMEDOUT: it has not
///        answered within vu_server_config.reply_timeout_ms; -ECANCELED:
///        disconnect, stop, or the front-end has closed or broken its channel
/// @param fd what was asked for, from here on the program's to close; -1 after
///        an error, and where no descriptor is asked for
pub type vu_reply_fn = Option<unsafe extern "C" fn(opaque: *mut c_void, error: c_int, fd: c_int)>;

/// vu_shmem_mapping.flags: the driver may write there, too.
pub const VU_SHMEM_WRITABLE: u32 = 1;

/// A part of a shared memory region of the device's, and the part of a file that
/// is to be seen there; see vu_server_shmem_map().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vu_shmem_mapping {
    /// sizeof(vu_shmem_mapping), see VU_SHMEM_MAPPING_INIT.
    pub struct_size: usize,
    /// The region's shared memory ID: its place in
    /// vu_server_config.shmem_sizes.
    pub region: u32,
    /// VU_SHMEM_*; an unknown one is -EINVAL.
    pub flags: u32,
    /// Where in the region, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Where in the file, in bytes.
    pub fd_offset: u64,
}

layout!(vu_shmem_mapping, 40, {
    struct_size: 0,
    region: 8,
    flags: 12,
    offset: 16,
    len: 24,
    fd_offset: 32,
});

// SAFETY: repr(C), begins with its size, numbers only.
unsafe impl Extensible for vu_shmem_mapping {
    const NAME: &'static str = "mapping";
}

/// A program's function with its data.
struct Done {
    f: vu_reply_fn,
    opaque: *mut c_void,
}

// SAFETY: `opaque` is only passed on; on which thread is the contract that the header states.
unsafe impl Send for Done {}

impl Done {
    fn hear(self, result: Result<Option<OwnedFd>>) {
        let Some(f) = self.f else {
            return;
        };
        let (error, fd) = match result {
            Ok(fd) => (0, fd.map_or(-1, IntoRawFd::into_raw_fd)),
            Err(error) => (-error.errno(), -1),
        };
        // SAFETY: the program's function with its own data.
        unsafe { f(self.opaque, error, fd) };
    }
}

/// Makes an object of this device's known to the other devices of the virtual
/// machine (SHARED_OBJECT_ADD). Who looks it up is referred to
/// vu_device_ops.shared_object.
///
/// As for every request to the front-end: any thread, any callback; it does not
/// wait. If it returns 0, `done` is called once, with the front-end's answer if
/// REPLY_ACK is negotiated, else as soon as the request is on its way.
///
/// @param uuid 16 bytes in network byte order
/// @param done NULL: nobody hears of it
/// @return 0; -ENOTCONN without a front-end that listens, -EOPNOTSUPP without
///         the protocol feature, -EAGAIN when too many requests wait (64 for
///         their answers, 256 to be sent), -EINVAL for NULL, -ENOTRECOVERABLE
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_object_add(
    server: *mut vu_server,
    uuid: *const u8,
    done: vu_reply_fn,
    opaque: *mut c_void,
) -> c_int {
    let done = Done { f: done, opaque };
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            server.object_add(read_uuid(uuid)?, move |result| {
                done.hear(result.map(|()| None));
            })
        })
    }
}

/// Withdraws what vu_server_object_add() made known (SHARED_OBJECT_REMOVE).
///
/// @param uuid 16 bytes in network byte order
/// @param done NULL: nobody hears of it
/// @return as vu_server_object_add()
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_object_remove(
    server: *mut vu_server,
    uuid: *const u8,
    done: vu_reply_fn,
    opaque: *mut c_void,
) -> c_int {
    let done = Done { f: done, opaque };
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            server.object_remove(read_uuid(uuid)?, move |result| {
                done.hear(result.map(|()| None));
            })
        })
    }
}

/// Asks for the dma-buf of an object of any device (SHARED_OBJECT_LOOKUP), which
/// `done` gets. It is answered with or without REPLY_ACK; -EREMOTEIO if there is
/// no such object.
///
/// @param uuid 16 bytes in network byte order
/// @param done required
/// @return as vu_server_object_add()
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_object_lookup(
    server: *mut vu_server,
    uuid: *const u8,
    done: vu_reply_fn,
    opaque: *mut c_void,
) -> c_int {
    let done = Done { f: done, opaque };
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            if done.f.is_none() {
                return Err(Error::invalid("done: NULL"));
            }
            server.object_lookup(read_uuid(uuid)?, move |result| {
                done.hear(result.map(Some));
            })
        })
    }
}

/// Shows a part of a file in a shared memory region of the device's (SHMEM_MAP;
/// virtio 1.3, 2.10). The area must be free, and page-aligned as the front-end
/// sees it.
///
/// @param fd borrowed; the caller may close it after the return
/// @param done NULL: nobody hears of it
/// @return as vu_server_object_add(); -EINVAL for an area outside of its region,
///         -EBADF, -EMFILE
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_shmem_map(
    server: *mut vu_server,
    mapping: *const vu_shmem_mapping,
    fd: c_int,
    done: vu_reply_fn,
    opaque: *mut c_void,
) -> c_int {
    let done = Done { f: done, opaque };
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            server.shmem_map(read_mapping(mapping)?, borrow(fd)?, move |result| {
                done.hear(result.map(|()| None));
            })
        })
    }
}

/// Ends what vu_server_shmem_map() began (SHMEM_UNMAP).
///
/// @param mapping region, offset and len are those of a whole mapping
/// @param done NULL: nobody hears of it
/// @return as vu_server_object_add(); -EINVAL for an area outside of its region
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_shmem_unmap(
    server: *mut vu_server,
    mapping: *const vu_shmem_mapping,
    done: vu_reply_fn,
    opaque: *mut c_void,
) -> c_int {
    let done = Done { f: done, opaque };
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            server.shmem_unmap(read_mapping(mapping)?, move |result| {
                done.hear(result.map(|()| None));
            })
        })
    }
}

/// Lets the driver ring a queue's doorbell in a file that the front-end maps for
/// it, a page of hardware for one, in place of the kick descriptor
/// (VRING_HOST_NOTIFIER_MSG).
///
/// @param index the queue, up to 255
/// @param fd borrowed; the caller may close it after the return. -1: the
///        doorbell is withdrawn
/// @param offset where in the file, in bytes
/// @param size how many bytes, the host's page size for QEMU
/// @param done NULL: nobody hears of it
/// @return as vu_server_object_add(); -EINVAL if there is no such queue, -EBADF,
///         -EMFILE
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_host_notifier(
    server: *mut vu_server,
    index: u32,
    fd: c_int,
    offset: u64,
    size: u64,
    done: vu_reply_fn,
    opaque: *mut c_void,
) -> c_int {
    let done = Done { f: done, opaque };
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            let notifier = match fd {
                -1 => None,
                fd => Some((borrow(fd)?, offset, size)),
            };
            server.set_host_notifier(index, notifier, move |result| {
                done.hear(result.map(|()| None));
            })
        })
    }
}

/// # Safety
/// `uuid` is NULL or 16 bytes long.
unsafe fn read_uuid(uuid: *const u8) -> Result<[u8; UUID_SIZE]> {
    if uuid.is_null() {
        return Err(Error::invalid("uuid: NULL"));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { uuid.cast::<[u8; UUID_SIZE]>().read_unaligned() })
}

/// # Safety
/// As [`structs::read`].
unsafe fn read_mapping(mapping: *const vu_shmem_mapping) -> Result<ShmemMapping> {
    // SAFETY: the caller's promise.
    let mapping = unsafe { structs::read(mapping) }?;
    let unknown = mapping.flags & !VU_SHMEM_WRITABLE;
    if unknown != 0 {
        return Err(Error::invalid(format!(
            "mapping.flags {unknown:#x}: unknown"
        )));
    }
    let region = u8::try_from(mapping.region)
        .map_err(|_| Error::invalid(format!("mapping.region {}: over 255", mapping.region)))?;
    Ok(ShmemMapping {
        region,
        offset: mapping.offset,
        len: mapping.len,
        fd_offset: mapping.fd_offset,
        writable: mapping.flags & VU_SHMEM_WRITABLE != 0,
    })
}

/// # Safety
/// A descriptor that is open stays so during the call.
unsafe fn borrow<'a>(fd: c_int) -> Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(Error::new(libc::EBADF, format!("fd {fd}")));
    }
    // SAFETY: it is not -1; what is not open is found out when it is duplicated.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

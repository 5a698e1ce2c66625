//! `vu_server`: a device that front-ends can connect to.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::config_space;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::listener::Address;
use crate::server::Server;
use crate::shared::Shared;
use crate::sync::{Arc, AtomicBool, AtomicU32, Ordering};

use super::config::vu_server_config;
use super::ctx::{context, vu_ctx};
use super::device::{CDevice, vu_device_ops};
use super::error::{clear, set_up, vu_error};
use super::guard::{Count, guard, guard_for, status};
use super::structs;
use super::vq::vu_vq;

/// A virtio device that front-ends can connect to.
pub struct vu_server {
    /// Taken by `vu_server_free`. Explicit in-flight counts can outlive it: each is a reference to this handle.
    server: UnsafeCell<Option<Server>>,
    shared: Arc<Shared>,
    /// Calls of `vu_server_stop` that are not through.
    stops: AtomicU32,
    /// The log function must not be called any more.
    silent: Arc<AtomicBool>,
}

// SAFETY: everything in it is for any thread but the cell, which is written once, by `vu_server_free`, when nobody else
// uses the server any more; see the module's contract.
unsafe impl Send for vu_server {}
// SAFETY: as above.
unsafe impl Sync for vu_server {}

/// # Safety
/// NULL or a handle that is not freed, or that an in-flight count keeps.
unsafe fn handle<'a>(server: *const vu_server) -> Option<&'a vu_server> {
    // SAFETY: the caller's promise.
    unsafe { server.as_ref() }
}

/// Runs the body of a function on a server.
///
/// # Safety
/// NULL or a handle that is not freed, nor being freed meanwhile.
pub(super) unsafe fn with_server<T: Count>(
    server: *const vu_server,
    body: impl FnOnce(&Server) -> Result<T>,
) -> c_int {
    // SAFETY: the caller's promise; only `vu_server_free` writes to the cell.
    match unsafe { handle(server).map(|handle| (handle, &*handle.server.get())) } {
        Some((handle, Some(server))) => guard_for(&handle.shared, || status(body(server))),
        _ => -libc::EINVAL,
    }
}

/// Makes a server; it does nothing before vu_server_start().
///
/// @param config copied, with all that it points to
/// @param ops copied
/// @param dev passed to every function of `ops`. ops->destroy is called exactly
///        once for it, inside this function if it fails (unless `ops` is NULL
///        or its struct_size is refused), else inside vu_server_free().
/// @return 0; -EINVAL with the field named in `err`, -E2BIG (a structure uses
///         what this version does not know), -EMFILE, -ENFILE
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_new(
    config: *const vu_server_config,
    ops: *const vu_device_ops,
    dev: *mut c_void,
    server: *mut *mut vu_server,
    err: *mut *mut vu_error,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        clear(server);
        set_up(err, || {
            let device = CDevice::new(structs::read(ops)?, dev);
            if server.is_null() {
                device.destroy();
                return Err(Error::invalid("server: NULL"));
            }
            *server = new(config, device)?;
            Ok(())
        })
    }
}

/// # Safety
/// As [`vu_server_new`].
unsafe fn new(config: *const vu_server_config, device: CDevice) -> Result<*mut vu_server> {
    let silent = Arc::new(AtomicBool::new(false));
    // SAFETY: the caller's promise.
    let builder = device
        .check()
        .and_then(|()| unsafe { structs::read(config) })
        .and_then(|config| unsafe { config.builder(&silent) });
    let made = match builder {
        Ok(builder) => builder.build_boxed(Box::new(device)),
        Err(error) => Err((error, Box::new(device) as Box<dyn Device>)),
    };
    let server = made.map_err(|(error, device)| {
        device.destroy();
        error
    })?;
    let shared = server.shared().clone();
    let handle = Arc::into_raw(Arc::new(vu_server {
        server: UnsafeCell::new(Some(server)),
        shared: shared.clone(),
        stops: AtomicU32::new(0),
        silent,
    }))
    .cast_mut();
    // Release pairs with the Acquire of `vu_vq_server`.
    shared.handle.store(handle.cast(), Ordering::Release);
    Ok(handle)
}

/// Starts serving. Legal while new, and again after a stop.
///
/// @param address one of:
///        "unix:PATH" or "PATH": listen there; a socket file that nobody
///        listens on is replaced, and removed at stop.
///        "unix-connect:PATH": connect to a front-end that listens there, again
///        and again.
///        "fd:N": an inherited UNIX stream socket, which may listen or be
///        connected; takes ownership on success.
/// @param ctx the home context: where the device and its queues are served.
///        NULL: detached, until vu_server_attach_ctx().
/// @return 0; -EINVAL, -ENAMETOOLONG or -ENOTSOCK for an address that is none,
///         -EADDRINUSE if somebody listens there, -EBUSY unless new or stopped,
///         -EDEADLK inside a callback of the same server, -ENOTRECOVERABLE,
///         -EMFILE, -EAGAIN, and whatever else the system says about the
///         socket
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_start(
    server: *mut vu_server,
    address: *const c_char,
    ctx: *mut vu_ctx,
    err: *mut *mut vu_error,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        set_up(err, || {
            let Some(server) = handle(server).and_then(|handle| (*handle.server.get()).as_ref())
            else {
                return Err(Error::invalid("server: NULL"));
            };
            if address.is_null() {
                return Err(Error::invalid("address: NULL"));
            }
            let text = CStr::from_ptr(address)
                .to_str()
                .map_err(|_| Error::invalid("address: not UTF-8"))?;
            let (address, inherited) =
                borrow(Address::parse(text).map_err(|e| Error::new(e.errno(), e.to_string()))?)?;
            server.start(address, context(ctx))?;
            // Ownership is taken on success.
            drop(inherited.map(|fd| OwnedFd::from_raw_fd(fd)));
            Ok(())
        })
    }
}

/// An address that can be dropped without closing the caller's descriptor, and the number of that.
fn borrow(address: Address) -> Result<(Address, Option<RawFd>)> {
    let release = |fd: OwnedFd| {
        let copy = fd.try_clone();
        let number = fd.into_raw_fd();
        copy.map(|copy| (copy, number)).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Error::new(errno, format!("address: fd {number}: {error}"))
        })
    };
    Ok(match address {
        Address::ListenFd(fd) => {
            let (copy, number) = release(fd)?;
            (Address::ListenFd(copy), Some(number))
        }
        Address::ConnectedFd(fd) => {
            let (copy, number) = release(fd)?;
            (Address::ConnectedFd(copy), Some(number))
        }
        path => (path, None),
    })
}

/// A stop that is going on: the server must not be freed, not even by a callback that the stop runs.
struct InsideStop<'a>(&'a vu_server);

impl<'a> InsideStop<'a> {
    fn new(handle: &'a vu_server) -> Self {
        handle.stops.fetch_add(1, Ordering::AcqRel);
        InsideStop(handle)
    }
}

impl Drop for InsideStop<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `vu_server_free`.
        self.0.stops.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Stops, and returns when everything is down: queues handed back, elements in
/// flight drained (or cut off by the drain time-out), guest memory unmapped,
/// the socket closed and its file removed. A second call on another thread
/// joins the first; a new or stopped server is fine.
///
/// Meanwhile it serves every context that the calling thread owns, so that
/// vu_ctx_run() followed by vu_server_stop() on one thread just works.
///
/// @return 0; -EDEADLK, with nothing changed, inside any callback, and on a
///         thread that owns a context of the server's which is a foreign loop
///         without `poll`: vu_server_request_stop() is for those places.
///         -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_stop(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        let _inside = handle(server).map(InsideStop::new);
        with_server(server, Server::stop)
    }
}

/// Begins to stop and returns at once. vu_device_ops.stopped tells when it is
/// done, unless a vu_server_stop() was there first; while detached,
/// vu_server_config.wake does. Any thread, any callback.
///
/// @return 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_request_stop(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, Server::request_stop) }
}

/// Whether the server is new or stopped. Any thread.
///
/// @return 1 or 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_is_stopped(server: *const vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, |server| Ok(server.is_stopped())) }
}

/// Frees a server that is new or stopped; NULL is fine. Calls
/// vu_device_ops.destroy. Legal inside vu_device_ops.stopped; while another
/// thread is in there, it waits for that to return.
///
/// Afterwards nothing of the server may be used, except that elements of an
/// orphaned queue may be completed, and vu_vq_inflight_dec() and
/// vu_server_inflight_dec() be called as often as is still owed.
///
/// @return 0; -EBUSY unless new or stopped, and while a vu_server_stop() is
///         going on, -EDEADLK inside another callback of the same server: then
///         nothing has happened
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_free(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract.
    let Some(this) = (unsafe { handle(server) }) else {
        return 0;
    };
    guard(|| {
        if let Err(error) = this.shared.check_free() {
            return status::<(), _>(Err(error));
        }
        if this.stops.load(Ordering::Acquire) > 0 {
            return -libc::EBUSY;
        }
        // SAFETY: the caller frees once, and nobody uses the server any more.
        drop(unsafe { (*this.server.get()).take() });
        // Release pairs with the Acquire of the log function and of `vu_vq_server`.
        this.silent.store(true, Ordering::Release);
        this.shared.handle.store(ptr::null_mut(), Ordering::Release);
        // SAFETY: the reference of `vu_server_new`.
        unsafe { Arc::decrement_strong_count(server) };
        0
    })
}

/// Attaches a detached server: offers the device and all of its queues to
/// `ctx`, and cancels a detach that is under way. Any thread; what the context
/// is offered it takes at its next dispatch.
///
/// @return 0; -EBUSY while attached, -ESHUTDOWN unless running,
///         -ENOTRECOVERABLE, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_attach_ctx(server: *mut vu_server, ctx: *mut vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| match context(ctx) {
            Some(context) => server.attach(context),
            None => Err(Error::invalid("ctx: NULL")),
        })
    }
}

/// Takes the device and all of its queues out of their contexts. After it no
/// callback runs and no watch of the server exists; the connection stays,
/// elements in flight stay valid and may be completed from anywhere.
///
/// @return 0; -EBUSY, with nothing changed, unless the calling thread owns
///         every context that has anything of the server, -EDEADLK inside a
///         callback of the same server, -ESHUTDOWN unless running, -EINVAL for
///         NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_detach_ctx(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, Server::detach) }
}

/// As vu_server_detach_ctx(), without waiting: each context gives up what it
/// has at its next dispatch. vu_server_is_quiesced() and vu_server_config.wake
/// tell when that is done. Any thread, any callback.
///
/// @return 0; -ESHUTDOWN unless running, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_request_detach(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, Server::request_detach) }
}

/// Moves one queue to another context. Any thread, any callback; takes effect
/// at the next dispatch of the context that has the queue, and after the
/// queue's own `kick` if that is running. The last call wins. Kicks that come
/// in between are not lost.
///
/// @param ctx NULL: the queue is detached
/// @return 0; -EINVAL if there is no such queue or for NULL, -ESHUTDOWN unless
///         running, -ENOTRECOVERABLE
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_attach_vq_ctx(
    server: *mut vu_server,
    index: u32,
    ctx: *mut vu_ctx,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, |server| server.attach_queue(index, context(ctx))) }
}

/// Whether no context has or is offered anything of the server. Any thread.
///
/// @return 1 or 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_is_quiesced(server: *const vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, |server| Ok(server.is_quiesced())) }
}

/// Whether elements or explicit counts are in flight. Any thread; exact once
/// the server is quiesced.
///
/// @return 1 or 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_has_inflight(server: *const vu_server) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_server(server, |server| Ok(server.has_inflight())) }
}

/// Counts work of the whole device that the library cannot see: the connection
/// is not drained before vu_server_inflight_dec(). Any thread.
///
/// @return 0; -ESHUTDOWN: it has been drained already, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_inflight_inc(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract; each count keeps the handle.
    unsafe {
        with_server(server, |inner| {
            Arc::increment_strong_count(server.cast_const());
            inner.inflight_inc().inspect_err(|_| {
                Arc::decrement_strong_count(server.cast_const());
            })
        })
    }
}

/// Ends what vu_server_inflight_inc() began. Any thread; legal after
/// vu_server_free() if the drain timed out.
///
/// @return 0; -EINVAL without an increment or for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_inflight_dec(server: *mut vu_server) -> c_int {
    // SAFETY: see the module's contract; while the increment counts, the handle lives.
    unsafe {
        let Some(this) = handle(server) else {
            return -libc::EINVAL;
        };
        let result = guard_for(&this.shared, || status(this.shared.inflight_dec()));
        if result == 0 {
            Arc::decrement_strong_count(server.cast_const());
        }
        result
    }
}

/// Changes the configuration space and tells the guest. Any thread.
///
/// @return 0; -EINVAL for bytes outside of it, for none, or for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_set_config(
    server: *mut vu_server,
    offset: u32,
    data: *const c_void,
    size: u32,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            check_config(data, size)?;
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), size as usize);
            server.set_config(offset, bytes)
        })
    }
}

/// Reads the configuration space, with what the driver has written. Any thread.
///
/// @return 0; -EINVAL for bytes outside of it, for none, or for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_get_config(
    server: *const vu_server,
    offset: u32,
    data: *mut c_void,
    size: u32,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_server(server, |server| {
            check_config(data, size)?;
            let mut bytes = [0; config_space::MAX_SIZE];
            let bytes = &mut bytes[..size as usize];
            server.config(offset, bytes)?;
            ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast(), bytes.len());
            Ok(())
        })
    }
}

fn check_config(data: *const c_void, size: u32) -> Result<()> {
    if data.is_null() || size as usize > config_space::MAX_SIZE {
        return Err(Error::invalid(format!(
            "config of {size} bytes at {data:p}"
        )));
    }
    Ok(())
}

/// The virtio features that the driver has accepted. Any thread.
///
/// @return 0 without a connection, before the driver has, and for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_features(server: *const vu_server) -> u64 {
    // SAFETY: see the module's contract.
    match unsafe { handle(server) } {
        Some(handle) => guard_for(&handle.shared, || handle.shared.acked_features()),
        None => 0,
    }
}

/// A queue of the device. Any thread. The pointer stays valid until
/// vu_server_free(); after vu_device_ops.orphaned there is another one for the
/// same index.
///
/// @return NULL if there is no such queue, and for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_server_vq(server: *const vu_server, index: u32) -> *mut vu_vq {
    // SAFETY: see the module's contract.
    match unsafe { handle(server) } {
        Some(handle) => guard_for(&handle.shared, || match handle.shared.queue(index) {
            Some(queue) => Arc::as_ptr(&queue).cast_mut().cast(),
            None => ptr::null_mut(),
        }),
        None => ptr::null_mut(),
    }
}

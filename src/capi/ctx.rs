//! `vu_ctx`: one event loop of the application.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::context::{Context, EventLoop, Watch, WatchSlot};
use crate::error::{Error, Result};
use crate::sync::Arc;

use super::error::{clear, set_up, vu_error};
use super::guard::{guard, status};
use super::structs::{self, Extensible, layout};

/// A context: one event loop of the application. See "Threads" at the top of
/// this file for who owns it.
pub struct vu_ctx {
    context: Context,
}

/// What a watch calls when its descriptor is ready.
///
/// For the watches that the library asks for, the loop calls it with the `data`
/// that it was given: on the loop's thread, as long as the descriptor is ready
/// (level-triggered). Calls without readiness are fine, and so is one that
/// comes after remove_watch(): `data` stays valid until vu_ctx_free().
///
/// For vu_ctx_watch() it is the application's own function.
///
/// @param revents what the descriptor is ready for, as from poll(2)
pub type vu_ctx_watch_fn = Option<unsafe extern "C" fn(data: *mut c_void, revents: u32)>;

/// An event loop, as the library drives it. Every function is called on the
/// thread that owns the context: inside a dispatch, or inside vu_server_stop(),
/// vu_server_detach_ctx(), vu_ctx_new() or vu_ctx_free() called there. None but
/// `poll` may call the library.
///
/// A context needs one watch for its doorbell and one for the kick descriptor
/// of each started queue.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vu_ctx_ops {
    /// sizeof(vu_ctx_ops), see VU_CTX_OPS_INIT.
    pub struct_size: usize,
    /// Required. Watches `fd`, or replaces its watch: `events` is the whole
    /// mask, of poll(2)'s values (POLLIN ...). The descriptor is borrowed.
    /// Returns 0 or -errno, which breaks the ring concerned and is passed to
    /// its vu_device_ops.ring_broken.
    pub set_watch: Option<
        unsafe extern "C" fn(
            r#loop: *mut c_void,
            fd: c_int,
            events: u32,
            r#fn: vu_ctx_watch_fn,
            data: *mut c_void,
        ) -> c_int,
    >,
    /// Required. Ends the watch of `fd`; always called before it is closed.
    pub remove_watch: Option<unsafe extern "C" fn(r#loop: *mut c_void, fd: c_int)>,
    /// Optional. Runs one iteration of the loop, waiting up to `timeout_ms` for
    /// the first event; 0 or -errno. With it, vu_server_stop() works on the
    /// loop's thread.
    pub poll: Option<unsafe extern "C" fn(r#loop: *mut c_void, timeout_ms: c_int) -> c_int>,
    /// Optional. Called exactly once: inside vu_ctx_free(), or inside
    /// vu_ctx_new() if that fails after it could read this structure.
    pub destroy: Option<unsafe extern "C" fn(r#loop: *mut c_void)>,
}

layout!(vu_ctx_ops, 40, {
    struct_size: 0,
    set_watch: 8,
    remove_watch: 16,
    poll: 24,
    destroy: 32,
});

// SAFETY: repr(C), begins with its size, functions may be NULL.
unsafe impl Extensible for vu_ctx_ops {
    const NAME: &'static str = "ops";
}

struct ForeignLoop {
    ops: vu_ctx_ops,
    data: *mut c_void,
}

// SAFETY: the library calls a loop only on the thread that owns its context; `data` is just passed on.
unsafe impl Send for ForeignLoop {}
// SAFETY: as above.
unsafe impl Sync for ForeignLoop {}

/// A C callback's 0 or -errno.
fn from_c(code: c_int, what: &str) -> Result<()> {
    if code >= 0 {
        return Ok(());
    }
    let errno = code.checked_neg().unwrap_or(libc::EIO);
    Err(Error::new(
        errno,
        format!("{what}: the loop answered {code}"),
    ))
}

impl EventLoop for ForeignLoop {
    fn set_watch(&self, fd: RawFd, events: u32, watch: Watch) -> Result<()> {
        let slot = Arc::as_ptr(&watch.0).cast_mut().cast::<c_void>();
        match self.ops.set_watch {
            // SAFETY: the application's function with its own data; the context keeps the slot until it is freed.
            Some(f) => from_c(
                unsafe { f(self.data, fd, events, Some(watch_ready), slot) },
                &format!("set_watch of fd {fd}"),
            ),
            None => Err(Error::invalid("ops.set_watch: NULL")),
        }
    }

    fn remove_watch(&self, fd: RawFd) {
        if let Some(f) = self.ops.remove_watch {
            // SAFETY: the application's function with its own data.
            unsafe { f(self.data, fd) };
        }
    }

    fn can_poll(&self) -> bool {
        self.ops.poll.is_some()
    }

    fn poll(&self, timeout: Duration) -> Result<()> {
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        match self.ops.poll {
            // SAFETY: the application's function with its own data.
            Some(f) => from_c(unsafe { f(self.data, timeout_ms) }, "poll"),
            None => Err(Error::new(libc::ENOTSUP, "ops.poll: NULL")),
        }
    }

    fn destroy(&self) {
        if let Some(f) = self.ops.destroy {
            // SAFETY: the application's function with its own data.
            unsafe { f(self.data) };
        }
    }
}

/// # Safety
/// `data` is what `set_watch` was given, or NULL.
unsafe fn slot(data: *mut c_void) -> Option<Arc<WatchSlot>> {
    let slot = data.cast::<WatchSlot>().cast_const();
    if slot.is_null() {
        return None;
    }
    // SAFETY: the context holds a reference of its own, so there is something to count up.
    unsafe {
        Arc::increment_strong_count(slot);
        Some(Arc::from_raw(slot))
    }
}

unsafe extern "C" fn watch_ready(data: *mut c_void, revents: u32) {
    guard(|| {
        // SAFETY: the loop passes what it was given.
        if let Some(slot) = unsafe { slot(data) } {
            slot.ready(revents);
        }
    });
}

/// # Safety
/// NULL or a context that is not freed.
pub(super) unsafe fn context<'a>(ctx: *const vu_ctx) -> Option<&'a Context> {
    // SAFETY: the caller's promise.
    unsafe { ctx.as_ref() }.map(|ctx| &ctx.context)
}

/// # Safety
/// NULL or a context that is not freed.
unsafe fn with_context<T: super::guard::Count>(
    ctx: *const vu_ctx,
    body: impl FnOnce(&Context) -> Result<T>,
) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { context(ctx) } {
        Some(context) => guard(|| status(body(context))),
        None => -libc::EINVAL,
    }
}

/// # Safety
/// `ctx` and `err` are NULL or point to pointers.
unsafe fn new(
    ctx: *mut *mut vu_ctx,
    err: *mut *mut vu_error,
    make: impl FnOnce() -> Result<Context>,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        clear(ctx);
        set_up(err, || {
            if ctx.is_null() {
                return Err(Error::invalid("ctx: NULL"));
            }
            *ctx = Box::into_raw(Box::new(vu_ctx { context: make()? }));
            Ok(())
        })
    }
}

/// Wraps a loop of the application's. On the loop's thread, which becomes the
/// owner, or while the loop is not running.
///
/// @param ops copied
/// @param loop passed to every function of `ops`
/// @return 0; -EINVAL (a required function is NULL), -E2BIG (`ops` uses what
///         this version does not know), -EMFILE, or what set_watch() answered
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_new(
    ops: *const vu_ctx_ops,
    r#loop: *mut c_void,
    ctx: *mut *mut vu_ctx,
    err: *mut *mut vu_error,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        clear(ctx);
        set_up(err, || {
            let ops = structs::read(ops)?;
            let foreign = || ForeignLoop { ops, data: r#loop };
            let made = check(&ops, ctx).and_then(|()| Context::foreign(Box::new(foreign())));
            match made {
                Ok(context) => *ctx = Box::into_raw(Box::new(vu_ctx { context })),
                Err(error) => {
                    foreign().destroy();
                    return Err(error);
                }
            }
            Ok(())
        })
    }
}

fn check(ops: &vu_ctx_ops, ctx: *mut *mut vu_ctx) -> Result<()> {
    if ctx.is_null() {
        return Err(Error::invalid("ctx: NULL"));
    }
    if ops.set_watch.is_none() {
        return Err(Error::invalid("ops.set_watch: NULL"));
    }
    if ops.remove_watch.is_none() {
        return Err(Error::invalid("ops.remove_watch: NULL"));
    }
    Ok(())
}

/// Makes a context with a loop of its own, over epoll(7): run it with
/// vu_ctx_run() or vu_ctx_dispatch(), or watch vu_ctx_fd() in another loop. The
/// calling thread becomes the owner.
///
/// @return 0; -EMFILE, -ENFILE, -ENOMEM, -EINVAL for NULL
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_new_epoll(ctx: *mut *mut vu_ctx, err: *mut *mut vu_error) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { new(ctx, err, Context::epoll) }
}

/// Makes a context without any descriptors, for a thread that polls all the
/// time with vu_ctx_poll(); guest notifications stay off. The calling thread
/// becomes the owner.
///
/// @return 0; -EMFILE, -ENOMEM, -EINVAL for NULL
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_new_polled(
    ctx: *mut *mut vu_ctx,
    err: *mut *mut vu_error,
) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { new(ctx, err, Context::polled) }
}

/// Frees a context; NULL is fine. On the loop's thread, or while the loop is
/// not running. Removes the watches that are left and calls
/// vu_ctx_ops.destroy.
///
/// @return 0; -EBUSY while a server or one of its queues is attached, and
///         during a dispatch: then nothing has happened
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_free(ctx: *mut vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    let Some(context) = (unsafe { context(ctx) }) else {
        return 0;
    };
    guard(|| {
        let result = context.core().free();
        if result.is_ok() {
            // SAFETY: made by `Box::into_raw`, and freed this once.
            drop(unsafe { Box::from_raw(ctx) });
        }
        status(result)
    })
}

/// Makes the calling thread the owner, for a loop whose thread is gone or not
/// running.
///
/// @return 0; -EBUSY during a dispatch on another thread, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_adopt(ctx: *mut vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, Context::adopt) }
}

/// The pollable descriptor of an epoll context: readable (POLLIN) when
/// vu_ctx_dispatch() has something to do. Borrowed, valid until vu_ctx_free().
///
/// @return the descriptor; -ENOTSUP for other contexts, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_fd(ctx: *const vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, |context| context.fd().map(|fd| fd.as_raw_fd())) }
}

/// Runs one round of an epoll context; the calling thread becomes the owner.
/// May be nested inside a callback.
///
/// @param timeout_ms how long to wait for something to do; -1: for ever, 0: not
///        at all
/// @return how many descriptors were ready, 0 also if what was done needed none;
///         -EBUSY while another thread dispatches, -ENOTSUP for other contexts,
///         -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_dispatch(ctx: *mut vu_ctx, timeout_ms: c_int) -> c_int {
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, |context| context.dispatch(timeout)) }
}

/// Dispatches an epoll context until vu_ctx_quit(); the calling thread becomes
/// the owner.
///
/// @return 0; as vu_ctx_dispatch()
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_run(ctx: *mut vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, Context::run) }
}

/// Ends the running vu_ctx_run(), or else the next one, at once. Any thread and
/// any signal handler.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_quit(ctx: *mut vu_ctx) {
    // SAFETY: see the module's contract.
    if let Some(context) = unsafe { context(ctx) } {
        guard(|| context.quit());
    }
}

/// Lets an epoll context look at its rings for a while before it sleeps, with
/// guest notifications off meanwhile. The time adapts to what pays. Owner.
///
/// @param max_ns the longest time, in nanoseconds; 0 turns it off
/// @return 0; -ENOTSUP for other contexts, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_set_busy_poll(ctx: *mut vu_ctx, max_ns: u64) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_context(ctx, |context| {
            context.set_busy_poll(Duration::from_nanos(max_ns))
        })
    }
}

/// Runs one round of a polled context; the calling thread becomes the owner.
///
/// @return how many queues had work; -EBUSY while another thread polls,
///         -ENOTSUP for other contexts, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_poll(ctx: *mut vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, Context::poll) }
}

/// A pointer of the application's that a watch carries around.
#[derive(Clone, Copy)]
struct Opaque(*mut c_void);
// SAFETY: passed on, never used.
unsafe impl Send for Opaque {}
// SAFETY: as above.
unsafe impl Sync for Opaque {}

/// Watches a descriptor of the application's in an epoll context, or replaces
/// its watch. Owner, or while the context is not dispatched.
///
/// @param fd borrowed; must be unwatched before it is closed
/// @param events the whole mask, of poll(2)'s values (POLLIN ...);
///        level-triggered
/// @param fn called on the owner's thread, in a dispatch: inside it
///        vu_server_stop() is -EDEADLK and vu_ctx_free() of this context -EBUSY
/// @return 0; -ENOTSUP for other contexts, -EBADF or -EPERM if `fd` is not open
///         or cannot be watched, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_watch(
    ctx: *mut vu_ctx,
    fd: c_int,
    events: u32,
    r#fn: vu_ctx_watch_fn,
    data: *mut c_void,
) -> c_int {
    let Some(f) = r#fn else {
        return -libc::EINVAL;
    };
    let data = Opaque(data);
    let callback = move |revents| {
        let Opaque(data) = { data };
        // SAFETY: the application's function with its own data.
        unsafe { f(data, revents) };
    };
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, |context| context.watch(fd, events, callback)) }
}

/// Ends a watch that vu_ctx_watch() began. Owner, or while the context is not
/// dispatched; also inside the watch's own function.
///
/// @return 0; -ENOENT if there is none, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_unwatch(ctx: *mut vu_ctx, fd: c_int) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, |context| context.unwatch(fd)) }
}

/// Publishes what is staged in the queues of this context; see vu_vq_stage().
/// Owner.
///
/// @return 0; -EXDEV: the calling thread is not the owner, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_ctx_flush(ctx: *mut vu_ctx) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_context(ctx, Context::flush) }
}

/// For loops that poll by themselves before they sleep: is there work behind
/// this watch? Does not block. Owner.
///
/// @param data what set_watch() was given
/// @return 1 or 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_watch_poll(data: *mut c_void) -> c_int {
    // SAFETY: see the module's contract.
    match unsafe { slot(data) } {
        Some(slot) => guard(|| c_int::from(slot.has_work())),
        None => -libc::EINVAL,
    }
}

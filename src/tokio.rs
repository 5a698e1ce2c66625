//! A context in a tokio runtime (feature `tokio`).
//!
//! [`serve`] is a task that dispatches an embedded epoll context whenever its descriptor is ready. The device's
//! callbacks run inside that task: they must not block, and they spawn what they would have to wait for. An
//! [`Element`](crate::Element) may go into any task, and be completed there.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tokio::runtime::Handle;
//! use vu_server::{Address, Context, Device, Element, Kick, Server, Virtqueue};
//!
//! struct Discard(Handle);
//!
//! impl Device for Discard {
//!     fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
//!         while let Ok(Some(element)) = vq.pop_one() {
//!             self.0.spawn(async move { element.complete(0) });
//!         }
//!         Kick::Done
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> vu_server::Result<()> {
//!     let context = Context::epoll()?;
//!     let server = Arc::new(Server::builder().build(Discard(Handle::current()))?);
//!     server.start(Address::Listen("/tmp/discard.sock".into()), Some(&context))?;
//!     tokio::select! {
//!         result = vu_server::tokio::serve(&context) => result?,
//!         _ = tokio::signal::ctrl_c() => {}
//!     }
//!     // Nothing runs in the context any more but what the stop itself does.
//!     server.stop()
//! }
//! ```
//!
//! # Threads
//!
//! In a current-thread runtime, and in a `LocalSet`, that thread owns the context. In a multi-thread runtime the
//! task may go on in another worker after each dispatch, which then owns it: callbacks still come one at a time,
//! each after the previous one in every respect, but not on one thread. A context must be served by one task.
//!
//! # Stopping
//!
//! [`Server::stop`](crate::Server::stop) blocks its thread, and with it the tasks that a current-thread runtime
//! would need to complete what is in flight. So call it in `tokio::task::spawn_blocking` while [`serve`] goes on,
//! or use [`Server::request_stop`](crate::Server::request_stop) and wait for
//! [`Device::stopped`](crate::Device::stopped). Called where `serve` has ended, as above, it serves the context
//! itself; requests that tasks still hold are then waited for until the drain time-out unless another worker
//! completes them.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::task::yield_now;

use crate::context::Context;
use crate::error::{Error, Result};

/// Dispatches `context` until [`Context::quit`]. Other tasks get their turn after each dispatch.
///
/// Cancel safe: what is dropped here may be served again, by another call or by [`Context::run`].
///
/// # Errors
/// `ENOTSUP` for other kinds than the embedded epoll loop; `EBUSY` while another thread dispatches the context;
/// what the runtime says about its descriptor.
///
/// # Panics
/// Outside of a tokio runtime, and in one without I/O.
pub async fn serve(context: &Context) -> Result<()> {
    let fd = watch(context.fd()?)?;
    while !context.core().take_quit() {
        let mut ready = fd.readable().await.map_err(in_runtime)?;
        // The runtime hears of changes only: the descriptor is ready until a dispatch has found nothing.
        if context.dispatch(Some(Duration::ZERO))? == 0 {
            ready.clear_ready();
        }
        drop(ready);
        yield_now().await;
    }
    Ok(())
}

#[allow(unsafe_code)]
fn watch(fd: BorrowedFd<'_>) -> Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor is open, and is the same one, for as long as it is borrowed.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| in_runtime(error.into()))
}

fn in_runtime(error: std::io::Error) -> Error {
    Error::new(
        error.raw_os_error().unwrap_or(libc::EIO),
        format!("tokio: {error}"),
    )
}

//! `vu_vq`: a virtqueue.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::virtqueue::slot::Slot;
use crate::virtqueue::{Queue, complete};

use super::elem::vu_elem;
use super::guard::{Answer, guard_for, status};
use super::server::vu_server;

/// No more elements than the largest ring has entries can be popped.
const MOST: usize = 32768;

/// A virtqueue of a server; lives as long as the server. Get it from
/// vu_server_vq() or from a callback.
pub struct vu_vq {
    _private: [u8; 0],
}

/// Runs the body of a function on a queue; `null` is its answer for NULL.
///
/// # Safety
/// NULL or a queue of a server that is not freed, or that has something in flight.
#[inline(always)]
pub(super) unsafe fn with_queue<T: Answer>(
    vq: *const vu_vq,
    null: T,
    body: impl FnOnce(&Queue) -> T,
) -> T {
    // SAFETY: every vu_vq pointer is that of a Queue.
    match unsafe { vq.cast::<Queue>().as_ref() } {
        Some(queue) => guard_for(&queue.server, || body(queue)),
        None => null,
    }
}

/// Takes up to `max` elements that the driver has made available. Owner, inside
/// a dispatch or between two; also outside of `kick`.
///
/// 0 means that the ring is empty now, and publishes what is staged. Each
/// element must be completed exactly once, or put back with vu_vq_unpop().
///
/// @param elems where to put them
/// @return how many there are; -EBADMSG: the ring is broken, -ESHUTDOWN: the
///         queue is leaving its context, -EXDEV: the calling thread is not the
///         owner (a queue that is not started has none), -EINVAL for NULL
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_pop(vq: *mut vu_vq, elems: *mut *mut vu_elem, max: usize) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_queue(vq, -libc::EINVAL, |queue| {
            if elems.is_null() {
                return -libc::EINVAL;
            }
            let max = max.min(MOST);
            // SAFETY: `max` pointers are the caller's; pop only writes to them.
            let places = std::slice::from_raw_parts_mut(elems.cast::<*mut Slot>(), max);
            status(queue.pop(places))
        })
    }
}

/// Puts back the `n` newest elements that were popped and not completed; the
/// next pop returns them again. Owner.
///
/// @param elems in the order in which they were popped
/// @return 0; -EINVAL if they are not the newest ones of this queue (nothing is
///         put back), -ESHUTDOWN: the queue is not started, -EXDEV: the calling
///         thread is not the owner
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_unpop(vq: *mut vu_vq, elems: *mut *mut vu_elem, n: usize) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_queue(vq, -libc::EINVAL, |queue| {
            if n == 0 {
                return 0;
            }
            if elems.is_null() || n > MOST {
                return -libc::EINVAL;
            }
            // SAFETY: the caller has `n` of them.
            let slots = std::slice::from_raw_parts(elems.cast::<*mut Slot>(), n);
            status(queue.unpop(slots))
        })
    }
}

/// Completes an element as vu_elem_complete() does, but leaves publishing it to
/// a batch: by vu_vq_flush() or vu_ctx_flush(), when
/// vu_server_config.stage_max elements are staged, when vu_vq_pop() finds the
/// ring empty, or at the end of the running dispatch, or of the next one. The
/// element must not be used afterwards.
///
/// Meant for the thread that owns the queue; elsewhere, and for an element that
/// was popped before the queue moved, it is vu_elem_complete().
///
/// @param written how many bytes the device wrote, from the first
///        device-writable byte on
/// @return 0; -EINVAL if `written` exceeds in_len (the element stays live), the
///         element is completed already or of another queue, or for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_stage(vq: *mut vu_vq, elem: *mut vu_elem, written: u32) -> c_int {
    // SAFETY: see the module's contract; a vu_elem is the first field of its slot.
    unsafe {
        with_queue(vq, -libc::EINVAL, |queue| {
            let slot = elem.cast::<Slot>();
            if slot.is_null() || (*slot).queue != ptr::from_ref(queue).cast() {
                return -libc::EINVAL;
            }
            status(complete(slot, written, true))
        })
    }
}

/// Publishes what is staged: one write of the used index, at most one of the
/// call eventfd. Owner.
///
/// @return 0; -EXDEV: the calling thread is not the owner, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_flush(vq: *mut vu_vq) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_queue(vq, -libc::EINVAL, |queue| status(queue.flush())) }
}

/// The queue's number in the device, from 0.
///
/// @return UINT32_MAX for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_index(vq: *const vu_vq) -> u32 {
    // SAFETY: see the module's contract.
    unsafe { with_queue(vq, u32::MAX, |queue| queue.index) }
}

/// How many descriptors the ring has.
///
/// @return 0 while the front-end has not set the ring up, and for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_size(vq: *const vu_vq) -> u32 {
    // SAFETY: see the module's contract.
    unsafe { with_queue(vq, 0, Queue::size) }
}

/// The server that the queue belongs to.
///
/// @return NULL for NULL, and when the server is freed
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_server(vq: *const vu_vq) -> *mut vu_server {
    // SAFETY: see the module's contract.
    unsafe {
        with_queue(vq, ptr::null_mut(), |queue| {
            // Acquire pairs with the Release of `vu_server_new`.
            queue.server.handle.load(Ordering::Acquire).cast()
        })
    }
}

/// Whether the front-end has enabled the queue. Only a device with
/// VU_SERVER_RUN_DISABLED_QUEUES ever sees one that is not.
///
/// @return 1 or 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_enabled(vq: *const vu_vq) -> c_int {
    // SAFETY: see the module's contract.
    unsafe { with_queue(vq, -libc::EINVAL, |queue| c_int::from(queue.is_enabled())) }
}

/// Whether the guest is a legacy one and big-endian: so are the device's own
/// structures in the elements then. Those of a modern device are always
/// little-endian (virtio 1.3, 2.6.1.1). Any thread.
///
/// @return 1 or 0; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_big_endian(vq: *const vu_vq) -> c_int {
    // SAFETY: see the module's contract.
    unsafe {
        with_queue(vq, -libc::EINVAL, |queue| {
            c_int::from(queue.is_big_endian())
        })
    }
}

/// Stores a pointer of the application's in the queue. Any thread.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_set_data(vq: *mut vu_vq, data: *mut c_void) {
    // SAFETY: see the module's contract.
    unsafe { with_queue(vq, (), |queue| queue.set_data(data)) }
}

/// What vu_vq_set_data() stored.
///
/// @return NULL if nothing was, and for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_data(vq: *const vu_vq) -> *mut c_void {
    // SAFETY: see the module's contract.
    unsafe { with_queue(vq, ptr::null_mut(), Queue::data) }
}

/// Counts work on this queue's memory that the library cannot see: the queue is
/// not drained before vu_vq_inflight_dec(). Any thread.
///
/// @return 0; -ESHUTDOWN: it has been drained already, -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_inflight_inc(vq: *mut vu_vq) -> c_int {
    // SAFETY: see the module's contract; each count keeps the queue, which may be cut off and outlive its
    // server.
    unsafe {
        with_queue(vq, -libc::EINVAL, |queue| {
            Arc::increment_strong_count(ptr::from_ref(queue));
            let result = queue.inflight_inc();
            if result.is_err() {
                Arc::decrement_strong_count(ptr::from_ref(queue));
            }
            status(result)
        })
    }
}

/// Ends what vu_vq_inflight_inc() began. Any thread; legal after
/// vu_server_free() if the queue was orphaned.
///
/// @return 0; -EINVAL without an increment or for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_vq_inflight_dec(vq: *mut vu_vq) -> c_int {
    // SAFETY: see the module's contract; while the increment counts, the queue lives.
    unsafe {
        let result = with_queue(vq, -libc::EINVAL, |queue| status(queue.inflight_dec()));
        if result == 0 {
            Arc::decrement_strong_count(vq.cast::<Queue>());
        }
        result
    }
}

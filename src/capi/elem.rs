//! `vu_elem`: one request of the driver.

use std::ffi::{c_int, c_void};
use std::mem::offset_of;

use libc::iovec;

use crate::virtqueue::slot::{Elem, Slot, state};
use crate::virtqueue::{Queue, complete, read_out, suspend, write_in};

use super::guard::{guard, status};
use super::structs::layout;
use super::vq::vu_vq;

/// One request: a chain of buffers in guest memory.
///
/// Allocated by the library, read-only to the application, valid from
/// vu_vq_pop() until it is completed. Never copied or put into arrays by value:
/// later versions append fields.
///
/// The guest can change the bytes behind the iovecs at any time: read each byte
/// once, check the copy. The addresses stay valid until the element is
/// completed, whatever happens to the queue, the connection or the server.
#[repr(C)]
pub struct vu_elem {
    /// Device-readable buffers: from the guest to the device.
    pub out: *const iovec,
    /// How many of them.
    pub out_num: u32,
    /// Device-writable buffers: from the device to the guest.
    pub r#in: *const iovec,
    /// How many of them.
    pub in_num: u32,
    /// Bytes in `out`.
    pub out_len: u32,
    /// Bytes in `in`.
    pub in_len: u32,
    /// vu_server_config.elem_priv_size bytes for the application, 16-aligned,
    /// zeroed when first allocated and then left as the previous request left
    /// them; NULL if that size is 0.
    pub r#priv: *mut c_void,
}

layout!(vu_elem, 48, {
    out: 0,
    out_num: 8,
    r#in: 16,
    in_num: 24,
    out_len: 28,
    in_len: 32,
    r#priv: 40,
});

const _: () = {
    assert!(size_of::<vu_elem>() == size_of::<Elem>());
    assert!(offset_of!(vu_elem, out) == offset_of!(Elem, out));
    assert!(offset_of!(vu_elem, out_num) == offset_of!(Elem, out_num));
    assert!(offset_of!(vu_elem, r#in) == offset_of!(Elem, in_));
    assert!(offset_of!(vu_elem, in_num) == offset_of!(Elem, in_num));
    assert!(offset_of!(vu_elem, out_len) == offset_of!(Elem, out_len));
    assert!(offset_of!(vu_elem, in_len) == offset_of!(Elem, in_len));
    assert!(offset_of!(vu_elem, r#priv) == offset_of!(Elem, priv_));
};

/// # Safety
/// NULL or a popped element.
unsafe fn slot<'a>(elem: *const vu_elem) -> Option<&'a Slot> {
    // SAFETY: the library hands out pointers to slots, whose first field is what C sees.
    unsafe { elem.cast::<Slot>().as_ref() }
}

/// Gives an element back to the driver. Any thread.
///
/// Published at once, with at most one write to the call eventfd; on the thread
/// that owns the queue while its `kick` runs, with the rest of that kick. The
/// element must not be used afterwards. After a disconnect, a stop or a drain
/// time-out the call is as legal as ever and just frees the element.
///
/// @param written how many bytes the device wrote, from the first
///        device-writable byte on
/// @return 0; -EINVAL if `written` exceeds in_len (the element stays live), or
///         the element is NULL or completed already
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_complete(elem: *mut vu_elem, written: u32) -> c_int {
    // SAFETY: see the module's contract; a vu_elem is the first field of its slot.
    guard(|| status(unsafe { complete(elem.cast(), written, false) }))
}

/// Lets go of an element without completing it: it stays in flight, and whoever
/// starts the ring next does it. Any thread. For a device that set
/// VU_SERVER_SUSPENDS, while the front-end stops the ring: from
/// vu_device_ops.queue_stopping with VU_STOP_VRING_BASE until queue_stopped.
/// Nothing of the request may be going on any more (vhost-user specification,
/// VHOST_USER_GET_VRING_BASE).
///
/// @return 0: the element must not be used afterwards. Else it stays live:
///         -ENOTSUP if the front-end does not take requests over, -EBUSY while
///         the ring is not being stopped; -EINVAL if the element is NULL or
///         completed already
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_suspend(elem: *mut vu_elem) -> c_int {
    // SAFETY: see the module's contract; a vu_elem is the first field of its slot.
    guard(|| status(unsafe { suspend(elem.cast()) }))
}

/// Copies bytes out of the device-readable buffers.
///
/// @param offset counted over all device-readable buffers
/// @return how many bytes were copied: less than `len` if the buffers end
///         before, 0 for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_read(
    elem: *const vu_elem,
    offset: usize,
    buf: *mut c_void,
    len: usize,
) -> usize {
    guard(|| {
        // SAFETY: see the module's contract.
        match unsafe { slot(elem) } {
            Some(slot) if !buf.is_null() => {
                let len = len.min(isize::MAX as usize);
                // SAFETY: the buffer is the caller's and `len` long; it is only written to.
                let buffer = unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), len) };
                read_out(&slot.elem, offset, buffer)
            }
            _ => 0,
        }
    })
}

/// Copies bytes into the device-writable buffers.
///
/// @param offset counted over all device-writable buffers
/// @return how many bytes were copied: less than `len` if the buffers end
///         before, 0 for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_write(
    elem: *const vu_elem,
    offset: usize,
    buf: *const c_void,
    len: usize,
) -> usize {
    guard(|| {
        // SAFETY: see the module's contract.
        match unsafe { slot(elem) } {
            Some(slot) if !buf.is_null() => {
                let len = len.min(isize::MAX as usize);
                // SAFETY: the buffer is the caller's and `len` long.
                let bytes = unsafe { std::slice::from_raw_parts(buf.cast::<u8>(), len) };
                write_in(&slot.elem, offset, bytes)
            }
            _ => 0,
        }
    })
}

/// Describes `len` bytes of `iov`, from `offset` on, with iovecs of the
/// caller's: for preadv() and the like, without the request's header or status.
///
/// @param dst where to put them, room for `dst_num`; not overlapping `iov`.
///        What it holds after a failure is unspecified.
/// @return how many entries of `dst` were filled, none of them empty; -ERANGE
///         if the bytes are not all there, -ENOBUFS if they need more than
///         `dst_num` entries, -EINVAL for NULL
/// @since 0.1
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_iov_slice(
    iov: *const iovec,
    num: u32,
    offset: usize,
    len: usize,
    dst: *mut iovec,
    dst_num: u32,
) -> c_int {
    guard(|| {
        if (iov.is_null() && num > 0) || (dst.is_null() && dst_num > 0) {
            return -libc::EINVAL;
        }
        let (mut skip, mut left, mut filled) = (offset, len, 0u32);
        for at in 0..num as usize {
            // SAFETY: the caller has `num` of them.
            let part = unsafe { iov.add(at).read() };
            if skip > 0 && skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let bytes = (part.iov_len - skip).min(left);
            if bytes > 0 {
                if filled == dst_num {
                    return -libc::ENOBUFS;
                }
                let piece = iovec {
                    iov_base: part.iov_base.cast::<u8>().wrapping_add(skip).cast(),
                    iov_len: bytes,
                };
                // SAFETY: the caller has room for `dst_num`.
                unsafe { dst.add(filled as usize).write(piece) };
                filled += 1;
                left -= bytes;
            }
            skip = 0;
        }
        if left > 0 || skip > 0 {
            return -libc::ERANGE;
        }
        c_int::try_from(filled).unwrap_or(c_int::MAX)
    })
}

/// Says that the device wrote device-writable bytes outside of the first
/// `written` ones that it is going to complete the element with, so that they
/// are not lost when the guest is migrated.
///
/// @param offset counted over all device-writable buffers
/// @return 0; -ERANGE if the bytes are not all there, -EINVAL for an element
///         that is NULL or completed already
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_mark_dirty(
    elem: *mut vu_elem,
    offset: usize,
    len: usize,
) -> c_int {
    guard(|| {
        // SAFETY: see the module's contract.
        let Some(slot) = (unsafe { slot(elem) }) else {
            return -libc::EINVAL;
        };
        if slot.state() != state::LIVE {
            return -libc::EINVAL;
        }
        // SAFETY: a live slot is stamped with its queue, and who calls this does not complete it meanwhile.
        status(unsafe {
            let queue = &*slot.queue.cast::<Queue>();
            queue.mark_dirty(slot, offset, len)
        })
    })
}

/// The queue that an element was popped from.
///
/// @return NULL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_elem_vq(elem: *const vu_elem) -> *mut vu_vq {
    // SAFETY: see the module's contract.
    guard(|| match unsafe { slot(elem) } {
        Some(slot) => slot.queue.cast_mut().cast(),
        None => std::ptr::null_mut(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(base: usize, len: usize) -> iovec {
        iovec {
            iov_base: std::ptr::without_provenance_mut(base),
            iov_len: len,
        }
    }

    fn slice(
        iov: &[iovec],
        offset: usize,
        len: usize,
        room: u32,
    ) -> Result<Vec<(usize, usize)>, c_int> {
        let mut dst = [part(0, 0); 8];
        // SAFETY: both arrays are as long as said.
        let n = unsafe {
            vu_elem_iov_slice(
                iov.as_ptr(),
                iov.len() as u32,
                offset,
                len,
                dst.as_mut_ptr(),
                room,
            )
        };
        if n < 0 {
            return Err(-n);
        }
        Ok(dst[..n as usize]
            .iter()
            .map(|p| (p.iov_base as usize, p.iov_len))
            .collect())
    }

    #[test]
    fn slices_keep_to_the_bytes_asked_for() {
        let iov = [
            part(0x1000, 16),
            part(0x2000, 0),
            part(0x3000, 100),
            part(0x4000, 1),
        ];
        assert_eq!(slice(&iov, 16, 100, 8), Ok(vec![(0x3000, 100)]));
        assert_eq!(slice(&iov, 8, 20, 8), Ok(vec![(0x1008, 8), (0x3000, 12)]));
        assert_eq!(
            slice(&iov, 0, 117, 3),
            Ok(vec![(0x1000, 16), (0x3000, 100), (0x4000, 1)])
        );
        assert_eq!(
            slice(&iov, 117, 0, 0),
            Ok(vec![]),
            "nothing, at the very end"
        );
        assert_eq!(slice(&iov, 5, 0, 0), Ok(vec![]));
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        let iov = [part(0x1000, 16), part(0x2000, 16)];
        assert_eq!(slice(&iov, 0, 33, 8), Err(libc::ERANGE));
        assert_eq!(slice(&iov, 33, 0, 8), Err(libc::ERANGE));
        assert_eq!(slice(&iov, usize::MAX, usize::MAX, 8), Err(libc::ERANGE));
        assert_eq!(slice(&iov, 0, 32, 1), Err(libc::ENOBUFS));
        assert_eq!(slice(&[], 0, 1, 1), Err(libc::ERANGE));
        // SAFETY: NULL is allowed.
        let null = unsafe { vu_elem_iov_slice(std::ptr::null(), 1, 0, 1, std::ptr::null_mut(), 0) };
        assert_eq!(null, -libc::EINVAL);
    }
}

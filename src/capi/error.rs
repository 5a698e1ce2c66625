//! `vu_error`: what a set-up call says beside its number.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use crate::error::{Error, Result};

use super::guard::{guard, status};

/// Why a set-up call failed: an error number and a sentence that names the
/// field and the value. Made by functions with a `vu_error **` parameter, freed
/// with vu_error_free(). It belongs to no thread.
pub struct vu_error {
    code: c_int,
    message: CString,
}

/// The text without any NUL byte it might contain.
pub(super) fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

/// Runs the body of a set-up call: 0, or -errno and the error at `place`, which may be NULL and is set to NULL
/// first.
///
/// # Safety
/// `place` is NULL or points to a pointer.
pub(super) unsafe fn set_up(place: *mut *mut vu_error, body: impl FnOnce() -> Result<()>) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { clear(place) };
        let result = body();
        if let Err(error) = &result
            && !place.is_null()
        {
            // SAFETY: as above.
            unsafe { *place = Box::into_raw(Box::new(vu_error::new(error))) };
        }
        status(result)
    })
}

/// Outputs are NULL on failure.
///
/// # Safety
/// `place` is NULL or points to a pointer.
pub(super) unsafe fn clear<T>(place: *mut *mut T) {
    if !place.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *place = ptr::null_mut() };
    }
}

impl vu_error {
    fn new(error: &Error) -> Self {
        vu_error {
            code: -error.errno(),
            message: c_string(error.message()),
        }
    }
}

/// The error number.
///
/// @return the negative errno that the failed call returned; -EINVAL for NULL
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_error_code(err: *const vu_error) -> c_int {
    // SAFETY: see the module's contract.
    guard(|| unsafe { err.as_ref() }.map_or(-libc::EINVAL, |error| error.code))
}

/// The sentence, in English, without a newline.
///
/// @return valid until vu_error_free(); never NULL, a fixed text for a NULL
///         error
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_error_message(err: *const vu_error) -> *const c_char {
    const NONE: &CStr = c"no error";
    // SAFETY: see the module's contract.
    guard(|| unsafe { err.as_ref() }.map_or(NONE.as_ptr(), |error| error.message.as_ptr()))
}

/// Frees an error; NULL is fine.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vu_error_free(err: *mut vu_error) {
    guard(|| {
        if !err.is_null() {
            // SAFETY: made by `set_up`, and not freed before.
            drop(unsafe { Box::from_raw(err) });
        }
    });
}

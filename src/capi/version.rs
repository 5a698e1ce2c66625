//! The version of the library that is running.

use std::ffi::{CStr, c_char};

const fn number(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let mut value = 0;
    let mut at = 0;
    while at < bytes.len() {
        value = value * 10 + (bytes[at] - b'0') as u32;
        at += 1;
    }
    value
}

const MAJOR: u32 = number(env!("CARGO_PKG_VERSION_MAJOR"));
const MINOR: u32 = number(env!("CARGO_PKG_VERSION_MINOR"));
const PATCH: u32 = number(env!("CARGO_PKG_VERSION_PATCH"));
const _: () = assert!(MINOR < 256 && PATCH < 256);

const TEXT: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };

/// The version of the library that is loaded, to compare with
/// VU_SERVER_VERSION, the one of the header.
///
/// @return 0xMMmmpp: major, minor, patch
/// @since 0.1
#[unsafe(no_mangle)]
pub extern "C" fn vu_version() -> u32 {
    MAJOR << 16 | MINOR << 8 | PATCH
}

/// The same as text.
///
/// @return "major.minor.patch"; static
/// @since 0.1
#[unsafe(no_mangle)]
pub extern "C" fn vu_version_string() -> *const c_char {
    TEXT.as_ptr()
}

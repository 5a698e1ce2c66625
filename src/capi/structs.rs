//! Structures that grow: each begins with its size as its user's compiler knew it.
//!
//! A shorter one than the library's is a program that was built against an older header: what is missing is
//! zero. A longer one is a newer program, and fine as long as it uses nothing that the library does not know,
//! that is, as long as the rest is zero.

use std::mem::MaybeUninit;
use std::ptr;

use crate::error::{Error, Result};

/// The largest `struct_size` that is believed.
const MAX_SIZE: usize = 4096;

/// A structure that C hands over by pointer.
///
/// # Safety
/// `#[repr(C)]`, the first field is `struct_size: usize`, and every field may be all zero bytes.
pub(super) unsafe trait Extensible: Copy {
    const NAME: &'static str;
}

/// Fixes the layout that programs were compiled with: the size, and where each field is. c-tests/abi-layout.c says
/// the same to a C compiler, and c-tests/abi-complete.py sees to it that neither leaves anything out.
macro_rules! layout {
    ($name:ty, $size:literal, { $($field:ident: $offset:literal),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}
pub(super) use layout;

fn check_size<T: Extensible>(size: usize) -> Result<()> {
    if size < size_of::<usize>() || !size.is_multiple_of(align_of::<T>()) {
        return Err(Error::invalid(format!(
            "{}.struct_size {size}: not the size of any version of it",
            T::NAME
        )));
    }
    if size > MAX_SIZE {
        return Err(Error::new(
            libc::E2BIG,
            format!("{}.struct_size {size}: more than {MAX_SIZE}", T::NAME),
        ));
    }
    Ok(())
}

/// Copies the caller's structure.
///
/// # Safety
/// `from` is NULL or points to as many bytes as its first field says.
pub(super) unsafe fn read<T: Extensible>(from: *const T) -> Result<T> {
    if from.is_null() {
        return Err(Error::invalid(format!("{}: NULL", T::NAME)));
    }
    let bytes = from.cast::<u8>();
    // SAFETY: the caller's promise; the size comes first.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    let known = size.min(size_of::<T>());
    for at in known..size {
        // SAFETY: within `size`.
        if unsafe { *bytes.add(at) } != 0 {
            return Err(Error::new(
                libc::E2BIG,
                format!("{}: byte {at} is set and unknown to this version", T::NAME),
            ));
        }
    }
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are there on both sides; zero bytes are valid for what is not overwritten.
    unsafe {
        ptr::copy_nonoverlapping(bytes, copy.as_mut_ptr().cast(), known);
        Ok(copy.assume_init())
    }
}

/// Fills the caller's structure: as much as it has room for, and zero beyond what the library knows. Its
/// `struct_size` stays.
///
/// # Safety
/// `to` is NULL or points to as many writable bytes as its first field says.
pub(super) unsafe fn write<T: Extensible>(to: *mut T, value: &T) -> Result<()> {
    if to.is_null() {
        return Err(Error::invalid(format!("{}: NULL", T::NAME)));
    }
    // SAFETY: the caller's promise; the size comes first.
    let size = unsafe { to.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    let known = size.min(size_of::<T>());
    let head = size_of::<usize>();
    // SAFETY: `known` bytes are there on both sides, and `size` at `to`; `value` is not in there.
    unsafe {
        let (from, to) = (ptr::from_ref(value).cast::<u8>(), to.cast::<u8>());
        ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head);
        ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        struct_size: usize,
        a: u64,
        b: u64,
    }
    // SAFETY: as asked.
    unsafe impl Extensible for Now {
        const NAME: &'static str = "now";
    }

    /// Words of a structure of another version.
    fn read_words(words: &[u64]) -> Result<Now> {
        // SAFETY: the first word never exceeds what is there in the cases that read on.
        unsafe { read(words.as_ptr().cast::<Now>()) }
    }

    #[test]
    fn older_programs_leave_zeroes() {
        let got = read_words(&[16, 7]).unwrap();
        assert_eq!((got.a, got.b), (7, 0));
        assert_eq!(read_words(&[8]).unwrap().a, 0);
        assert_eq!(read_words(&[24, 1, 2]).unwrap().b, 2);
    }

    #[test]
    fn newer_programs_may_use_only_what_is_known() {
        assert_eq!(read_words(&[32, 1, 2, 0]).unwrap().b, 2);
        assert_eq!(
            read_words(&[32, 1, 2, 1 << 63]).unwrap_err().errno(),
            libc::E2BIG
        );
        assert_eq!(read_words(&[4096 + 8]).unwrap_err().errno(), libc::E2BIG);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for size in [0, 7, 9, 20] {
            let error = read_words(&[size, 0, 0, 0]).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.message().contains(&format!("now.struct_size {size}")));
        }
        // SAFETY: NULL is allowed.
        assert_eq!(
            unsafe { read::<Now>(ptr::null()) }.unwrap_err().errno(),
            libc::EINVAL
        );
    }

    #[test]
    fn results_are_cut_or_padded() {
        let value = Now {
            struct_size: 24,
            a: 5,
            b: 6,
        };
        let fill = |words: &mut [u64]| {
            // SAFETY: the first word is the length in bytes.
            unsafe { write(words.as_mut_ptr().cast::<Now>(), &value) }.unwrap();
        };
        let mut short = [16, 0, 0xaa];
        fill(&mut short);
        assert_eq!(short, [16, 5, 0xaa]);
        let mut long = [40, 0, 0, 1, 1];
        fill(&mut long);
        assert_eq!(long, [40, 5, 6, 0, 0]);
    }
}

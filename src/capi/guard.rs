//! The boundary that no panic crosses, and how results become the numbers that C reads.

use std::any::Any;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::error::Error;
use crate::shared::Shared;

/// What a function of the application has answered, if that is not one of its good answers.
pub(super) fn refusal(name: &str, answer: c_int) -> Error {
    if answer >= 0 {
        return Error::invalid(format!("{name} returned {answer}, which means nothing"));
    }
    let errno = answer.saturating_neg();
    let text = nix::errno::Errno::from_raw(errno).desc();
    Error::new(errno, format!("{name}: {text}"))
}

/// What a function returns when something has panicked underneath, by type.
pub(super) trait Answer {
    const PANICKED: Self;
}

impl Answer for c_int {
    const PANICKED: Self = -libc::EIO;
}
impl Answer for u32 {
    const PANICKED: Self = 0;
}
impl Answer for u64 {
    const PANICKED: Self = 0;
}
impl Answer for usize {
    const PANICKED: Self = 0;
}
impl Answer for () {
    const PANICKED: Self = ();
}
impl<T> Answer for *mut T {
    const PANICKED: Self = ptr::null_mut();
}
impl<T> Answer for *const T {
    const PANICKED: Self = ptr::null();
}

/// Runs the body of an exported function that concerns no server.
#[inline(always)]
pub(super) fn guard<T: Answer>(body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(answer) => answer,
        Err(payload) => {
            discard(payload);
            T::PANICKED
        }
    }
}

/// Runs the body of an exported function of `server`, which a panic poisons.
#[inline(always)]
pub(super) fn guard_for<T: Answer>(server: &Shared, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(answer) => answer,
        Err(payload) => {
            discard(payload);
            poison(server);
            T::PANICKED
        }
    }
}

/// Dropping what was thrown could throw again.
#[cold]
fn discard(payload: Box<dyn Any + Send>) {
    std::mem::forget(payload);
}

#[cold]
fn poison(server: &Shared) {
    server
        .logger
        .error(format_args!("a panic inside of the library was caught"));
    server.poison();
}

/// The positive errno of an error; the data path has bare numbers.
pub(super) trait Errno {
    fn errno(&self) -> c_int;
}

impl Errno for Error {
    fn errno(&self) -> c_int {
        Error::errno(self)
    }
}
impl Errno for c_int {
    fn errno(&self) -> c_int {
        *self
    }
}

/// What a successful call returns as a number that is not negative.
pub(super) trait Count {
    fn count(self) -> c_int;
}

impl Count for () {
    fn count(self) -> c_int {
        0
    }
}
impl Count for bool {
    fn count(self) -> c_int {
        c_int::from(self)
    }
}
impl Count for c_int {
    fn count(self) -> c_int {
        self
    }
}
impl Count for usize {
    fn count(self) -> c_int {
        c_int::try_from(self).unwrap_or(c_int::MAX)
    }
}

/// 0 or a count, or -errno.
#[inline(always)]
pub(super) fn status<T: Count, E: Errno>(result: Result<T, E>) -> c_int {
    match result {
        Ok(value) => value.count(),
        Err(error) => -error.errno(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_the_answer_of_its_type() {
        assert_eq!(guard(|| -> c_int { panic!("bug") }), -libc::EIO);
        assert!(guard(|| -> *mut u8 { panic!("bug") }).is_null());
        assert_eq!(guard(|| -> usize { panic!("bug") }), 0);
    }

    #[test]
    fn what_was_thrown_may_throw_when_it_is_dropped() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert_eq!(
            guard(|| -> c_int { std::panic::panic_any(Bomb) }),
            -libc::EIO
        );
    }

    #[test]
    fn results_become_numbers() {
        assert_eq!(status::<_, c_int>(Ok(())), 0);
        assert_eq!(status::<_, c_int>(Ok(true)), 1);
        assert_eq!(status::<_, c_int>(Ok(usize::MAX)), c_int::MAX);
        assert_eq!(status::<(), _>(Err(libc::EXDEV)), -libc::EXDEV);
        assert_eq!(status::<(), _>(Err(Error::invalid("field"))), -libc::EINVAL);
    }
}

//! Every lock, atomic and channel of the crate.
//!
//! The rest of the crate names its primitives from here only, so that the loom models in
//! [`crate::context`] and [`crate::virtqueue`] run the real code: under `--cfg loom` the same names mean
//! loom's instrumented types.

#[cfg(not(loom))]
pub(crate) use std::sync::Arc;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
    Ordering, fence,
};

#[cfg(loom)]
pub(crate) use loom::sync::Arc;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
    Ordering, fence,
};

#[cfg(not(loom))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(not(loom))]
pub(crate) use crossbeam_channel as channel;

/// A mutex with parking_lot's shape over loom's instrumented one.
#[cfg(loom)]
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// An identity of the calling thread that costs one register read.
///
/// It is the thread pointer of the psABI, so it is unique among the threads that are alive. A thread that
/// is started after another one has ended may get the same value; whoever stores it must accept that the
/// newcomer takes the place of the dead, or compare [`thread_serial`] as well.
#[cfg(not(loom))]
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn thread_id() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let id: usize;
        // SAFETY: on x86-64 Linux the word at %fs:0 holds the thread pointer itself (psABI, TLS variant
        // II); reading it has no side effect.
        unsafe {
            std::arch::asm!("mov {}, fs:0", out(reg) id, options(pure, readonly, nostack, preserves_flags));
        }
        id
    }
    #[cfg(target_arch = "aarch64")]
    {
        let id: usize;
        // SAFETY: reads the user-mode thread pointer register, which has no side effect.
        unsafe {
            std::arch::asm!("mrs {}, tpidr_el0", out(reg) id, options(pure, nomem, nostack, preserves_flags));
        }
        id
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        // SAFETY: pthread_self has no preconditions.
        unsafe { libc::pthread_self() as usize }
    }
}

/// An identity of the calling thread that no thread had before it and none has after it: one access to
/// thread-local storage, so not for the data path.
#[cfg(not(loom))]
pub(crate) fn thread_serial() -> u64 {
    thread_local! {
        static SERIAL: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    static LAST: AtomicU64 = AtomicU64::new(0);
    SERIAL.with(|serial| {
        if serial.get() == 0 {
            // Relaxed: only that numbers differ matters.
            serial.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
        }
        serial.get()
    })
}

//! Pins a task to CPUs.

use std::io;

/// Lets the task `tid` (0: the caller) run on `cpus` only.
pub fn pin_task(tid: i32, cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        // SAFETY: CPU_SET checks `cpu` against the size of the set, which is ours.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    let rc = unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &set) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

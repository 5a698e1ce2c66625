//! What a reader must know of the machine to judge the numbers.

use std::io;

/// The CPUs this process may run on.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    if unsafe { libc::sched_getaffinity(libc::getpid(), size_of_val(&set), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let size = usize::try_from(libc::CPU_SETSIZE).map_err(io::Error::other)?;
    // SAFETY: every index is below CPU_SETSIZE.
    let allowed = (0..size).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) });
    Ok(allowed.collect())
}

pub fn describe() -> io::Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = field(&cpuinfo, "model name").unwrap_or("unknown CPU");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let virtual_machine = if cpuinfo.contains(" hypervisor") {
        ", virtual"
    } else {
        ""
    };
    Ok(format!(
        "{model}, {} CPUs{virtual_machine}, Linux {}, load {}",
        std::thread::available_parallelism()?,
        kernel.trim(),
        load.split(' ').next().unwrap_or_default()
    ))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

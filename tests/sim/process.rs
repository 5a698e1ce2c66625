//! What this process holds: file descriptors, threads, mappings. For tests
//! that want nothing to be left behind; run those alone in their process, or
//! other tests' things are counted too.

use std::fs;

/// Open file descriptors, without the one that looking takes.
pub fn open_fds() -> usize {
    entries("/proc/self/fd") - 1
}

/// What the open file descriptors are, for a message about a leak.
pub fn fd_targets() -> Vec<String> {
    let directory = fs::read_dir("/proc/self/fd").expect("listing /proc/self/fd");
    let mut targets: Vec<String> = directory
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    targets.sort();
    targets
}

/// Names of the threads that start with `prefix` ("" for all). The kernel
/// keeps 15 bytes of a name.
pub fn threads_named(prefix: &str) -> Vec<String> {
    let directory = fs::read_dir("/proc/self/task").expect("listing /proc/self/task");
    let mut names: Vec<String> = directory
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Mappings of this process whose line contains `part` ("" for all). The
/// regions of `GuestMemory` show as "memfd:sim-guest", once for each mapping.
pub fn mappings(part: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("reading /proc/self/maps");
    maps.lines().filter(|line| line.contains(part)).count()
}

/// Resident memory in KiB.
pub fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("reading /proc/self/status");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .expect("VmRSS in /proc/self/status")
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("listing {directory}: {error}"))
        .count()
}

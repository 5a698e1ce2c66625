//! The fuzz targets over their seeds and over every input that has ever found a bug, without libFuzzer.

#[path = "../fuzz/harness/mod.rs"]
mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use harness::sim::HangGuard;

/// One target at a time: each counts the process's file descriptors.
static ALONE: Mutex<()> = Mutex::new(());

/// The files of a directory under `fuzz/`, in order of their names.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let Ok(entries) = fs::read_dir(root.join(kind).join(target)) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[track_caller]
fn replay(target: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let &(_, run) = harness::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .expect("a target of this name");
    let seeds = inputs("seeds", target);
    assert!(!seeds.is_empty(), "no seeds for {target}");
    let paths: Vec<_> = seeds
        .into_iter()
        .chain(inputs("regressions", target))
        .collect();
    // In a thread of its own: the target's server lives as long as that, so it is gone when the next one counts.
    let replayed = thread::spawn(move || {
        for path in paths {
            let _hang = HangGuard::secs(&path.display().to_string(), 60);
            println!("{}", path.display());
            run(&fs::read(&path).expect("an input"));
        }
    });
    assert!(replayed.join().is_ok(), "{target}: see above");
}

#[test]
fn inflight() {
    replay("inflight");
}

#[test]
fn iotlb() {
    replay("iotlb");
}

#[test]
fn message_stream() {
    replay("message_stream");
}

#[test]
fn packed_ring() {
    replay("packed_ring");
}

#[test]
fn sequence() {
    replay("sequence");
}

#[test]
fn split_ring() {
    replay("split_ring");
}

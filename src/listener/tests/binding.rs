//! Socket files: made, taken over, left alone, removed.

use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::sync::Barrier;

use nix::fcntl::{Flock, FlockArg};

use super::*;

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket())
}

#[test]
fn the_file_is_there_while_the_listener_is() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let mut listener = listen(&path).expect("listen");
    assert!(is_socket(&path));
    let client = UnixStream::connect(&path).expect("connect");
    let accepted = accept(&mut listener).expect("a client");
    assert!(connects(&client, accepted));
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_stale_file_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    leave_stale(&path);
    let mut listener = listen(&path).expect("listen");
    let client = UnixStream::connect(&path).expect("connect");
    assert!(connects(&client, accept(&mut listener).expect("a client")));
}

#[test]
fn a_path_in_use_is_refused_and_left_working() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let mut first = listen(&path).expect("listen");
    let error = listen(&path).expect_err("in use");
    assert_eq!(error, ListenError::InUse { path: path.clone() });
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert!(
        accept(&mut first).is_some(),
        "the question whether it is in use"
    );
    let client = UnixStream::connect(&path).expect("connect");
    assert!(connects(&client, accept(&mut first).expect("a client")));
}

#[test]
fn a_server_with_a_full_backlog_is_in_use() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let _first = listen(&path).expect("listen");
    let mut waiting = Vec::new();
    while let Ok(client) = super::super::connect_to(&path) {
        waiting.push(client);
        assert!(waiting.len() < 1000, "the backlog has no bound");
    }
    assert!(matches!(listen(&path), Err(ListenError::InUse { .. })));
}

#[test]
fn a_living_datagram_socket_is_in_use() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let _datagram = UnixDatagram::bind(&path).expect("bind");
    assert!(matches!(listen(&path), Err(ListenError::InUse { .. })));
    assert!(is_socket(&path));
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let scratch = Scratch::new();
    let stale = scratch.path("stale");
    leave_stale(&stale);
    let file = scratch.path("file");
    fs::write(&file, "precious").expect("write");
    let directory = scratch.path("directory");
    fs::create_dir(&directory).expect("create");
    let link = scratch.path("link");
    symlink(&stale, &link).expect("symlink");
    for (path, expected) in [
        (&file, "a regular file"),
        (&directory, "a directory"),
        (&link, "a symbolic link"),
    ] {
        match listen(path) {
            Err(ListenError::NotASocket { what, .. }) => assert_eq!(what, expected),
            other => panic!("{expected} gave {other:?}"),
        }
    }
    assert_eq!(fs::read(&file).expect("read"), b"precious");
    assert!(directory.is_dir() && link.is_symlink() && is_socket(&stale));
}

#[test]
fn a_missing_directory_is_named() {
    let scratch = Scratch::new();
    let error = listen(&scratch.path("none/s")).expect_err("no directory");
    assert_eq!(error.errno(), libc::ENOENT);
    assert!(error.to_string().contains("none/s"), "{error}");
}

#[test]
fn only_our_own_file_is_removed() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let listener = listen(&path).expect("listen");
    fs::remove_file(&path).expect("remove");
    let _other = UnixListener::bind(&path).expect("bind");
    drop(listener);
    assert!(is_socket(&path), "the file of another server");
}

#[test]
fn a_removed_file_does_no_harm() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let listener = listen(&path).expect("listen");
    fs::remove_file(&path).expect("remove");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn of_servers_that_start_at_once_one_wins() {
    const SERVERS: usize = 4;
    for _ in 0..50 {
        let scratch = Scratch::new();
        let path = scratch.path("s");
        leave_stale(&path);
        let barrier = Barrier::new(SERVERS);
        let results: Vec<_> = thread::scope(|scope| {
            let start = || {
                barrier.wait();
                listen(&path)
            };
            let threads: Vec<_> = (0..SERVERS).map(|_| scope.spawn(start)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        let winners = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(winners, 1, "{results:?}");
        assert!(
            UnixStream::connect(&path).is_ok(),
            "the winner's file is there"
        );
    }
}

#[test]
fn a_directory_locked_for_ever_only_delays() {
    let scratch = Scratch::new();
    let directory = fs::File::open(&scratch.0).expect("open");
    let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock);
    assert!(lock.is_ok());
    let begin = Instant::now();
    let path = scratch.path("s");
    let listener = listen(&path);
    assert!(listener.is_ok());
    let elapsed = begin.elapsed();
    assert!(
        elapsed >= Duration::from_millis(200),
        "the lock is heeded: {elapsed:?}"
    );
    assert!(
        elapsed < Duration::from_secs(10),
        "but not for ever: {elapsed:?}"
    );
}

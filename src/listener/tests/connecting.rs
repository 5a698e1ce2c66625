//! Connecting with back-off. Time is given to the listener, so nothing waits.

use super::*;

fn connector(path: &Path) -> Listener {
    Listener::open(Address::Connect(path.to_path_buf())).expect("a legal path")
}

/// Fails to connect at `now` and returns the pause after it.
fn failed_attempt(listener: &mut Listener, now: Instant) -> Duration {
    assert!(
        listener
            .try_accept(now)
            .expect("worth trying again")
            .is_none()
    );
    listener.timeout(now).expect("always another attempt")
}

#[test]
fn the_front_end_may_come_later() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let mut listener = connector(&path);
    let mut now = Instant::now();
    assert_eq!(listener.timeout(now), Some(Duration::ZERO));
    assert!(listener.poll_fd().is_none());

    // Nothing there, then a file without a process.
    for expected in [10, 20] {
        let pause = failed_attempt(&mut listener, now);
        assert_eq!(pause.as_millis(), expected);
        now += pause;
    }
    leave_stale(&path);
    for expected in [40, 80, 160, 320, 640, 1000, 1000] {
        let pause = failed_attempt(&mut listener, now);
        assert_eq!(pause.as_millis(), expected);
        now += pause;
    }

    fs::remove_file(&path).expect("remove");
    let front_end = UnixListener::bind(&path).expect("bind");
    let early = listener.try_accept(now - Duration::from_millis(1));
    assert!(early.expect("not tried").is_none());
    let connection = listener
        .try_accept(now)
        .expect("no failure")
        .expect("connected");
    assert!(is_cloexec(&connection) && is_nonblocking(&connection));
    let (client, _) = front_end.accept().expect("accept");
    assert!(connects(&client, connection));
    assert!(!listener.is_exhausted());
}

#[test]
fn a_front_end_that_closes_at_once_is_not_hammered() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let _front_end = UnixListener::bind(&path).expect("bind");
    let mut listener = connector(&path);
    let now = Instant::now();
    assert!(listener.try_accept(now).expect("no failure").is_some());
    assert_eq!(listener.timeout(now), Some(Duration::from_millis(10)));
    assert!(listener.try_accept(now).expect("not tried").is_none());

    // After a long connection the next attempt is due at once.
    let later = now + Duration::from_secs(60);
    assert_eq!(listener.timeout(later), Some(Duration::ZERO));
    assert!(listener.try_accept(later).expect("no failure").is_some());
    assert_eq!(listener.timeout(later), Some(Duration::from_millis(10)));
}

#[test]
fn a_full_backlog_is_waited_out() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let _front_end = listen(&path).expect("listen");
    let mut waiting = Vec::new();
    while let Ok(client) = super::super::connect_to(&path) {
        waiting.push(client);
        assert!(waiting.len() < 1000, "the backlog has no bound");
    }
    let mut listener = connector(&path);
    let pause = failed_attempt(&mut listener, Instant::now());
    assert_eq!(pause.as_millis(), 10);
}

#[test]
fn a_hopeless_path_is_reported_without_spinning() {
    let scratch = Scratch::new();
    let file = scratch.path("file");
    fs::write(&file, "").expect("write");
    let mut listener = connector(&file.join("s"));
    let now = Instant::now();
    let error = listener.try_accept(now).expect_err("not a directory");
    assert_eq!(error.errno(), libc::ENOTDIR);
    assert!(!error.is_transient());
    assert!(error.to_string().contains("file/s"), "{error}");
    assert_eq!(listener.timeout(now), Some(Duration::from_millis(10)));
}

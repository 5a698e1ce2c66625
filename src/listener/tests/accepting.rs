//! Accepting, also from inherited descriptors and in want of descriptors.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

fn is_readable(listener: &Listener) -> bool {
    let fd = listener.poll_fd().expect("a listening socket");
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).expect("poll") == 1
}

#[test]
fn nobody_there_does_not_block() {
    let scratch = Scratch::new();
    let mut listener = listen(&scratch.path("s")).expect("listen");
    assert!(!is_readable(&listener));
    assert!(accept(&mut listener).is_none());
    assert_eq!(listener.timeout(Instant::now()), None);
    assert!(!listener.is_exhausted());
}

#[test]
fn clients_wait_in_the_backlog_and_come_in_order() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let mut listener = listen(&path).expect("listen");
    let first = UnixStream::connect(&path).expect("connect");
    let second = UnixStream::connect(&path).expect("connect");
    assert!(is_readable(&listener));
    let accepted = accept(&mut listener).expect("the first");
    assert!(is_cloexec(&accepted) && is_nonblocking(&accepted));
    assert!(connects(&first, accepted));
    assert!(is_readable(&listener));
    assert!(connects(
        &second,
        accept(&mut listener).expect("the second")
    ));
    assert!(accept(&mut listener).is_none());
}

#[test]
fn an_inherited_listening_socket_is_ours_but_not_its_file() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let inherited = OwnedFd::from(UnixListener::bind(&path).expect("bind"));
    fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty())).expect("F_SETFD");
    assert!(!is_nonblocking(&inherited));
    let watch = inherited.try_clone().expect("dup");

    let mut listener = Listener::open(Address::ListenFd(inherited)).expect("adopt");
    let ours = listener.poll_fd().expect("a socket").as_raw_fd();
    let flags = fs::read_to_string(format!("/proc/self/fdinfo/{ours}")).expect("fdinfo");
    let flags = flags
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .expect("flags");
    let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
    assert!(flags & libc::O_CLOEXEC != 0);
    assert!(is_nonblocking(&watch));

    assert!(accept(&mut listener).is_none());
    let client = UnixStream::connect(&path).expect("connect");
    assert!(connects(&client, accept(&mut listener).expect("a client")));
    drop(listener);
    assert!(path.exists());
}

#[test]
fn an_inherited_connection_comes_once() {
    let (client, inherited) = UnixStream::pair().expect("pair");
    let inherited = OwnedFd::from(inherited);
    fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty())).expect("F_SETFD");
    let mut listener = Listener::open(Address::ConnectedFd(inherited)).expect("adopt");
    assert_eq!(listener.timeout(Instant::now()), Some(Duration::ZERO));
    assert!(listener.poll_fd().is_none() && !listener.is_exhausted());
    let accepted = accept(&mut listener).expect("the connection");
    assert!(is_cloexec(&accepted));
    assert!(connects(&client, accepted));
    assert!(accept(&mut listener).is_none());
    assert_eq!(listener.timeout(Instant::now()), None);
    assert!(listener.is_exhausted());
}

/// The limit on descriptor numbers is the process's, so this runs in a process
/// of its own: the test executable again, with this one test.
#[test]
fn want_of_descriptors_is_waited_out() {
    const CHILD: &str = "VU_SERVER_TEST_NO_FDS";
    if env::var_os(CHILD).is_some() {
        return wait_out_want_of_descriptors();
    }
    let name = module_path!().split_once("::").expect("a crate").1;
    let output = Command::new(env::current_exe().expect("own path"))
        .arg(format!("{name}::want_of_descriptors_is_waited_out"))
        .args(["--exact", "--test-threads=1", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("the test executable runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

fn wait_out_want_of_descriptors() {
    let scratch = Scratch::new();
    let path = scratch.path("s");
    let mut listener = listen(&path).expect("listen");
    let client = UnixStream::connect(&path).expect("connect");
    let next = client.try_clone().expect("dup").as_raw_fd() as u64;
    set_descriptor_limit(next);

    let mut now = Instant::now();
    for expected in [10, 20, 40] {
        let error = listener.try_accept(now).expect_err("no descriptor is free");
        assert_eq!(error.errno(), libc::EMFILE);
        assert!(error.is_transient());
        assert!(listener.poll_fd().is_none(), "polling would spin");
        let pause = listener.timeout(now).expect("a pause");
        assert_eq!(pause.as_millis(), expected);
        let early = listener.try_accept(now).expect("not tried");
        assert!(early.is_none());
        now += pause;
    }
    set_descriptor_limit(next + 10);
    let accepted = listener
        .try_accept(now)
        .expect("no failure")
        .expect("a client");
    assert!(connects(&client, accepted));
    assert!(listener.poll_fd().is_some());
    assert_eq!(listener.timeout(now), None);
}

fn set_descriptor_limit(limit: u64) {
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is valid for both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits), 0);
        limits.rlim_cur = limit;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limits), 0);
    }
}

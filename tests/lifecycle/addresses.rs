//! Where front-ends come from, and what is refused by name.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use vu_server::{Address, Server};

use crate::sim::echo::round_trip;
use crate::sim::{Frontend, Session};
use crate::stop::*;

struct Rig {
    server: Server,
    journal: std::sync::Arc<Journal>,
    looper: Looper,
}

impl Rig {
    fn new() -> Self {
        let journal = Journal::new();
        let server = Server::builder().build(Probe::echo(&journal)).unwrap();
        Rig {
            server,
            journal,
            looper: Looper::new(),
        }
    }

    #[track_caller]
    fn start(&self, address: Address) {
        self.server.start(address, Some(&self.looper.ctx)).unwrap();
    }

    /// Starts must fail, with an error that names what is wrong.
    #[track_caller]
    fn refuse(&self, address: Address, errno: i32, named: &[&str]) {
        let error = self
            .server
            .start(address, Some(&self.looper.ctx))
            .unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
        for name in named {
            assert!(
                error.message().contains(name),
                "{error} does not say {name:?}"
            );
        }
        assert!(self.server.is_stopped());
    }

    fn end(self) {
        self.server.stop().unwrap();
        drop(self.server);
        self.looper.finish();
    }
}

#[track_caller]
fn use_it(frontend: Frontend) {
    let mut session = Session::builder().over(frontend);
    round_trip(&mut session.queues[0], b"hello");
    session.disconnect();
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

#[test]
fn a_path_to_listen_at() {
    let _guard = guard("a_path_to_listen_at", 30);
    let rig = Rig::new();
    let path = socket_path("listen");
    rig.start(Address::Listen(path.clone()));
    assert!(is_socket(&path));
    use_it(Frontend::connect(&path).unwrap());
    use_it(Frontend::connect(&path).unwrap());
    rig.server.stop().unwrap();
    assert!(!path.exists());
    rig.end();
}

#[test]
fn a_listening_descriptor() {
    let _guard = guard("a_listening_descriptor", 30);
    let rig = Rig::new();
    let path = socket_path("listen-fd");
    let listener = UnixListener::bind(&path).unwrap();
    // It may come from a parent that had use for a blocking one.
    listener.set_nonblocking(false).unwrap();
    rig.start(Address::ListenFd(OwnedFd::from(listener)));
    use_it(Frontend::connect(&path).unwrap());
    use_it(Frontend::connect(&path).unwrap());
    rig.server.stop().unwrap();
    // Whoever made the file removes it.
    assert!(is_socket(&path));
    assert!(UnixStream::connect(&path).is_err(), "still listening");
    fs::remove_file(&path).unwrap();
    rig.end();
}

#[test]
fn a_connected_descriptor() {
    let _guard = guard("a_connected_descriptor", 30);
    let rig = Rig::new();
    for round in 1..=2 {
        let (frontend, theirs) = Frontend::pair().unwrap();
        rig.start(Address::ConnectedFd(theirs));
        use_it(frontend);
        // That was its only connection; it waits for its stop.
        rig.journal.wait_for_count("disconnected 0", round);
        assert!(!rig.server.is_stopped());
        rig.server.stop().unwrap();
    }
    assert_eq!(rig.server.stats().connections, 2);
    rig.end();
}

#[test]
fn a_path_to_connect_to_where_the_front_end_listens_later() {
    let _guard = guard("a_path_to_connect_to_where_the_front_end_listens_later", 30);
    let rig = Rig::new();
    let path = socket_path("connect");
    rig.start(Address::Connect(path.clone()));
    assert!(!path.exists());
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..3 {
        // Again after each disconnect.
        let (connection, _) = listener.accept().unwrap();
        use_it(Frontend::from_fd(connection.into()));
    }
    // The front-end is restarted.
    drop(listener);
    fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let (connection, _) = listener.accept().unwrap();
    use_it(Frontend::from_fd(connection.into()));
    rig.server.stop().unwrap();
    assert!(is_socket(&path), "the front-end's file is its own");
    fs::remove_file(&path).unwrap();
    rig.end();
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    let _guard = guard("a_stale_socket_file_is_replaced_and_a_live_one_is_not", 30);
    let rig = Rig::new();
    let path = socket_path("stale");
    let listener = UnixListener::bind(&path).unwrap();
    let name = path.to_str().unwrap();
    rig.refuse(Address::Listen(path.clone()), libc::EADDRINUSE, &[name]);
    // It still is the other one's, and answers.
    assert!(UnixStream::connect(&path).is_ok());
    drop(listener);
    assert!(is_socket(&path));
    rig.start(Address::Listen(path.clone()));
    use_it(Frontend::connect(&path).unwrap());
    // Another server of this library is alive too.
    let second = Rig::new();
    second.refuse(Address::Listen(path.clone()), libc::EADDRINUSE, &[name]);
    use_it(Frontend::connect(&path).unwrap());
    rig.server.stop().unwrap();
    assert!(!path.exists());
    second.start(Address::Listen(path.clone()));
    second.end();
    rig.end();
}

#[test]
fn a_file_that_took_the_sockets_place_is_left_alone() {
    let _guard = guard("a_file_that_took_the_sockets_place_is_left_alone", 30);
    let rig = Rig::new();
    let path = socket_path("replaced");
    rig.start(Address::Listen(path.clone()));
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    rig.server.stop().unwrap();
    assert!(is_socket(&path), "another one's socket file was removed");
    drop(other);
    fs::remove_file(&path).unwrap();
    rig.end();
}

#[test]
fn anything_else_is_refused_by_name() {
    let _guard = guard("anything_else_is_refused_by_name", 30);
    let rig = Rig::new();

    let file = socket_path("regular");
    fs::write(&file, "precious").unwrap();
    let name = file.to_str().unwrap();
    rig.refuse(
        Address::Listen(file.clone()),
        libc::ENOTSOCK,
        &[name, "regular file"],
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let regular = OwnedFd::from(fs::File::open(&file).unwrap());
    let number = format!("{}", regular.as_raw_fd());
    rig.refuse(
        Address::ListenFd(regular),
        libc::ENOTSOCK,
        &[&number, "regular file"],
    );
    let regular = OwnedFd::from(fs::File::open(&file).unwrap());
    rig.refuse(
        Address::ConnectedFd(regular),
        libc::ENOTSOCK,
        &["regular file"],
    );
    fs::remove_file(&file).unwrap();

    let (stream, _peer) = UnixStream::pair().unwrap();
    let named = &["connected UNIX stream socket", "listening"];
    rig.refuse(Address::ListenFd(stream.into()), libc::ENOTSOCK, named);
    let path = socket_path("mixed");
    let listener = UnixListener::bind(&path).unwrap();
    rig.refuse(Address::ConnectedFd(listener.into()), libc::ENOTSOCK, named);
    fs::remove_file(&path).unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    rig.refuse(
        Address::ListenFd(datagram.into()),
        libc::ENOTSOCK,
        &["datagram"],
    );
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rig.refuse(Address::ListenFd(tcp.into()), libc::ENOTSOCK, &["IPv4"]);

    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
    rig.refuse(
        Address::Listen(long.clone()),
        libc::ENAMETOOLONG,
        &["xxx", "107"],
    );
    rig.refuse(Address::Connect(long), libc::ENAMETOOLONG, &["xxx", "107"]);
    let missing = PathBuf::from("/nonexistent/a/b");
    rig.refuse(
        Address::Listen(missing),
        libc::ENOENT,
        &["/nonexistent/a/b"],
    );

    for (text, named) in [
        ("tcp:localhost:1234", "tcp:localhost:1234"),
        ("vsock:3", "vsock:3"),
        ("fd:nine", "fd:nine"),
        ("", "\"\""),
    ] {
        // SAFETY: none of them is an open descriptor's number.
        let error = unsafe { Address::parse(text) }.unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains(named), "{error}");
    }
    // All of that left a server that can be started.
    let path = socket_path("finally");
    rig.start(Address::Listen(path.clone()));
    use_it(Frontend::connect(&path).unwrap());
    rig.end();
}

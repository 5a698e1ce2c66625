//! The text form of addresses, and what descriptors turn out to be.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use nix::sys::stat::fstat;
use nix::unistd::{dup, pipe};

use super::*;

fn parse(text: &str) -> Result<Address, ListenError> {
    assert!(!text.starts_with("fd:") || text.len() < 4 || !text[3..].starts_with(char::is_numeric));
    // SAFETY: it names no descriptor, as just checked.
    unsafe { Address::parse(text) }
}

/// Parses the address of `fd` and takes over only what `parse` does not.
fn parse_fd(fd: OwnedFd) -> Result<Address, ListenError> {
    let fd = fd.into_raw_fd();
    // SAFETY: the descriptor has no owner since the line before.
    unsafe { Address::parse(&format!("fd:{fd}")) }
}

#[test]
fn paths_are_listened_at_or_connected_to() {
    for (text, expected) in [
        ("unix:/run/vu.sock", "/run/vu.sock"),
        ("/run/vu.sock", "/run/vu.sock"),
        ("vu.sock", "vu.sock"),
        ("./a:b", "./a:b"),
        ("/run/a:b", "/run/a:b"),
        ("unix:a:b", "a:b"),
        ("./@name", "./@name"),
    ] {
        match parse(text) {
            Ok(Address::Listen(path)) => assert_eq!(path, Path::new(expected), "{text}"),
            other => panic!("{text} gave {other:?}"),
        }
    }
    match parse("unix-connect:/run/vu.sock") {
        Ok(Address::Connect(path)) => assert_eq!(path, Path::new("/run/vu.sock")),
        other => panic!("gave {other:?}"),
    }
}

#[test]
fn anything_else_is_refused_by_name() {
    for text in [
        "",
        "unix:",
        "unix-connect:",
        "tcp:localhost:80",
        "vsock:2:1024",
        "UNIX:/x",
        "a:b",
        ":x",
        "@abstract",
        "unix:@abstract",
        "unix-connect:@a",
        "unix:/a\0b",
        "fd:",
        "fd:-1",
        "fd:+",
        "fd:x",
    ] {
        let error = parse(text).expect_err(text);
        assert!(
            matches!(error, ListenError::Address { .. }),
            "{text:?}: {error:?}"
        );
        assert_eq!(error.errno(), libc::EINVAL);
    }
    let error = parse("tcp:localhost:80").expect_err("tcp").to_string();
    assert!(error.contains("\"tcp:localhost:80\""), "{error}");
}

#[test]
fn the_longest_path_is_that_of_a_socket_address() {
    let longest = "/".to_string() + &"x".repeat(106);
    assert!(matches!(parse(&longest), Ok(Address::Listen(_))));
    for prefix in ["", "unix:", "unix-connect:"] {
        let error = parse(&format!("{prefix}{longest}y")).expect_err("108 bytes");
        assert_eq!(error.errno(), libc::ENAMETOOLONG);
    }
}

#[test]
fn addresses_made_without_text_are_checked_too() {
    for path in ["", "@abstract"] {
        assert!(Listener::open(Address::Listen(path.into())).is_err());
        assert!(Listener::open(Address::Connect(path.into())).is_err());
    }
}

#[test]
fn descriptors_are_told_apart() {
    let scratch = Scratch::new();
    let listening = UnixListener::bind(scratch.path("s")).expect("bind");
    let (connected, _peer) = UnixStream::pair().expect("pair");
    assert!(matches!(
        parse_fd(listening.into()),
        Ok(Address::ListenFd(_))
    ));
    assert!(matches!(
        parse_fd(connected.into()),
        Ok(Address::ConnectedFd(_))
    ));
}

#[test]
fn a_connection_whose_peer_has_gone_is_still_a_connection() {
    let (connected, peer) = UnixStream::pair().expect("pair");
    drop(peer);
    assert!(matches!(
        Address::from_fd(connected.into()),
        Ok(Address::ConnectedFd(_))
    ));
}

#[test]
fn other_descriptors_are_named() {
    let scratch = Scratch::new();
    let stream = SockFlag::SOCK_CLOEXEC;
    let lonely = socket(AddressFamily::Unix, SockType::Stream, stream, None).expect("socket");
    let (packet, _peer) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, stream).expect("socketpair");
    let others: [(OwnedFd, &str); 8] = [
        (
            File::create(scratch.path("f")).expect("file").into(),
            "a regular file",
        ),
        (
            File::open(&scratch.0).expect("directory").into(),
            "a directory",
        ),
        (pipe().expect("pipe").0, "a pipe"),
        (
            TcpListener::bind("127.0.0.1:0").expect("tcp").into(),
            "an IPv4 stream socket",
        ),
        (
            UdpSocket::bind("127.0.0.1:0").expect("udp").into(),
            "an IPv4 datagram socket",
        ),
        (
            UnixDatagram::unbound().expect("dgram").into(),
            "a UNIX datagram socket",
        ),
        (packet, "a UNIX seqpacket socket"),
        (
            lonely,
            "a UNIX stream socket that neither listens nor is connected",
        ),
    ];
    for (fd, expected) in others {
        let copy = dup(&fd).expect("dup");
        let error = Address::from_fd(copy).expect_err(expected);
        match &error {
            ListenError::Descriptor { what, .. } => assert_eq!(what, expected),
            other => panic!("{expected} gave {other:?}"),
        }
        assert_eq!(error.errno(), libc::ENOTSOCK);
    }
}

#[test]
fn a_refused_descriptor_stays_the_callers() {
    let (read_end, _write_end) = pipe().expect("pipe");
    let text = format!("fd:{}", read_end.as_raw_fd());
    // SAFETY: a pipe is refused, and so keeps its owner.
    let error = unsafe { Address::parse(&text) }.expect_err("a pipe");
    assert!(error.to_string().contains("is a pipe, not"), "{error}");
    assert!(fstat(read_end.as_fd()).is_ok());
}

#[test]
fn a_closed_descriptor_is_an_error() {
    // SAFETY: this number is beyond what the system allows, so nobody owns it.
    let error = unsafe { Address::parse("fd:2147483647") }.expect_err("not open");
    assert_eq!(error.errno(), libc::EBADF);
    assert!(error.to_string().contains("2147483647"), "{error}");
}

#[test]
fn the_kind_of_a_given_descriptor_must_be_right() {
    let scratch = Scratch::new();
    let listening = UnixListener::bind(scratch.path("s")).expect("bind");
    let (connected, _peer) = UnixStream::pair().expect("pair");
    for wrong in [
        Address::ConnectedFd(listening.into()),
        Address::ListenFd(connected.into()),
    ] {
        let error = Listener::open(wrong).expect_err("the wrong kind");
        assert!(matches!(error, ListenError::Descriptor { .. }), "{error:?}");
    }
}

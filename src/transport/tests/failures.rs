//! Ends and excesses: each its own error, and nothing kept.

use std::process::Command;

use nix::unistd::dup;

use super::*;
use crate::protocol::{Header, HeaderError, MAX_BODY};

#[test]
fn an_end_after_each_byte_has_its_error() {
    let bytes = request(9, &[3; 40]);
    for cut in 0..bytes.len() {
        let (mut transport, theirs) = pair();
        let (probe, fd) = Probe::new();
        if cut > 0 {
            write_all(&theirs, &bytes[..cut], &[fd]);
        }
        assert!(transport.receive().expect("incomplete").is_none(), "{cut}");
        hang_up(theirs, &transport);
        let expected = match cut {
            0 => TransportError::Closed,
            1..12 => TransportError::ClosedInHeader { received: cut },
            _ => TransportError::ClosedInBody {
                request: 9,
                received: cut - 12,
                size: 40,
            },
        };
        assert_eq!(transport.receive().map(drop), Err(expected), "{cut}");
        assert_eq!(transport.receive().map(drop), Err(expected), "{cut}");
        assert!(cut == 0 || probe.gets_closed(), "{cut}");
    }
}

#[test]
fn messages_before_the_end_are_still_received() {
    let (mut transport, theirs) = pair();
    write_all(&theirs, &request(3, &[]), &[]);
    hang_up(theirs, &transport);
    assert!(transport.receive().expect("legal").is_some());
    assert_eq!(transport.receive().map(drop), Err(TransportError::Closed));
}

/// Sends `bytes` with a descriptor and expects `error`, for good.
fn expect_failure(bytes: &[u8], error: TransportError) {
    let (mut transport, theirs) = pair();
    let (probe, fd) = Probe::new();
    write_all(&theirs, bytes, &[fd]);
    assert_eq!(transport.receive().map(drop), Err(error));
    assert!(probe.gets_closed());
    write_all(&theirs, &request(1, &[]), &[]);
    assert_eq!(transport.receive().map(drop), Err(error));
}

#[test]
fn a_bad_header_ends_the_connection_before_its_body() {
    for size in [MAX_BODY as u32 + 1, u32::MAX] {
        let header = Header::request(24, false, size);
        expect_failure(
            &header.encode(),
            TransportError::Header(HeaderError::SizeTooLarge { request: 24, size }),
        );
    }
    for (flags, error) in [
        (
            0x2,
            HeaderError::Version {
                request: 1,
                version: 2,
            },
        ),
        (
            0x11,
            HeaderError::ReservedFlags {
                request: 1,
                flags: 0x11,
            },
        ),
        (
            0x5,
            HeaderError::ReplyOnRequest {
                request: 1,
                flags: 0x5,
            },
        ),
    ] {
        let header = Header {
            request: 1,
            flags,
            size: 0,
        };
        expect_failure(&header.encode(), TransportError::Header(error));
    }
}

#[test]
fn too_many_descriptors_are_all_closed() {
    for count in [33, 253] {
        let (mut transport, theirs) = pair();
        // Few pipes with many duplicates: 253 pipes would strain the limit.
        let (probe, fd) = Probe::new();
        let fds: Vec<OwnedFd> = (0..count).map(|_| dup(&fd).expect("dup")).collect();
        drop(fd);
        write_all(&theirs, &request(5, &[0; 8]), &fds);
        drop(fds);
        assert_eq!(
            transport.receive().map(drop),
            Err(TransportError::TooManyFds)
        );
        assert!(probe.gets_closed(), "{count}");
    }
}

#[test]
fn descriptors_of_all_pieces_count() {
    let (mut transport, theirs) = pair();
    let bytes = request(5, &[0; 8]);
    let (probes, mut first) = Probe::many(33);
    let second = first.split_off(32);
    write_all(&theirs, &bytes[..12], &first);
    drop(first);
    assert!(transport.receive().expect("incomplete").is_none());
    assert!(!probes[0].is_closed());
    write_all(&theirs, &bytes[12..], &second);
    drop(second);
    assert_eq!(
        transport.receive().map(drop),
        Err(TransportError::TooManyFds)
    );
    assert!(probes.iter().all(Probe::gets_closed));
}

#[test]
fn a_dropped_transport_closes_what_it_holds() {
    let (mut transport, theirs) = pair();
    let (probe, fd) = Probe::new();
    write_all(&theirs, &request(5, &[0; 8])[..15], &[fd]);
    assert!(transport.receive().expect("incomplete").is_none());
    assert!(!probe.is_closed());
    drop(transport);
    assert!(probe.gets_closed());
}

#[test]
fn a_reset_is_not_an_orderly_end() {
    let (mut transport, theirs) = pair();
    transport.enqueue(Message::reply(1, vec![0; 8], Vec::new()));
    assert_eq!(transport.flush(), Ok(true));
    hang_up(theirs, &transport);
    assert_eq!(transport.receive().map(drop), Err(TransportError::Reset));
}

#[test]
fn a_shutdown_is_seen_by_both_ends() {
    let (mut transport, theirs) = pair();
    transport.shutdown();
    assert_eq!(read(&theirs, &mut [0; 4]), Ok(0));
    assert_eq!(transport.receive().map(drop), Err(TransportError::Closed));
    hang_up(theirs, &transport);
    transport.shutdown();
}

/// The limit on descriptor numbers is the process's, so this runs in a process
/// of its own: the test executable again, with this one test.
#[test]
fn descriptors_lost_for_want_of_numbers() {
    const CHILD: &str = "VU_SERVER_TEST_FDS_LOST";
    if std::env::var_os(CHILD).is_some() {
        return lose_descriptors();
    }
    let module = module_path!();
    let name = module.split_once("::").expect("a crate").1;
    let output = Command::new(std::env::current_exe().expect("own path"))
        .arg(format!("{name}::descriptors_lost_for_want_of_numbers"))
        .args(["--exact", "--test-threads=1", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("the test executable runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

fn lose_descriptors() {
    let (mut transport, theirs) = pair();
    let (probe, fd) = Probe::new();
    let fds: Vec<OwnedFd> = (0..3).map(|_| dup(&fd).expect("dup")).collect();
    write_all(&theirs, &request(5, &[0; 8]), &fds);
    let next = dup(&fd).expect("dup").as_raw_fd();
    let limit = libc::rlimit {
        rlim_cur: next as u64 + 1,
        rlim_max: next as u64 + 1,
    };
    // SAFETY: the structure is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let error = TransportError::FdsLost { received: 1 };
    assert_eq!(transport.receive().map(drop), Err(error));
    drop((fd, fds));
    assert!(probe.gets_closed());
}

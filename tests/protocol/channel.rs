//! Requests to the front-end that want an answer, as they are on the wire, and what is refused at once.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use vu_server::{Capabilities, Server, ServerBuilder, ShmemMapping};

use super::device::{Event, SOON, Script};
use super::rig::{Rig, acknowledging, run_device, works};
use crate::sim::wire::{backend_req, protocol_feature, req, u32_at, u64_at};
use crate::sim::{BackendChannel, BackendRequest, Deadline, EventFd, Session, eventually};

/// Long enough to notice what must not come; nothing waits for it to pass.
pub const EARLY: Duration = Duration::from_millis(30);
pub const UUID: [u8; 16] = *b"0123456789abcdef";
pub const PAGE: u64 = 4096;
const SHMEM: [u64; 3] = [0, 4 * PAGE, PAGE];
pub const ALL: u64 = protocol_feature::SHARED_OBJECT
    | protocol_feature::SHMEM
    | protocol_feature::HOST_NOTIFIER
    | protocol_feature::BACKEND_SEND_FD;

pub fn configure(builder: ServerBuilder) -> ServerBuilder {
    builder.shmem_regions(SHMEM)
}

#[track_caller]
pub fn run(name: &str, test: impl FnOnce(&Rig)) {
    run_device(name, Script::able(Capabilities::all()), configure, test);
}

#[track_caller]
pub fn session(rig: &Rig) -> Session {
    rig.builder().protocol_features(ALL).connect(rig.path())
}

pub fn channel(session: &Session) -> &BackendChannel {
    session.backend.as_ref().expect("a channel")
}

/// The errno of an answer, 0 for a good one.
pub type Heard = Receiver<i32>;

pub fn errno<T>(result: &vu_server::Result<T>) -> i32 {
    result.as_ref().err().map_or(0, vu_server::Error::errno)
}

pub fn add(server: &Server) -> vu_server::Result<Heard> {
    let (sender, heard) = mpsc::channel();
    server.object_add(UUID, move |result| sender.send(errno(&result)).unwrap())?;
    Ok(heard)
}

#[track_caller]
pub fn hears(heard: &Heard, errno: i32) {
    assert_eq!(heard.recv_timeout(SOON), Ok(errno));
    // And is let go, so it was the only call.
    assert_eq!(
        heard.recv_timeout(SOON),
        Err(mpsc::RecvTimeoutError::Disconnected)
    );
}

/// The next request, which is `id` with this body and wants an answer.
#[track_caller]
fn expect(channel: &BackendChannel, id: u32, body: &[u8]) -> BackendRequest {
    let request = channel.recv().unwrap();
    assert_eq!(request.header.request, id);
    assert_eq!(request.body, body, "{request:?}");
    assert!(request.needs_reply(), "{request:?}");
    request
}

fn same_file(fd: RawFd, other: RawFd) -> bool {
    let link = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    link(fd) == link(other)
}

pub fn file() -> OwnedFd {
    std::fs::File::open(std::env::current_exe().unwrap())
        .unwrap()
        .into()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn an_object_is_added_and_removed() {
    run("object", |rig| {
        let mut s = session(rig);
        for (answer, heard) in [(0, 0), (1, libc::EREMOTEIO), (u64::MAX, libc::EREMOTEIO)] {
            let added = add(&rig.server).unwrap();
            let request = expect(channel(&s), backend_req::SHARED_OBJECT_ADD, &UUID);
            assert!(request.fds.is_empty());
            channel(&s).ack(&request, answer).unwrap();
            hears(&added, heard);
        }
        let (sender, removed) = mpsc::channel();
        let done = move |result| sender.send(errno(&result)).unwrap();
        rig.server.object_remove(UUID, done).unwrap();
        let request = expect(channel(&s), backend_req::SHARED_OBJECT_REMOVE, &UUID);
        channel(&s).ack(&request, 0).unwrap();
        hears(&removed, 0);
        let stats = rig.server.stats();
        assert_eq!((stats.backend_requests, stats.backend_failures), (4, 2));
        works(&mut s);
    });
}

#[test]
fn an_object_is_looked_up() {
    run("lookup", |rig| {
        let s = session(rig);
        let object = EventFd::new().unwrap();
        object.add(5).unwrap();
        let fds = [object.as_raw_fd()];
        // An answer of 0 without a descriptor is none, either.
        for (value, fds, heard) in [
            (0, &fds[..], 0),
            (1, &[], libc::EREMOTEIO),
            (0, &[], libc::EREMOTEIO),
        ] {
            let (sender, found) = mpsc::channel();
            let done = move |result| sender.send(result).unwrap();
            rig.server.object_lookup(UUID, done).unwrap();
            let request = expect(channel(&s), backend_req::SHARED_OBJECT_LOOKUP, &UUID);
            assert!(request.fds.is_empty(), "the descriptor comes in the reply");
            let id = request.header.request;
            channel(&s).reply(id, &words(&[value]), fds).unwrap();
            let result = found.recv_timeout(SOON).unwrap();
            assert_eq!(errno(&result), heard);
            if let Ok(fd) = result {
                assert_eq!(EventFd::from_fd(fd).take().unwrap(), 5);
            }
        }
    });
}

#[test]
fn shared_memory_regions_are_told_and_filled() {
    run("shmem", |rig| {
        let s = session(rig);
        let reply = s.fe().request(req::GET_SHMEM_CONFIG, &[], &[]).unwrap();
        assert_eq!(reply.body.len(), 8 + 256 * 8);
        assert_eq!((u32_at(&reply.body, 0), u32_at(&reply.body, 4)), (2, 0));
        for index in 0..256 {
            let size = SHMEM.get(index).copied().unwrap_or(0);
            assert_eq!(u64_at(&reply.body, 8 + 8 * index), size, "region {index}");
        }
        let file = file();
        let mapping = ShmemMapping {
            region: 1,
            offset: PAGE,
            len: 2 * PAGE,
            fd_offset: 8 * PAGE,
            writable: true,
        };
        let (sender, heard) = mpsc::channel();
        let done = move |result| sender.send(errno(&result)).unwrap();
        rig.server.shmem_map(mapping, file.as_fd(), done).unwrap();
        let body = words(&[1, 8 * PAGE, PAGE, 2 * PAGE, 1]);
        let request = expect(channel(&s), backend_req::SHMEM_MAP, &body);
        let [fd] = &request.fds[..] else {
            panic!("{request:?}");
        };
        assert!(same_file(fd.as_raw_fd(), file.as_raw_fd()));
        channel(&s).ack(&request, 0).unwrap();
        hears(&heard, 0);
        let (sender, heard) = mpsc::channel();
        let done = move |result| sender.send(errno(&result)).unwrap();
        rig.server.shmem_unmap(mapping, done).unwrap();
        let body = words(&[1, 0, PAGE, 2 * PAGE, 0]);
        let request = expect(channel(&s), backend_req::SHMEM_UNMAP, &body);
        assert!(request.fds.is_empty());
        channel(&s).ack(&request, 0).unwrap();
        hears(&heard, 0);
    });
}

#[test]
fn a_mapping_lies_in_its_region() {
    run("bounds", |rig| {
        let s = session(rig);
        let file = file();
        for (region, offset, len, fd_offset) in [
            (0, 0, PAGE, 0),
            (3, 0, PAGE, 0),
            (255, 0, PAGE, 0),
            (1, 0, 0, 0),
            (1, 0, 5 * PAGE, 0),
            (1, 4 * PAGE, PAGE, 0),
            (1, u64::MAX, PAGE, 0),
            (1, PAGE, u64::MAX, 0),
            (1, 0, PAGE, u64::MAX),
        ] {
            let mapping = ShmemMapping {
                region,
                offset,
                len,
                fd_offset,
                writable: false,
            };
            let mapped = rig
                .server
                .shmem_map(mapping, file.as_fd(), |_| panic!("heard"));
            assert_eq!(mapped.unwrap_err().errno(), libc::EINVAL, "{mapping:?}");
            let unmapped = rig.server.shmem_unmap(mapping, |_| panic!("heard"));
            assert_eq!(unmapped.unwrap_err().errno(), libc::EINVAL, "{mapping:?}");
        }
        assert!(!channel(&s).pending_within(EARLY).unwrap());
    });
}

#[test]
fn without_regions_there_is_no_shared_memory() {
    run_device(
        "no_shmem",
        Script::default(),
        |b| b,
        |rig| {
            let fe = acknowledging(rig);
            let offered = fe.get_protocol_features().unwrap();
            assert_eq!(offered & protocol_feature::SHMEM, 0);
            let refused = fe
                .request_with_ack(req::GET_SHMEM_CONFIG, &[], &[])
                .unwrap();
            assert_ne!(refused, 0);
        },
    );
}

#[test]
fn a_host_notifier_is_set_and_withdrawn() {
    run("notifier", |rig| {
        let s = session(rig);
        let file = file();
        let hear = || {
            let (sender, heard) = mpsc::channel();
            let done = move |result: vu_server::Result<()>| sender.send(errno(&result)).unwrap();
            (done, heard)
        };
        let (done, heard) = hear();
        let notifier = Some((file.as_fd(), 3 * PAGE, PAGE));
        rig.server.set_host_notifier(1, notifier, done).unwrap();
        let id = backend_req::VRING_HOST_NOTIFIER_MSG;
        let request = expect(channel(&s), id, &words(&[1, PAGE, 3 * PAGE]));
        assert!(same_file(request.fds[0].as_raw_fd(), file.as_raw_fd()));
        channel(&s).ack(&request, 0).unwrap();
        hears(&heard, 0);
        let (done, heard) = hear();
        rig.server.set_host_notifier(1, None, done).unwrap();
        let request = expect(channel(&s), id, &words(&[0x101, 0, 0]));
        assert!(request.fds.is_empty());
        channel(&s).ack(&request, 0).unwrap();
        hears(&heard, 0);
        for (queue, size) in [(2, PAGE), (256, PAGE), (1, 0), (1, u64::MAX)] {
            let notifier = Some((file.as_fd(), PAGE, size));
            let refused = rig.server.set_host_notifier(queue, notifier, |_| {});
            assert_eq!(
                refused.unwrap_err().errno(),
                libc::EINVAL,
                "{queue} {size:#x}"
            );
        }
    });
}

#[test]
fn without_reply_ack_a_request_is_done_when_it_is_sent() {
    run("no_reply_ack", |rig| {
        let s = rig
            .builder()
            .protocol_features(ALL)
            .without_protocol_features(protocol_feature::REPLY_ACK)
            .connect(rig.path());
        // Nothing says that the channel is set up but that it is.
        eventually("added", Deadline::after(SOON), true, || {
            add(&rig.server).is_ok_and(|heard| {
                hears(&heard, 0);
                true
            })
        });
        let request = channel(&s).recv().unwrap();
        assert_eq!(request.header.request, backend_req::SHARED_OBJECT_ADD);
        assert!(!request.needs_reply());
        // What has its own reply has it all the same.
        let (sender, found) = mpsc::channel();
        let done = move |result: vu_server::Result<OwnedFd>| sender.send(errno(&result)).unwrap();
        rig.server.object_lookup(UUID, done).unwrap();
        let request = channel(&s).recv().unwrap();
        assert!(!request.needs_reply());
        channel(&s).ack(&request, 7).unwrap();
        hears(&found, libc::EREMOTEIO);
    });
}

#[test]
fn what_cannot_be_sent_is_refused_at_once() {
    run("refused", |rig| {
        assert_eq!(add(&rig.server).unwrap_err().errno(), libc::ENOTCONN);
        // A front-end without a channel, and one that has negotiated less.
        let s = rig
            .builder()
            .protocol_features(ALL)
            .without_protocol_features(protocol_feature::BACKEND_REQ)
            .connect(rig.path());
        assert_eq!(add(&rig.server).unwrap_err().errno(), libc::ENOTCONN);
        drop(s);
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let s = rig
            .builder()
            .protocol_features(ALL)
            .without_protocol_features(
                protocol_feature::SHARED_OBJECT | protocol_feature::BACKEND_SEND_FD,
            )
            .connect(rig.path());
        let error = add(&rig.server).unwrap_err();
        assert_eq!(error.errno(), libc::EOPNOTSUPP);
        assert!(error.message().contains("SHARED_OBJECT"), "{error}");
        let file = file();
        let notifier = Some((file.as_fd(), 0, PAGE));
        let refused = rig.server.set_host_notifier(0, notifier, |_| {});
        assert!(refused.unwrap_err().message().contains("BACKEND_SEND_FD"));
        assert!(!channel(&s).pending_within(EARLY).unwrap());
    });
}

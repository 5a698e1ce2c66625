//! Section B: the file descriptors that come with messages.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::device::{Event, SOON};
use super::rig::{Bad, acknowledging, run, without_fds, works};
use crate::sim::echo::{self, EchoRequest};
use crate::sim::wire::{self, FLAG_NEED_REPLY, VRING_NOFD, req};
use crate::sim::{Deadline, EventFd, Region, RegionSpec, Seg, Session, eventually, process};

/// A pipe: the end to read from and the end to write to.
fn pipe() -> [OwnedFd; 2] {
    let mut ends = [0; 2];
    // SAFETY: two ints to write to.
    assert_eq!(
        unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) },
        0
    );
    // SAFETY: both are new and owned by nobody else.
    ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[test]
fn case_17_more_descriptors_than_a_message_has() {
    run("case_17", |rig| {
        for count in [33, 253] {
            for request in [req::SET_MEM_TABLE, req::GET_FEATURES] {
                let fe = acknowledging(rig);
                let fd = EventFd::new().unwrap();
                let before = process::open_fds();
                fe.send(request, FLAG_NEED_REPLY, &[], &vec![fd.as_raw_fd(); count])
                    .unwrap();
                fe.wait_closed().unwrap();
                eventually("descriptors", Deadline::after(SOON), true, || {
                    process::open_fds() <= before
                });
                rig.left(
                    &format!("{count} descriptors"),
                    "more than 32 file descriptors",
                );
            }
        }
        // As many, on several pieces of one message.
        let fe = acknowledging(rig);
        let fd = EventFd::new().unwrap();
        let message = wire::message(req::SET_FEATURES, wire::VERSION, &[0; 8]);
        for byte in &message {
            if fe.send_bytes(&[*byte], &[fd.as_raw_fd(); 3]).is_err() {
                break;
            }
        }
        rig.dropped(
            "descriptors with every byte",
            fe,
            "more than 32 file descriptors",
        );
    });
}

#[test]
fn case_18_a_descriptor_on_requests_that_take_none() {
    run("case_18", |rig| {
        let mut s = rig.session();
        let fd = EventFd::new().unwrap();
        let requests = without_fds();
        let fds = process::open_fds();
        for round in 0..10_000 {
            let (request, body) = &requests[round % requests.len()];
            let ack = s
                .fe()
                .request_with_ack(*request, body, &[fd.as_raw_fd()])
                .unwrap();
            assert_ne!(ack, 0, "{} with a descriptor", wire::name(*request));
        }
        assert_eq!(process::open_fds(), fds);
        assert_eq!(rig.server.stats().refusals, 10_000);
        // The error of this one has no body.
        let config = wire::config(0, 0, &[0; 4]);
        let reply = s
            .fe()
            .request(req::GET_CONFIG, &config, &[fd.as_raw_fd()])
            .unwrap();
        assert!(reply.body.is_empty() && reply.fds.is_empty());
        assert_eq!(process::open_fds(), fds);
        works(&mut s);
    });
}

/// Requests that this server does not serve take none either.
#[test]
fn case_18_a_descriptor_on_requests_that_are_not_served() {
    run("case_18_others", |rig| {
        let mut s = rig.session();
        let fd = EventFd::new().unwrap();
        let fds = process::open_fds();
        for round in 0..1000u32 {
            // The ids of all requests and some more, with bodies of the usual sizes.
            let (request, size) = (
                round % 50,
                [0, 8, 16, 24, 32, 40][(round / 50) as usize % 6],
            );
            let takes_one = matches!(
                request,
                req::SET_MEM_TABLE | req::SET_LOG_BASE | req::SET_LOG_FD | req::GET_VRING_BASE
                    ..=req::SET_VRING_ERR
                        | req::SET_BACKEND_REQ_FD
                        | req::SET_INFLIGHT_FD
                        | req::GPU_SET_SOCKET
                        | req::ADD_MEM_REG
                        | req::REM_MEM_REG
                        | req::SET_DEVICE_STATE_FD
            );
            if takes_one {
                continue;
            }
            let body = vec![0; size];
            s.fe()
                .send(request, FLAG_NEED_REPLY, &body, &[fd.as_raw_fd()])
                .unwrap();
            let reply = s.fe().recv_reply(request).unwrap();
            assert!(
                reply.fds.is_empty(),
                "{} answers with one",
                wire::name(request)
            );
            assert_ne!(
                reply.u64().ok(),
                Some(0),
                "{} with a descriptor",
                wire::name(request)
            );
        }
        assert_eq!(process::open_fds(), fds);
        works(&mut s);
    });
}

#[test]
fn case_19_too_few_descriptors() {
    run("case_19", |rig| {
        let mut s = rig.session();
        let region = s.memory.regions()[0].clone();
        let other = Region::new(RegionSpec::new(1 << 40, 4096)).unwrap();
        let two = wire::mem_table(&[region.wire(), other.wire()]);
        let (socket, _peer) = UnixStream::pair().unwrap();
        let socket = socket.as_raw_fd();
        rig.all_refused(
            &mut s,
            &[
                Bad::new(req::SET_MEM_TABLE, two.clone()),
                Bad::new(req::SET_MEM_TABLE, two.clone()).fds(&[region.raw_fd()]),
                Bad::new(req::SET_MEM_TABLE, two).fds(&[region.raw_fd(); 3]),
                Bad::new(req::ADD_MEM_REG, other.wire().encode_single()),
                Bad::new(req::ADD_MEM_REG, other.wire().encode_single()).fds(&[other.raw_fd(); 2]),
                Bad::new(req::REM_MEM_REG, region.wire().encode_single()).fds(&[other.raw_fd(); 2]),
                Bad::new(req::SET_LOG_BASE, vec![0; 16]),
                Bad::new(req::SET_INFLIGHT_FD, vec![0; 24]),
                Bad::new(req::SET_BACKEND_REQ_FD, []),
                Bad::new(req::SET_BACKEND_REQ_FD, []).fds(&[socket; 2]),
            ],
        );
    });
}

const VRING_FDS: [u32; 3] = [req::SET_VRING_KICK, req::SET_VRING_CALL, req::SET_VRING_ERR];

#[test]
fn case_20_the_nofd_bit_and_the_descriptor() {
    run("case_20", |rig| {
        let mut s = rig.session();
        let fd = EventFd::new().unwrap();
        for request in VRING_FDS {
            rig.all_refused(
                &mut s,
                &[
                    Bad::u64(request, VRING_NOFD).fds(&[fd.as_raw_fd()]),
                    Bad::u64(request, 0),
                    Bad::u64(request, 0).fds(&[fd.as_raw_fd(); 2]),
                    Bad::u64(request, 0x200).fds(&[fd.as_raw_fd()]),
                ],
            );
        }
    });
}

#[test]
fn case_21_descriptors_with_the_body() {
    run("case_21", |rig| {
        let mut s = rig.session();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        for cut in [6, wire::HEADER_LEN, wire::HEADER_LEN + 4] {
            let call = EventFd::new().unwrap();
            let message = wire::message(req::SET_VRING_CALL, flags, &0u64.to_ne_bytes());
            s.fe().send_bytes(&message[..cut], &[]).unwrap();
            s.fe().wait_consumed().unwrap();
            s.fe()
                .send_bytes(&message[cut..], &[call.as_raw_fd()])
                .unwrap();
            let ack = s
                .fe()
                .recv_reply(req::SET_VRING_CALL)
                .unwrap()
                .u64()
                .unwrap();
            assert_eq!(ack, 0, "descriptor behind byte {cut}");
            s.queues[0].call = call;
            works(&mut s);
        }
    });
}

#[test]
fn case_22_kick_descriptors_that_cannot_be_watched() {
    run("case_22", |rig| {
        let mut s = rig.session();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let directory = File::open("/").unwrap();
        let memory = s.memory.regions()[0].raw_fd();
        for fd in [file.as_raw_fd(), directory.as_raw_fd(), memory] {
            rig.all_refused(&mut s, &[Bad::u64(req::SET_VRING_KICK, 0).fds(&[fd])]);
        }
        // On a stopped ring too, which then still can be started.
        s.stop_queue(0);
        rig.refused(
            s.fe(),
            &Bad::u64(req::SET_VRING_KICK, 0).fds(&[directory.as_raw_fd()]),
        );
        s.start_queue(0);
        works(&mut s);
    });
}

#[test]
fn case_23_a_blocking_kick_that_somebody_else_drains() {
    run("case_23", |rig| {
        let mut s = rig.builder().not_started().connect(rig.path());
        s.queues[0].kick = EventFd::with_flags(0).unwrap();
        s.start_all();
        for _ in 0..1000 {
            // The flag that the server has set belongs to the front-end, too.
            make_blocking(&s.queues[0].kick);
            s.queues[0].kick.signal().unwrap();
            s.queues[0].kick.take().unwrap();
            s.queues[1].kick_always().unwrap();
        }
        works(&mut s);
    });
}

#[test]
fn case_24_a_kick_pipe_without_a_writer() {
    run("case_24", |rig| {
        let mut s = rig.session();
        let [reader, writer] = pipe();
        s.fe().set_vring_kick(0, Some(reader.as_raw_fd())).unwrap();
        // It is a kick like any other as long as somebody can write.
        let request = EchoRequest::new(&s.memory, 8, 8);
        s.queues[0].submit(&request.segs()).unwrap();
        kick_pipe(&writer);
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        drop(writer);
        rig.broke(
            "the writer has gone",
            &s,
            "nobody can signal the kick descriptor",
        );
        let before = looper_cpu();
        // A window to measure in, not something to wait for.
        thread::sleep(Duration::from_millis(100));
        let spent = looper_cpu() - before;
        assert!(
            spent < Duration::from_millis(30),
            "the loop spins: {spent:?}"
        );
        echo::round_trip(&mut s.queues[1], b"others go on");
        assert_eq!(rig.server.queue_stats(0).unwrap().breaks, 1);
        s.stop_queue(0);
        s.start_queue(0);
        works(&mut s);
    });
}

fn kick_pipe(writer: &OwnedFd) {
    let bytes = 1u64.to_ne_bytes();
    // SAFETY: the buffer is eight readable bytes.
    let written = unsafe { libc::write(writer.as_raw_fd(), bytes.as_ptr().cast(), 8) };
    assert_eq!(written, 8);
}

/// CPU time of the thread that serves the context.
fn looper_cpu() -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        if std::fs::read_to_string(task.path().join("comm"))
            .unwrap()
            .trim_end()
            == "looper"
        {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            return Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap());
        }
    }
    panic!("no looper");
}

#[test]
fn case_25_a_full_blocking_call_descriptor() {
    run("case_25", |rig| {
        let mut s = rig.session();
        let full = EventFd::with_flags(0).unwrap();
        full.add(u64::MAX - 1).unwrap();
        s.fe().set_vring_call(0, Some(full.as_raw_fd())).unwrap();
        completes_without_call(&mut s);
        // The flag that the server has set belongs to the front-end, too.
        make_blocking(&full);
        completes_without_call(&mut s);
        echo::round_trip(&mut s.queues[1], b"the loop is not blocked");
        let call = s.queues[0].call.as_raw_fd();
        s.fe().set_vring_call(0, Some(call)).unwrap();
        works(&mut s);
    });
}

fn make_blocking(fd: &EventFd) {
    // SAFETY: the call takes no pointers.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, 0) }, 0);
}

/// Queue 0 completes requests; the driver polls for them.
#[track_caller]
fn completes_without_call(s: &mut Session) {
    for seed in 0..100 {
        let mut request = EchoRequest::new(&s.memory, 64, 64);
        request.prepare(seed);
        s.queues[0].submit(&request.segs()).unwrap();
        s.queues[0].enable_calls().unwrap();
        let queue = &mut s.queues[0];
        eventually(
            "completion in the used ring",
            Deadline::after(SOON),
            true,
            || {
                queue
                    .poll_used()
                    .unwrap()
                    .inspect(|used| request.check(*used))
                    .is_some()
            },
        );
    }
}

#[test]
fn case_26_call_and_err_descriptors_that_cannot_be_written() {
    run("case_26", |rig| {
        let mut s = rig.session();
        let [reader, _writer] = pipe();
        let (broken_socket, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let [gone_reader, broken_pipe] = pipe();
        drop(gone_reader);
        for (what, fd) in [
            ("the reading end of a pipe", reader.as_raw_fd()),
            ("a socket without a peer", broken_socket.as_raw_fd()),
            ("a pipe without a reader", broken_pipe.as_raw_fd()),
        ] {
            let before = rig.log_lines().len();
            s.fe().set_vring_call(0, Some(fd)).unwrap();
            s.fe().set_vring_err(0, Some(fd)).unwrap();
            completes_without_call(&mut s);
            let lines = &rig.log_lines()[before..];
            assert_eq!(lines.len(), 1, "{what}: {lines:?}");
            assert!(
                lines[0].contains("queue 0: call descriptor"),
                "{what}: {lines:?}"
            );
        }
        let (call, err) = (s.queues[0].call.as_raw_fd(), s.queues[0].err.as_raw_fd());
        s.fe().set_vring_call(0, Some(call)).unwrap();
        s.fe().set_vring_err(0, Some(err)).unwrap();
        works(&mut s);
    });
}

/// What cannot be signalled, or not without waiting.
#[test]
fn call_and_err_descriptors_that_are_files_are_refused() {
    run("signal_files", |rig| {
        let mut s = rig.session();
        let program = File::open("/proc/self/exe").unwrap();
        let directory = File::open("/").unwrap();
        let device = File::options().write(true).open("/dev/null").unwrap();
        let memory = s.memory.regions()[0].raw_fd();
        for fd in [
            program.as_raw_fd(),
            directory.as_raw_fd(),
            device.as_raw_fd(),
            memory,
        ] {
            for request in [req::SET_VRING_CALL, req::SET_VRING_ERR] {
                rig.all_refused(&mut s, &[Bad::u64(request, 0).fds(&[fd])]);
            }
        }
    });
}

#[test]
fn case_27_a_kick_descriptor_replaced_on_a_running_ring() {
    run("case_27", |rig| {
        let mut s = rig.session();
        for round in 0..200u64 {
            // Signalled before the server has it: nothing else will tell it of this request.
            let mut request = EchoRequest::new(&s.memory, 16, 16);
            request.prepare(round);
            let kick = EventFd::new().unwrap();
            s.queues[0].add(&request.segs()).unwrap();
            s.queues[0].publish().unwrap();
            if round % 3 == 0 {
                kick.signal().unwrap();
            }
            s.fe().set_vring_kick(0, Some(kick.as_raw_fd())).unwrap();
            s.queues[0].kick = kick;
            let used = s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            request.check(used);
            echo::round_trip(&mut s.queues[0], b"through the new one");
        }
        // The same one again, then one for both queues.
        for _ in 0..3 {
            let kick = s.queues[0].kick.as_raw_fd();
            s.fe().set_vring_kick(0, Some(kick)).unwrap();
            works(&mut s);
        }
        let kick = s.queues[0].kick.as_raw_fd();
        s.fe().set_vring_kick(1, Some(kick)).unwrap();
        let copy = crate::sim::frontend::dup(kick).unwrap();
        for round in 0..100u64 {
            let mut requests = [0, 1].map(|_| EchoRequest::new(&s.memory, 16, 16));
            for (queue, request) in s.queues.iter_mut().zip(&mut requests) {
                request.prepare(round);
                queue.add(&request.segs()).unwrap();
                queue.publish().unwrap();
            }
            signal(&copy);
            for (queue, request) in s.queues.iter_mut().zip(&requests) {
                request.check(queue.wait_used(Deadline::after(SOON)).unwrap());
            }
        }
    });
}

fn signal(fd: &OwnedFd) {
    let bytes = 1u64.to_ne_bytes();
    // SAFETY: the buffer is eight readable bytes.
    assert_eq!(
        unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), 8) },
        8
    );
}

#[test]
fn no_kick_and_no_call_descriptor() {
    run("nofd", |rig| {
        let mut s = rig
            .builder()
            .without_kick_fd()
            .without_call_fd()
            .connect(rig.path());
        completes_without_call(&mut s);
        // A ring that runs can get them, and lose them.
        let (kick, call) = (s.queues[0].kick.as_raw_fd(), s.queues[0].call.as_raw_fd());
        s.fe().set_vring_kick(0, Some(kick)).unwrap();
        s.fe().set_vring_call(0, Some(call)).unwrap();
        echo::round_trip(&mut s.queues[0], b"with both");
        s.fe().set_vring_kick(0, None).unwrap();
        s.fe().set_vring_call(0, None).unwrap();
        completes_without_call(&mut s);
        // What had been signalled while it was there.
        s.queues[0].call.take().unwrap();
        completes_without_call(&mut s);
        assert_eq!(
            s.queues[0].call.take().unwrap(),
            0,
            "the descriptor that was taken back"
        );
    });
}

#[test]
fn case_28_wrong_descriptors_for_the_back_end_channel() {
    run("case_28", |rig| {
        let mut s = rig.session();
        let file = File::open("/proc/self/exe").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        let event = EventFd::new().unwrap();
        let [reader, _writer] = pipe();
        let name = std::env::temp_dir().join(format!("vu-listening-{}", std::process::id()));
        let listening = UnixListener::bind(&name).unwrap();
        std::fs::remove_file(&name).unwrap();
        let own = s.fe().raw_fd();
        let wrong: [(&str, RawFd); 8] = [
            ("a regular file", file.as_raw_fd()),
            ("a TCP socket", stream.as_raw_fd()),
            ("a listening TCP socket", tcp.as_raw_fd()),
            ("a datagram socket", datagram.as_raw_fd()),
            ("a listening socket", listening.as_raw_fd()),
            ("an eventfd", event.as_raw_fd()),
            ("a pipe", reader.as_raw_fd()),
            ("the connection itself", own),
        ];
        for (what, fd) in wrong {
            rig.all_refused(
                &mut s,
                &[Bad::new(req::SET_BACKEND_REQ_FD, []).fds(&[fd]).named(what)],
            );
        }
        // The channel that was there before is still the one.
        rig.server.set_config(0, &[0xff]).unwrap();
        s.backend.as_ref().unwrap().expect_config_change().unwrap();
    });
}

#[test]
fn case_31_no_descriptor_survives_exec() {
    run("case_31", |rig| {
        let mut s = rig.session();
        let survivors = || {
            let output = Command::new("/bin/ls")
                .args(["-l", "/proc/self/fd"])
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        for round in 0..20 {
            let request = EchoRequest::new(&s.memory, 16, 16);
            s.queues[0].submit(&request.segs()).unwrap();
            let listing = survivors();
            s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            for kind in ["memfd:", "eventfd", "socket:", "eventpoll", "timerfd"] {
                assert!(
                    !listing.contains(kind),
                    "round {round}: {kind} in the child:\n{listing}"
                );
            }
        }
        works(&mut s);
    });
}

/// Children are started while descriptors arrive without a pause.
#[test]
fn case_31_no_descriptor_survives_exec_while_messages_come() {
    run("case_31_messages", |rig| {
        let mut s = rig.session();
        let region = Region::new(RegionSpec::new(1 << 40, 1 << 20)).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let fe = s.fe();
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let event = EventFd::new().unwrap();
                    fe.set_vring_err(1, Some(event.as_raw_fd())).unwrap();
                    fe.add_mem_reg(&region).unwrap();
                    fe.rem_mem_reg(&region).unwrap();
                }
            });
            for round in 0..100 {
                let listing = Command::new("/bin/ls")
                    .args(["-l", "/proc/self/fd"])
                    .output()
                    .unwrap();
                let listing = String::from_utf8(listing.stdout).unwrap();
                for kind in ["memfd:", "eventfd", "socket:", "eventpoll"] {
                    assert!(!listing.contains(kind), "round {round}: {kind}:\n{listing}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let err = s.queues[1].err.as_raw_fd();
        s.fe().set_vring_err(1, Some(err)).unwrap();
        works(&mut s);
    });
}

#[test]
fn the_err_descriptor_may_be_missing() {
    run("no_err", |rig| {
        let mut s = rig.session();
        s.fe().set_vring_err(0, None).unwrap();
        s.queues[0].publish_raw(9999).unwrap();
        s.queues[0].kick_always().unwrap();
        rig.device.take("broken ring", |event| {
            matches!(event, Event::RingBroken { index: 0, .. })
        });
        assert_eq!(s.queues[0].err.take().unwrap(), 0);
        works_on(&mut s, 1);
        let buffer = s.memory.alloc(8, 8).unwrap();
        s.queues[1].submit(&[Seg::writable(buffer, 8)]).unwrap();
        s.queues[1].wait_used(Deadline::after(SOON)).unwrap();
    });
}

#[track_caller]
fn works_on(session: &mut Session, index: usize) {
    echo::round_trip(&mut session.queues[index], b"this one works");
}

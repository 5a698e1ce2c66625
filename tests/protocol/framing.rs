//! Section A: how bytes become messages.

use std::os::fd::AsRawFd;

use super::device::Event;
use super::rig::{Bad, acknowledging, run, works};
use crate::sim::frontend::Piece;
use crate::sim::wire::{self, FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, Header, req};
use crate::sim::{EventFd, echo};

const MAX_BODY: u32 = 4096;

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    Header {
        request,
        flags,
        size,
    }
    .encode()
    .to_vec()
}

#[test]
fn case_01_one_byte_at_a_time() {
    run("case_01", |rig| {
        let mut s = rig.session();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        let status = wire::message(req::SET_STATUS, flags, &7u64.to_ne_bytes());
        s.fe().send_bytewise(&status, &[], 0).unwrap();
        assert_eq!(
            s.fe().recv_reply(req::SET_STATUS).unwrap().u64().unwrap(),
            0
        );
        assert_eq!(s.fe().get_status().unwrap(), 7);
        // With a descriptor on every byte that can carry it.
        let call = EventFd::new().unwrap();
        let message = wire::message(req::SET_VRING_CALL, flags, &0u64.to_ne_bytes());
        for at in 0..message.len() {
            s.fe()
                .send_bytewise(&message, &[call.as_raw_fd()], at)
                .unwrap();
            let ack = s
                .fe()
                .recv_reply(req::SET_VRING_CALL)
                .unwrap()
                .u64()
                .unwrap();
            assert_eq!(ack, 0, "descriptor with byte {at}");
        }
        s.queues[0].call = call;
        works(&mut s);
    });
}

#[test]
fn case_02_a_body_in_two_writes() {
    run("case_02", |rig| {
        let mut s = rig.session();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        let message = wire::message(req::SET_STATUS, flags, &3u64.to_ne_bytes());
        for cut in 1..message.len() {
            s.fe().send_bytes(&message[..cut], &[]).unwrap();
            s.fe().wait_consumed().unwrap();
            signal_threads(&["vu-protocol", "looper"]);
            // The data path does not wait for the other half.
            let queue = &mut s.queues[1];
            echo::round_trip(queue, b"in the middle of a message");
            s.fe().send_bytes(&message[cut..], &[]).unwrap();
            let ack = s.fe().recv_reply(req::SET_STATUS).unwrap().u64().unwrap();
            assert_eq!(ack, 0, "cut at {cut}");
        }
        works(&mut s);
    });
}

/// Sends these threads of the process a signal that ends a system call instead of restarting it.
fn signal_threads(names: &[&str]) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeroes is a valid sigaction, and the handler does nothing at all.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
            0
        );
    }
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap();
        if names.contains(&comm.trim_end()) {
            let tid: libc::pid_t = task.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: the call takes no pointers.
            let status =
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) };
            assert_eq!(status, 0);
        }
    }
}

#[test]
fn case_03_closed_between_in_and_inside_messages() {
    run("case_03", |rig| {
        let message = wire::message(req::SET_VRING_KICK, wire::VERSION, &0u64.to_ne_bytes());
        for (end, errno, reason) in [
            (0, 0, "the front-end closed the connection"),
            (5, -libc::ENODATA, "after 5 of 12 bytes of a header"),
            (
                HEADER_LEN,
                -libc::ENODATA,
                "after 0 of 8 bytes of the body of request 12",
            ),
            (
                HEADER_LEN + 3,
                -libc::ENODATA,
                "after 3 of 8 bytes of the body of request 12",
            ),
        ] {
            let fe = rig.frontend();
            let kick = EventFd::new().unwrap();
            if end > 0 {
                fe.send_bytes(&message[..end], &[kick.as_raw_fd()]).unwrap();
            }
            drop(fe);
            let what = format!("end at {end}: {errno} {reason}");
            rig.device.take(&what, |event| {
                matches!(event, Event::Disconnected { errno: e, reason: r } if *e == errno && r.contains(reason))
            });
        }
        let mut s = rig.session();
        works(&mut s);
    });
}

#[test]
fn case_04_a_size_beyond_the_maximum() {
    run("case_04", |rig| {
        let fd = EventFd::new().unwrap();
        for size in [u32::MAX, MAX_BODY + 1] {
            let fe = acknowledging(rig);
            let bytes = header(req::SET_VRING_KICK, wire::VERSION | FLAG_NEED_REPLY, size);
            fe.send_bytes(&bytes, &[fd.as_raw_fd()]).unwrap();
            rig.dropped(
                "a header with a large size",
                fe,
                &format!("size {size} exceeds"),
            );
        }
    });
}

#[test]
fn case_05_a_body_smaller_than_the_structure() {
    run("case_05", |rig| {
        let mut s = rig.session();
        let region = s.memory.regions()[0].clone();
        let add = region.wire().encode_single();
        rig.all_refused(
            &mut s,
            &[
                Bad::new(req::SET_VRING_NUM, 0u32.to_ne_bytes()),
                Bad::new(req::ADD_MEM_REG, &add[..32]).fds(&[region.raw_fd()]),
                Bad::new(req::SET_LOG_BASE, 0u64.to_ne_bytes()).fds(&[region.raw_fd()]),
                Bad::new(req::SET_VRING_ADDR, vec![0; 32]),
                Bad::new(req::SET_FEATURES, vec![0; 4]),
                Bad::new(req::SET_STATUS, vec![]),
                Bad::new(req::SET_CONFIG, vec![0; 11]),
                Bad::new(req::SET_MEM_TABLE, vec![0; 4]),
            ],
        );
    });
}

#[test]
fn case_06_a_body_larger_than_the_structure() {
    run("case_06", |rig| {
        let mut s = rig.session();
        let bad = [
            Bad::u64(req::GET_FEATURES, 0),
            Bad::new(req::SET_VRING_NUM, vec![0; 12]),
            Bad::new(req::SET_OWNER, vec![0; MAX_BODY as usize]),
        ];
        for bad in &bad {
            // The next message comes in the same write.
            let flags = wire::VERSION | FLAG_NEED_REPLY;
            let both = [
                wire::message(bad.request, flags, &bad.body),
                wire::message(req::GET_QUEUE_NUM, wire::VERSION, &[]),
            ];
            s.fe().send_bytes(&both.concat(), &[]).unwrap();
            assert_ne!(
                s.fe().recv_reply(bad.request).unwrap().u64().unwrap(),
                0,
                "{}",
                bad.what
            );
            assert_eq!(
                s.fe()
                    .recv_reply(req::GET_QUEUE_NUM)
                    .unwrap()
                    .u64()
                    .unwrap(),
                2
            );
        }
        works(&mut s);
    });
}

#[test]
fn case_07_version_reserved_flags_and_replies() {
    run("case_07", |rig| {
        for (flags, reason) in [
            (0, "version 0"),
            (2, "version 2"),
            (3, "version 3"),
            (wire::VERSION | 1 << 4, "reserved bits"),
            (wire::VERSION | 1 << 31, "reserved bits"),
            (wire::VERSION | FLAG_REPLY, "as a reply"),
        ] {
            let fe = acknowledging(rig);
            fe.send_bytes(&header(req::GET_FEATURES, flags, 0), &[])
                .unwrap();
            rig.dropped(&format!("flags {flags:#x}"), fe, reason);
        }
    });
}

/// A body that would be a SET_STATUS if it were parsed as a message.
fn message_in_a_body() -> Vec<u8> {
    wire::message(req::SET_STATUS, wire::VERSION, &0x40u64.to_ne_bytes())
}

#[test]
fn case_08_unknown_requests() {
    run("case_08", |rig| {
        let mut s = rig.session();
        let status = s.fe().get_status().unwrap();
        for request in [45, 46, 255, 0x101, 0x0001_0002, 0x8000_0001, u32::MAX] {
            rig.refused(s.fe(), &Bad::new(request, message_in_a_body()));
            assert_eq!(
                s.fe().get_status().unwrap(),
                status,
                "the body of {request} was parsed"
            );
        }
        works(&mut s);
        s.disconnect();
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let fe = acknowledging(rig);
        fe.send(77, 0, &message_in_a_body(), &[]).unwrap();
        rig.dropped(
            "unknown request without need_reply",
            fe,
            "request 77: unknown",
        );
    });
}

#[test]
fn case_09_request_zero() {
    run("case_09", |rig| {
        let mut s = rig.session();
        rig.all_refused(&mut s, &[Bad::new(0, message_in_a_body()), Bad::new(0, [])]);
        s.disconnect();
        rig.device
            .take("end", |e| matches!(e, Event::Disconnected { .. }));
        let fe = acknowledging(rig);
        fe.send(0, 0, &[], &[]).unwrap();
        rig.dropped("request 0 without need_reply", fe, "request 0: unknown");
    });
}

#[test]
fn case_13_two_hundred_requests_in_one_write() {
    run("case_13", |rig| {
        let mut s = rig.session();
        s.stop_all();
        let (kicks, calls): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| (EventFd::new().unwrap(), EventFd::new().unwrap()))
            .unzip();
        let mut bytes = Vec::new();
        let mut fds = Vec::new();
        let mut ends = Vec::new();
        let flags = wire::VERSION | FLAG_NEED_REPLY;
        for round in 0..200usize {
            let index = round % 2;
            let (request, body, fd) = match round % 8 {
                0..2 => (
                    req::SET_VRING_NUM,
                    wire::vring_state(index as u32, 256),
                    None,
                ),
                2..4 => (
                    req::SET_VRING_CALL,
                    (index as u64).to_ne_bytes().to_vec(),
                    Some(&calls),
                ),
                4..6 => (req::SET_STATUS, (round as u64).to_ne_bytes().to_vec(), None),
                _ => (
                    req::SET_VRING_ERR,
                    (index as u64).to_ne_bytes().to_vec(),
                    Some(&kicks),
                ),
            };
            bytes.push(wire::message(request, flags, &body));
            fds.push(
                fd.map(|fds| fds[index].as_raw_fd())
                    .into_iter()
                    .collect::<Vec<_>>(),
            );
            ends.push(ends.last().unwrap_or(&0) + bytes[round].len());
        }
        let pieces: Vec<Piece<'_>> = ends
            .iter()
            .zip(&fds)
            .map(|(&end, fds)| Piece { end, fds })
            .collect();
        s.fe().send_pieces(&bytes.concat(), &pieces).unwrap();
        for (round, message) in bytes.iter().enumerate() {
            let request = wire::u32_at(message, 0);
            let ack = s.fe().recv_reply(request).unwrap().u64().unwrap();
            assert_eq!(ack, 0, "message {round}");
        }
        assert_eq!(s.fe().get_status().unwrap(), 197, "the last of them");
        // Without a descriptor in between, one write holds them all.
        let many = wire::message(req::SET_STATUS, flags, &5u64.to_ne_bytes()).repeat(200);
        s.fe().send_bytes(&many, &[]).unwrap();
        for _ in 0..200 {
            assert_eq!(
                s.fe().recv_reply(req::SET_STATUS).unwrap().u64().unwrap(),
                0
            );
        }
        // Each call fd went to its queue.
        for (index, call) in calls.into_iter().enumerate() {
            let addr = s.queues[index]
                .ring
                .layout()
                .vring_addr(&s.memory, index as u32)
                .unwrap();
            s.fe().set_vring_addr(&addr).unwrap();
            s.fe().set_vring_base(index as u32, s.bases[index]).unwrap();
            s.fe()
                .set_vring_kick(index as u32, Some(s.queues[index].kick.as_raw_fd()))
                .unwrap();
            s.fe().set_vring_enable(index as u32, true).unwrap();
            s.queues[index].call = call;
        }
        works(&mut s);
    });
}

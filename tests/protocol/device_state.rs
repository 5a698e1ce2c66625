//! The transfer of the device's state (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE): in both directions, through pipes and
//! sockets, beside other messages, and every way in which it ends early.

use std::fs::{File, read_to_string};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use vu_server::{Capabilities, Context};

use super::device::{SOON, Script};
use super::rig::{Bad, Rig, acknowledging, alive, run, run_device, run_device_in, works};
use super::state_script::{is_state, write};
use crate::sim::wire::{FLAG_NEED_REPLY, protocol_feature, req, vring_state};
use crate::sim::{Deadline, Frontend, Session, eventually};

const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// Success, and no descriptor in the reply.
const ACCEPTED: u64 = 0x100;

const MIB: u64 = 1 << 20;
/// Nothing, less than a piece, whole pieces, and several.
const SIZES: [u64; 6] = [0, 1, 4096, 256 << 10, 512 << 10, 3 * MIB + 1];
/// More than a channel and the library's buffer hold together.
const LARGE: u64 = 8 * MIB;

/// Long enough to notice an answer that comes too early; nothing waits for it to pass.
const EARLY: Duration = Duration::from_millis(30);

#[track_caller]
fn run_stateful(name: &str, test: impl FnOnce(&Rig)) {
    run_device(name, Script::able(Capabilities::STATE), |b| b, test);
}

/// The front-end's end and the back-end's: a pipe, or with `socket` a pair of them.
fn channel(direction: u32, socket: bool) -> (File, OwnedFd) {
    if socket {
        let (ours, theirs) = UnixStream::pair().unwrap();
        return (File::from(OwnedFd::from(ours)), theirs.into());
    }
    let (reader, writer) = std::io::pipe().unwrap();
    match direction {
        SAVE => (File::from(OwnedFd::from(reader)), writer.into()),
        _ => (File::from(OwnedFd::from(writer)), reader.into()),
    }
}

/// Begins a transfer; our end of its channel.
#[track_caller]
fn begin(fe: &Frontend, direction: u32, socket: bool) -> File {
    let (ours, theirs) = channel(direction, socket);
    let reply = fe.set_device_state_fd(direction, 0, theirs.as_raw_fd());
    assert_eq!(reply.unwrap(), ACCEPTED);
    ours
}

/// Reads to the end of the stream. How many bytes of the state that was.
#[track_caller]
fn receive(mut ours: &File, mut offset: u64) -> u64 {
    let mut buffer = vec![0; 100_000];
    loop {
        match ours.read(&mut buffer).unwrap() {
            0 => return offset,
            count => {
                assert!(is_state(offset, &buffer[..count]), "bytes from {offset} on");
                offset += count as u64;
            }
        }
    }
}

/// Writes the state and closes.
#[track_caller]
fn supply(mut ours: File, size: u64) {
    let mut buffer = vec![0; 100_000];
    for offset in (0..size).step_by(buffer.len()) {
        let count = buffer.len().min((size - offset) as usize);
        write(offset, &mut buffer[..count]);
        ours.write_all(&buffer[..count]).unwrap();
    }
}

/// The front-end may ask how it went, once.
#[track_caller]
fn succeeds(fe: &Frontend) {
    assert_eq!(fe.check_device_state().unwrap(), 0);
    fails(fe);
}

#[track_caller]
fn fails(fe: &Frontend) {
    for _ in 0..2 {
        assert_ne!(fe.check_device_state().unwrap(), 0);
    }
    alive(fe);
}

/// The back-end has closed its end.
#[track_caller]
fn is_closed(ours: &File, direction: u32) {
    if direction == SAVE {
        receive(ours, 0);
        return;
    }
    let seen = Deadline::after(SOON).poll_fd(ours.as_raw_fd(), 0).unwrap();
    assert_ne!(seen & (libc::POLLERR | libc::POLLHUP), 0, "still open");
}

#[track_caller]
fn each(mut test: impl FnMut(u32, bool)) {
    for direction in [SAVE, LOAD] {
        for socket in [false, true] {
            test(direction, socket);
        }
    }
}

#[test]
fn states_of_any_size_are_saved() {
    run_stateful("state_save", |rig| {
        let fe = acknowledging(rig);
        for socket in [false, true] {
            for size in SIZES {
                rig.device.state.resize(size);
                let ours = begin(&fe, SAVE, socket);
                assert_eq!(receive(&ours, 0), size);
                succeeds(&fe);
            }
        }
    });
}

#[test]
fn states_of_any_size_are_loaded() {
    run_stateful("state_load", |rig| {
        let fe = acknowledging(rig);
        for socket in [false, true] {
            for size in SIZES {
                rig.device.state.resize(size);
                let ours = begin(&fe, LOAD, socket);
                supply(ours, size);
                succeeds(&fe);
                assert_eq!(rig.device.state.loaded(), size);
            }
        }
    });
}

fn resident() -> u64 {
    let status = read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap() << 10
}

#[test]
fn a_large_state_takes_no_more_memory_than_a_small_one() {
    const SIZE: u64 = 100 * MIB;
    run_stateful("state_large", |rig| {
        rig.device.state.resize(SIZE);
        let fe = acknowledging(rig);
        let before = resident();
        let ours = begin(&fe, SAVE, false);
        let mut first = vec![0; MIB as usize];
        (&ours).read_exact(&mut first).unwrap();
        // The rest waits where it is: in the device.
        alive(&fe);
        assert!(resident() < before + SIZE / 4);
        assert_eq!(receive(&ours, MIB), SIZE);
        succeeds(&fe);
        supply(begin(&fe, LOAD, false), SIZE);
        assert!(resident() < before + SIZE / 4);
        succeeds(&fe);
    });
}

#[test]
fn what_a_device_does_not_implement_is_not_offered() {
    run("state_unable", |rig| {
        let fe = acknowledging(rig);
        let offered = fe.get_protocol_features().unwrap();
        assert_eq!(offered & protocol_feature::DEVICE_STATE, 0);
        assert_ne!(offered & protocol_feature::STATUS, 0);
        let (_ours, theirs) = channel(SAVE, false);
        let body = vring_state(SAVE, 0);
        let bad = Bad::new(req::SET_DEVICE_STATE_FD, body).fds(&[theirs.as_raw_fd()]);
        rig.refused(&fe, &bad);
        fails(&fe);
    });
    // A status would be reset before the state is saved.
    run_stateful("state_able", |rig| {
        let offered = rig.frontend().get_protocol_features().unwrap();
        assert_ne!(offered & protocol_feature::DEVICE_STATE, 0);
        assert_eq!(offered & protocol_feature::STATUS, 0);
    });
}

#[test]
fn case_67_malformed_transfers() {
    run_stateful("state_malformed", |rig| {
        let fe = acknowledging(rig);
        fails(&fe);
        let (_reader, save) = channel(SAVE, false);
        let (_writer, load) = channel(LOAD, false);
        let (datagram, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        let bad = |direction, phase, fds: &[i32]| {
            Bad::new(req::SET_DEVICE_STATE_FD, vring_state(direction, phase)).fds(fds)
        };
        let (save, load) = (save.as_raw_fd(), load.as_raw_fd());
        for bad in [
            bad(2, 0, &[save]),
            bad(u32::MAX, 0, &[save]),
            bad(SAVE, 1, &[save]),
            bad(LOAD, u32::MAX, &[load]),
            bad(SAVE, 0, &[]),
            bad(SAVE, 0, &[save, load]),
            // Each end of a pipe does one thing only.
            bad(SAVE, 0, &[load]),
            bad(LOAD, 0, &[save]),
            bad(LOAD, 0, &[file.as_raw_fd()]),
            bad(LOAD, 0, &[datagram.as_raw_fd()]),
        ] {
            rig.refused(&fe, &bad);
            fails(&fe);
        }
        // The error form of its own reply says that there is no descriptor.
        let reply = fe.set_device_state_fd(SAVE, 1, save).unwrap();
        assert_eq!(reply & ACCEPTED, ACCEPTED);
        assert_ne!(reply & 0xff, 0);
    });
}

#[track_caller]
fn running(rig: &Rig) -> Session {
    rig.builder()
        .protocol_features(protocol_feature::DEVICE_STATE)
        .connect(rig.path())
}

#[test]
fn case_67_a_transfer_while_rings_run() {
    run_stateful("state_running", |rig| {
        let mut s = running(rig);
        each(|direction, socket| {
            let (_ours, theirs) = channel(direction, socket);
            let body = vring_state(direction, 0);
            let bad = Bad::new(req::SET_DEVICE_STATE_FD, body).fds(&[theirs.as_raw_fd()]);
            rig.refused(s.fe(), &bad);
        });
        works(&mut s);
        s.stop_queue(0);
        s.stop_queue(1);
        assert_eq!(receive(&begin(s.fe(), SAVE, false), 0), 0);
        succeeds(s.fe());
        s.start_all();
        works(&mut s);
    });
}

/// A transfer that never ends by itself: nobody reads, or nobody closes.
#[track_caller]
fn endless(rig: &Rig, fe: &Frontend, direction: u32, socket: bool) -> File {
    rig.device.state.resize(LARGE);
    let mut ours = begin(fe, direction, socket);
    if direction == LOAD {
        let mut first = [0; 1000];
        write(0, &mut first);
        ours.write_all(&first).unwrap();
        eventually("bytes loaded", Deadline::after(SOON), 1000, || {
            rig.device.state.loaded()
        });
    }
    ours
}

#[test]
fn case_67_an_endless_transfer_ends_with_the_server() {
    each(|direction, socket| {
        run_stateful("state_stop", |rig| {
            let fe = acknowledging(rig);
            let ours = endless(rig, &fe, direction, socket);
            rig.server.stop().unwrap();
            is_closed(&ours, direction);
        });
    });
}

#[test]
fn case_67_an_endless_transfer_ends_with_the_connection() {
    each(|direction, socket| {
        run_stateful("state_disconnect", |rig| {
            let fe = acknowledging(rig);
            let ours = endless(rig, &fe, direction, socket);
            drop(fe);
            is_closed(&ours, direction);
            rig.left("an endless transfer", "closed");
        });
    });
}

#[test]
fn case_67_an_endless_transfer_ends_with_a_reset() {
    each(|direction, socket| {
        run_stateful("state_reset", |rig| {
            let fe = acknowledging(rig);
            let ours = endless(rig, &fe, direction, socket);
            fe.reset_device().unwrap();
            is_closed(&ours, direction);
            fails(&fe);
        });
    });
}

#[test]
fn a_transfer_takes_the_place_of_an_endless_one() {
    each(|direction, socket| {
        run_stateful("state_again", |rig| {
            let fe = acknowledging(rig);
            let old = endless(rig, &fe, direction, socket);
            // One that is refused does not.
            let (_ours, theirs) = channel(direction, socket);
            fe.set_device_state_fd(direction, 1, theirs.as_raw_fd())
                .unwrap();
            let new = begin(&fe, SAVE, socket);
            is_closed(&old, direction);
            assert_eq!(receive(&new, 0), LARGE);
            succeeds(&fe);
        });
    });
}

#[test]
fn a_ring_that_starts_ends_a_transfer() {
    each(|direction, socket| {
        run_stateful("state_ring", |rig| {
            let mut s = running(rig);
            s.stop_queue(0);
            s.stop_queue(1);
            let ours = endless(rig, s.fe(), direction, socket);
            s.start_all();
            is_closed(&ours, direction);
            fails(s.fe());
            works(&mut s);
        });
    });
}

#[test]
fn messages_go_on_beside_a_transfer() {
    run_stateful("state_beside", |rig| {
        let fe = acknowledging(rig);
        let ours = endless(rig, &fe, SAVE, false);
        for value in 0..100 {
            fe.set_config(16, 0, &[value]).unwrap();
        }
        assert_eq!(receive(&ours, 0), LARGE);
        succeeds(&fe);
        // Also while the device works on a piece.
        rig.device.mute(true);
        let ours = begin(&fe, SAVE, false);
        for _ in 0..100 {
            alive(&fe);
        }
        rig.device.mute(false);
        assert_eq!(receive(&ours, 0), LARGE);
        succeeds(&fe);
    });
}

#[test]
fn the_check_waits_for_the_device() {
    run_stateful("state_check", |rig| {
        let fe = acknowledging(rig);
        rig.device.state.resize(1000);
        rig.device.mute(true);
        supply(begin(&fe, LOAD, false), 1000);
        fe.send(req::CHECK_DEVICE_STATE, FLAG_NEED_REPLY, &[], &[])
            .unwrap();
        assert!(!fe.answered_within(EARLY).unwrap());
        rig.device.mute(false);
        let reply = fe.recv_reply(req::CHECK_DEVICE_STATE).unwrap();
        assert_eq!(reply.u64().unwrap(), 0);
        fails(&fe);
        // And for the end of the stream, with a way out.
        let _ours = endless(rig, &fe, LOAD, false);
        fe.send(req::CHECK_DEVICE_STATE, 0, &[], &[]).unwrap();
        assert!(!fe.answered_within(EARLY).unwrap());
        rig.server.stop().unwrap();
    });
}

#[test]
fn a_device_that_fails_ends_the_stream() {
    each(|direction, socket| {
        run_stateful("state_fails", |rig| {
            let fe = acknowledging(rig);
            rig.device.state.resize(LARGE);
            rig.device.state.fail_from(MIB, libc::EIO);
            let ours = begin(&fe, direction, socket);
            if direction == SAVE {
                let sent = receive(&ours, 0);
                assert!((MIB..LARGE).contains(&sent), "{sent}");
            } else {
                let supplied = thread::spawn(move || supply_until_closed(ours));
                assert!(supplied.join().unwrap() < LARGE);
            }
            fails(&fe);
            assert!(
                rig.log_lines()
                    .iter()
                    .any(|line| line.contains("as scripted"))
            );
        });
    });
}

/// On a thread of its own, whose SIGPIPE is nobody else's.
fn supply_until_closed(mut ours: File) -> u64 {
    // SAFETY: the set is initialised before it is used; the old mask is not asked for.
    unsafe {
        let mut pipe = std::mem::zeroed();
        libc::sigemptyset(&mut pipe);
        libc::sigaddset(&mut pipe, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, std::ptr::null_mut());
    }
    let mut buffer = vec![0; 65_536];
    for offset in (0..LARGE).step_by(buffer.len()) {
        write(offset, &mut buffer);
        if ours.write_all(&buffer).is_err() {
            return offset;
        }
    }
    LARGE
}

#[test]
fn a_stream_that_is_truncated_or_altered_does_not_pass() {
    for socket in [false, true] {
        run_stateful("state_truncated", |rig| {
            let fe = acknowledging(rig);
            rig.device.state.resize(LARGE);
            for size in [0, 1, MIB, LARGE - 1] {
                supply(begin(&fe, LOAD, socket), size);
                fails(&fe);
            }
            let mut ours = begin(&fe, LOAD, socket);
            ours.write_all(&[0; 100]).unwrap();
            drop(ours);
            fails(&fe);
            supply(begin(&fe, LOAD, socket), LARGE);
            succeeds(&fe);
        });
    }
}

#[test]
fn the_reader_of_a_state_goes() {
    for socket in [false, true] {
        run_stateful("state_reader", |rig| {
            let fe = acknowledging(rig);
            drop(endless(rig, &fe, SAVE, socket));
            fails(&fe);
        });
    }
}

#[test]
fn a_transfer_goes_on_in_another_context() {
    each(|direction, socket| {
        let script = Script::able(Capabilities::STATE);
        run_device_in(
            "state_detached",
            script,
            |b| b,
            |rig, ctx| {
                thread::scope(|scope| {
                    scope.spawn(|| ctx.run().unwrap());
                    let fe = acknowledging(rig);
                    let ours = endless(rig, &fe, direction, socket);
                    rig.server.request_detach().unwrap();
                    eventually("quiesced", Deadline::after(SOON), true, || {
                        rig.server.is_quiesced()
                    });
                    ctx.quit();
                    alive(&fe);
                    let other = Context::epoll().unwrap();
                    rig.server.attach(&other).unwrap();
                    thread::scope(|scope| {
                        scope.spawn(|| other.run().unwrap());
                        if direction == SAVE {
                            assert_eq!(receive(&ours, 0), LARGE);
                        } else {
                            supply_rest(ours, 1000);
                        }
                        succeeds(&fe);
                        rig.server.stop().unwrap();
                        other.quit();
                    });
                });
            },
        );
    });
}

#[track_caller]
fn supply_rest(mut ours: File, from: u64) {
    let mut rest = vec![0; (LARGE - from) as usize];
    write(from, &mut rest);
    ours.write_all(&rest).unwrap();
}

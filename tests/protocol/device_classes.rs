//! Requests for one class of devices: crypto, GPU; and the device status, which all have.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vu_server::{Capabilities, CryptoParams};

use super::device::{Event, Script, lock};
use super::rig::{Bad, Rig, acknowledging, alive, run, run_device, works};
use crate::sim::wire::{FLAG_NEED_REPLY, protocol_feature, req};
use crate::sim::{EventFd, Frontend, Session};

const OLD: usize = 632;
const NEW: usize = 1072;
/// VIRTIO_CRYPTO_CIPHER_CREATE_SESSION and VIRTIO_CRYPTO_AKCIPHER_CREATE_SESSION.
const CIPHER: u32 = 0x0002;
const AKCIPHER: u32 = 0x0404;

#[track_caller]
fn run_able(name: &str, test: impl FnOnce(&Rig)) {
    run_device(name, Script::able(Capabilities::all()), |b| b, test);
}

#[track_caller]
fn session(rig: &Rig) -> Session {
    rig.builder()
        .protocol_features(protocol_feature::CRYPTO_SESSION)
        .connect(rig.path())
}

/// A symmetric session, in the older or the newer layout, with keys that are longer than what is said.
fn symmetric(size: usize, cipher_key: u32, auth_key: u32) -> Vec<u8> {
    let mut body = vec![0; size];
    // Where the fields begin: after the ID and the operation, or after the operation alone.
    let fields = if size == OLD { 12 } else { 8 };
    body[fields - 4..fields].copy_from_slice(&0u32.to_ne_bytes());
    let op_at = if size == OLD { 8 } else { 0 };
    body[op_at..op_at + 4].copy_from_slice(&CIPHER.to_ne_bytes());
    for (at, field) in [11, cipher_key, 12, 13, auth_key, 14]
        .into_iter()
        .enumerate()
    {
        body[fields + 4 * at..][..4].copy_from_slice(&field.to_ne_bytes());
    }
    body[fields + 24..fields + 28].copy_from_slice(&[1, 2, 3, 4]);
    // The keys follow the fixed part of 48 bytes, which begins after the first 8 bytes in both.
    body[56..56 + 64].fill(0xc1);
    body[120..120 + 512].fill(0xa2);
    body
}

fn asymmetric(key: u32) -> Vec<u8> {
    let mut body = vec![0; NEW];
    body[..4].copy_from_slice(&AKCIPHER.to_ne_bytes());
    for (at, field) in [21, 22, key, 0, 0, 0, 23, 24].into_iter().enumerate() {
        body[8 + 4 * at..][..4].copy_from_slice(&u32::to_ne_bytes(field));
    }
    body[40..40 + 1024].fill(0xee);
    body
}

/// Creates a session; the ID that comes back.
#[track_caller]
fn create(fe: &Frontend, body: &[u8], flags: u32) -> i64 {
    let request = req::CREATE_CRYPTO_SESSION;
    fe.send(request, flags, body, &[]).unwrap();
    let reply = fe.recv_reply(request).unwrap();
    assert!(reply.fds.is_empty());
    assert_eq!(reply.body.len(), body.len());
    let at = if body.len() == OLD { 0 } else { NEW - 8 };
    let (id, rest) = (
        at..at + 8,
        [&reply.body[..at], &reply.body[at + 8..]].concat(),
    );
    assert!(rest.iter().all(|&byte| byte == 0), "keys go nowhere");
    i64::from_ne_bytes(reply.body[id].try_into().unwrap())
}

#[test]
fn crypto_sessions_are_created_and_closed() {
    run_able("crypto", |rig| {
        let mut s = session(rig);
        for (size, id) in [(OLD, 0u64), (NEW, 7), (OLD, i64::MAX as u64)] {
            rig.device.session_id.store(id, Ordering::Relaxed);
            let body = symmetric(size, 16, 20);
            assert_eq!(create(s.fe(), &body, 0), id as i64);
            let Event::CreateSession(told) = rig
                .device
                .take("session", |e| matches!(e, Event::CreateSession(_)))
            else {
                unreachable!()
            };
            assert_eq!(told.op_code, u64::from(CIPHER));
            assert_eq!(told.body, body);
            let params = CryptoParams::Symmetric {
                cipher_algo: 11,
                hash_algo: 12,
                digest_len: 13,
                aad_len: 14,
                op_type: 1,
                direction: 2,
                hash_mode: 3,
                chain_order: 4,
                cipher_key: vec![0xc1; 16],
                auth_key: vec![0xa2; 20],
            };
            assert_eq!(told.params, params);
            s.fe()
                .set(req::CLOSE_CRYPTO_SESSION, &id.to_ne_bytes(), &[])
                .unwrap();
            rig.device.take_event(Event::CloseSession(id));
        }
        create(s.fe(), &asymmetric(1024), 0);
        let Event::CreateSession(told) = rig
            .device
            .take("session", |e| matches!(e, Event::CreateSession(_)))
        else {
            unreachable!()
        };
        let params = CryptoParams::Asymmetric {
            algo: 21,
            key_type: 22,
            padding_algo: 23,
            hash_algo: 24,
            key: vec![0xee; 1024],
        };
        assert_eq!(told.params, params);
        works(&mut s);
    });
}

#[test]
fn case_68_key_lengths_beyond_their_buffers() {
    run_able("case_68", |rig| {
        let mut s = session(rig);
        let bad = [
            symmetric(OLD, 65, 0),
            symmetric(NEW, 65, 0),
            symmetric(OLD, 0, 513),
            symmetric(NEW, 0, 513),
            symmetric(OLD, u32::MAX, u32::MAX),
            symmetric(NEW, 0x8000_0000, 0),
            asymmetric(1025),
            asymmetric(u32::MAX),
        ];
        for body in &bad {
            // One reply of its own, asked for or not.
            for flags in [0, FLAG_NEED_REPLY] {
                assert_eq!(create(s.fe(), body, flags), -1);
                works(&mut s);
            }
        }
        let heard = rig.device.count(|e| matches!(e, Event::CreateSession(_)));
        assert_eq!(heard, 0, "the device never sees them");
        // Bodies without a layout have no place for an ID.
        let sizes = [0, 8, 631, 633, 1071, 1073];
        let odd = sizes.map(|size| Bad::new(req::CREATE_CRYPTO_SESSION, vec![0; size]));
        rig.all_refused(&mut s, &odd);
    });
}

#[test]
fn a_crypto_device_refuses() {
    run_able("crypto_refuses", |rig| {
        let mut s = session(rig);
        // An ID that the reply cannot carry.
        rig.device.session_id.store(1 << 63, Ordering::Relaxed);
        assert_eq!(create(s.fe(), &symmetric(NEW, 16, 0), 0), -1);
        rig.device.fail_with(libc::ENOSPC);
        for size in [OLD, NEW] {
            assert_eq!(create(s.fe(), &symmetric(size, 16, 0), 0), -1);
        }
        rig.all_refused(&mut s, &[Bad::u64(req::CLOSE_CRYPTO_SESSION, 3)]);
    });
}

#[test]
fn a_device_without_crypto_is_not_asked_for_sessions() {
    run("no_crypto", |rig| {
        let fe = acknowledging(rig);
        let offered = fe.get_protocol_features().unwrap();
        assert_eq!(offered & protocol_feature::CRYPTO_SESSION, 0);
        assert_eq!(create(&fe, &symmetric(OLD, 16, 0), 0), -1);
        rig.refused(&fe, &Bad::u64(req::CLOSE_CRYPTO_SESSION, 0));
        alive(&fe);
    });
}

#[test]
fn a_gpu_device_gets_its_socket() {
    run_able("gpu", |rig| {
        let mut s = session(rig);
        let socket = EventFd::new().unwrap();
        let fds = [socket.as_raw_fd()];
        s.fe().set(req::GPU_SET_SOCKET, &[], &fds).unwrap();
        rig.device.take_event(Event::GpuSocket);
        // The same open file: what is signalled here is seen there.
        socket.add(3).unwrap();
        let theirs = lock(&rig.device.gpu_socket).take().expect("a socket");
        assert_eq!(EventFd::from_fd(theirs).take().unwrap(), 3);
        rig.all_refused(
            &mut s,
            &[
                Bad::new(req::GPU_SET_SOCKET, []),
                Bad::new(req::GPU_SET_SOCKET, [0; 8]).fds(&fds),
                Bad::new(req::GPU_SET_SOCKET, []).fds(&[fds[0], fds[0]]),
            ],
        );
        rig.device.fail_with(libc::EBUSY);
        rig.all_refused(&mut s, &[Bad::new(req::GPU_SET_SOCKET, []).fds(&fds)]);
    });
    run("no_gpu", |rig| {
        let mut s = rig.session();
        let socket = EventFd::new().unwrap();
        let bad = Bad::new(req::GPU_SET_SOCKET, []).fds(&[socket.as_raw_fd()]);
        rig.all_refused(&mut s, &[bad]);
    });
}

#[test]
fn the_device_hears_the_status_and_the_reset_before_it() {
    run("status", |rig| {
        let fe = acknowledging(rig);
        for status in [1, 3, 11, 15] {
            fe.set_status(status).unwrap();
            rig.device.take_event(Event::Status(status as u8));
            assert_eq!(fe.get_status().unwrap(), status);
        }
        assert_eq!(rig.device.count(|e| *e == Event::Reset), 0);
        fe.set_status(0).unwrap();
        rig.device.take_event(Event::Status(0));
        rig.device.take_event(Event::Reset);
        assert_eq!(fe.get_status().unwrap(), 0);
    });
}

#[test]
fn xen_mappings_are_never_offered_and_refused() {
    run_able("xen", |rig| {
        let fe = acknowledging(rig);
        let offered = fe.get_protocol_features().unwrap();
        assert_eq!(offered & protocol_feature::XEN_MMAP, 0);
        let bits = offered | protocol_feature::XEN_MMAP;
        rig.refused(&fe, &Bad::u64(req::SET_PROTOCOL_FEATURES, bits));
        // A region with Xen's two more fields is no region.
        let file = EventFd::new().unwrap();
        let region = Bad::new(req::ADD_MEM_REG, [0; 48]).fds(&[file.as_raw_fd()]);
        rig.refused(&fe, &region);
        alive(&fe);
    });
}

//! The example `vsock-echo`: packets that the `virtio-vsock` crate reads and writes.

use std::sync::Arc;

use vu_server::{Address, Server};

use crate::sim::{Deadline, Seg, Session};
use crate::stop::*;
use crate::vsock_device::*;

const GUEST_CID: u64 = 3;
const HEADER: usize = 44;
const PORT: u32 = 1234;
const OURS: u32 = 5000;
const ROOM: u32 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    src: (u64, u32),
    dst: (u64, u32),
    kind: u16,
    op: u16,
    buf_alloc: u32,
    fwd_cnt: u32,
    data: Vec<u8>,
}

impl Packet {
    fn from_guest(op: u16, data: &[u8]) -> Self {
        Packet {
            src: (GUEST_CID, OURS),
            dst: (HOST_CID, PORT),
            kind: 1,
            op,
            buf_alloc: 1 << 16,
            fwd_cnt: 0,
            data: data.to_vec(),
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src.0.to_le_bytes());
        bytes.extend(self.dst.0.to_le_bytes());
        bytes.extend(self.src.1.to_le_bytes());
        bytes.extend(self.dst.1.to_le_bytes());
        bytes.extend((self.data.len() as u32).to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        assert_eq!(bytes.len(), HEADER);
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(u32_at(24) as usize, bytes.len() - HEADER, "length");
        Packet {
            src: (u64_at(0), u32_at(16)),
            dst: (u64_at(8), u32_at(20)),
            kind: u16_at(28),
            op: u16_at(30),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            data: bytes[HEADER..].to_vec(),
        }
    }
}

/// A driver with one receive buffer.
struct Guest {
    session: Session,
    server: Arc<Server>,
    looper: Looper,
    buffer: u64,
}

impl Guest {
    fn new() -> Self {
        let looper = Looper::new();
        let server = describe(GUEST_CID).build(Echo::new(GUEST_CID)).unwrap();
        let path = socket_path("rust-vmm-vsock");
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        let session = Session::builder().queues(3).connect(&path);
        let room = u64::from(ROOM);
        let buffer = session.memory.alloc(room, 16).unwrap();
        Guest {
            session,
            server: Arc::new(server),
            looper,
            buffer,
        }
    }

    /// As Linux does since 6.2 if `whole`, and as before otherwise: header and data apart.
    fn send(&mut self, packet: &Packet, whole: bool) {
        let memory = &self.session.memory;
        let header = packet.header();
        let split = if whole {
            header.len() + packet.data.len()
        } else {
            header.len()
        };
        let bytes = [header, packet.data.clone()].concat();
        let mut segs = Vec::new();
        for part in [&bytes[..split], &bytes[split..]] {
            if !part.is_empty() {
                let gpa = memory.alloc(part.len() as u64, 16).unwrap();
                memory.write(gpa, part).unwrap();
                segs.push(Seg::readable(gpa, part.len() as u32));
            }
        }
        let queue = &mut self.session.queues[TX as usize];
        queue.submit(&segs).unwrap();
        queue.wait_used(Deadline::after(SOON)).unwrap();
    }

    fn receive(&mut self, whole: bool) -> Packet {
        let head = HEADER as u32;
        let segs = if whole {
            vec![Seg::writable(self.buffer, ROOM)]
        } else {
            let data = self.buffer + u64::from(head);
            vec![
                Seg::writable(self.buffer, head),
                Seg::writable(data, ROOM - head),
            ]
        };
        let queue = &mut self.session.queues[RX as usize];
        queue.submit(&segs).unwrap();
        let used = queue.wait_used(Deadline::after(SOON)).unwrap();
        let bytes = self.session.memory.read(self.buffer, used.len as usize);
        Packet::parse(&bytes.unwrap())
    }

    #[track_caller]
    fn expect(&mut self, op: u16, fwd_cnt: u32, data: &[u8], whole: bool) {
        let want = Packet {
            src: (HOST_CID, PORT),
            dst: (GUEST_CID, OURS),
            kind: 1,
            op,
            buf_alloc: BUFFER,
            fwd_cnt,
            data: data.to_vec(),
        };
        assert_eq!(self.receive(whole), want);
    }

    fn finish(self) {
        self.server.stop().unwrap();
        drop(self.server);
        self.looper.finish();
    }
}

#[test]
fn a_connection_gets_back_what_it_sends() {
    let _guard = guard("vsock echo", 60);
    for whole in [false, true] {
        let mut guest = Guest::new();
        guest.send(&Packet::from_guest(OP_REQUEST, b""), whole);
        guest.expect(OP_RESPONSE, 0, b"", whole);
        guest.send(&Packet::from_guest(OP_RW, b"Hello"), whole);
        guest.expect(OP_RW, 5, b"Hello", whole);
        guest.send(&Packet::from_guest(OP_CREDIT_REQUEST, b""), whole);
        guest.expect(OP_CREDIT_UPDATE, 5, b"", whole);
        guest.send(&Packet::from_guest(OP_SHUTDOWN, b""), whole);
        guest.expect(OP_RST, 0, b"", whole);
        guest.finish();
    }
}

#[test]
fn data_that_exceeds_a_buffer_or_the_credit_comes_in_parts() {
    let _guard = guard("vsock credit", 60);
    let mut guest = Guest::new();
    let data: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
    let room = ROOM as usize - HEADER;
    guest.send(&Packet::from_guest(OP_REQUEST, b""), true);
    guest.expect(OP_RESPONSE, 0, b"", true);
    let mut request = Packet::from_guest(OP_RW, &data);
    request.buf_alloc = 5000;
    guest.send(&request, true);
    guest.expect(OP_RW, room as u32, &data[..room], true);
    guest.expect(OP_RW, 5000, &data[room..5000], true);
    let mut taken = Packet::from_guest(OP_CREDIT_UPDATE, b"");
    (taken.buf_alloc, taken.fwd_cnt) = (5000, 5000);
    guest.send(&taken, true);
    guest.expect(OP_RW, 6000, &data[5000..], true);
    guest.finish();
}

#[test]
fn packets_without_a_connection_and_malformed_ones_do_no_harm() {
    let _guard = guard("vsock malformed", 60);
    let mut guest = Guest::new();
    // Announces more data than there is.
    let mut bytes = Packet::from_guest(OP_RW, b"12345").header();
    bytes.truncate(HEADER);
    let gpa = guest.session.memory.alloc(64, 16).unwrap();
    guest.session.memory.write(gpa, &bytes).unwrap();
    for segs in [
        [Seg::readable(gpa, 44)],
        [Seg::readable(gpa, 43)],
        [Seg::writable(gpa, 44)],
    ] {
        let queue = &mut guest.session.queues[TX as usize];
        queue.submit(&segs).unwrap();
        assert_eq!(queue.wait_used(Deadline::after(SOON)).unwrap().len, 0);
    }
    guest.send(&Packet::from_guest(OP_RW, b"nobody listens"), false);
    guest.expect(OP_RST, 0, b"", false);
    let mut datagram = Packet::from_guest(OP_RW, b"");
    datagram.kind = 3;
    guest.send(&datagram, false);
    guest.expect(OP_RST, 0, b"", false);
    guest.finish();
}

//! The device (virtio 1.3, 5.10): its queues, and the packets in them.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::sync::{Mutex, MutexGuard};

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::Bytes;
use vu_server::{Device, Element, Kick, Server, ServerBuilder, StopReason, Virtqueue};

pub const HOST_CID: u64 = 2;

pub const RX: u32 = 0;
pub const TX: u32 = 1;
const QUEUES: u32 = 3; // the third one is for events, of which there are none

const STREAM: u16 = 1;

pub const OP_REQUEST: u16 = 1;
pub const OP_RESPONSE: u16 = 2;
pub const OP_RST: u16 = 3;
pub const OP_SHUTDOWN: u16 = 4;
pub const OP_RW: u16 = 5;
pub const OP_CREDIT_UPDATE: u16 = 6;
pub const OP_CREDIT_REQUEST: u16 = 7;

/// What a connection may have sent and not got back.
pub const BUFFER: u32 = 64 << 10;
const MAX_CONNECTIONS: usize = 64;
/// Answers for which the guest has no buffers: one that lets them pile up loses some.
const MAX_ANSWERS: usize = 1024;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub fn describe(guest_cid: u64) -> ServerBuilder {
    Server::builder()
        .name("vsock")
        .queues(QUEUES)
        .config_space(guest_cid.to_le_bytes().to_vec(), Vec::new())
}

/// The guest's port and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    guest: u32,
    host: u32,
}

#[derive(Default)]
struct Connection {
    /// What is still to be sent back.
    echo: VecDeque<u8>,
    /// Bytes sent in all, which is also what has been taken from the guest for good.
    sent: u32,
    /// The guest's buffer, and how much it has taken out of it.
    peer_buffer: u32,
    peer_taken: u32,
}

impl Connection {
    fn sendable(&self) -> usize {
        let credit = self
            .peer_buffer
            .saturating_sub(self.sent.wrapping_sub(self.peer_taken));
        self.echo.len().min(credit as usize)
    }
}

/// A packet for the guest.
struct Answer {
    ports: Ports,
    op: u16,
    data: Vec<u8>,
}

#[derive(Default)]
struct State {
    /// The guest's empty buffers, oldest first.
    empty: VecDeque<Element>,
    connections: BTreeMap<Ports, Connection>,
    /// Answers without data.
    answers: VecDeque<(Ports, u16)>,
}

impl State {
    fn answer(&mut self, ports: Ports, op: u16) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((ports, op));
        }
    }

    fn hear(&mut self, packet: &VsockPacket<'_, ()>) -> Result<()> {
        let ports = Ports {
            guest: packet.src_port(),
            host: packet.dst_port(),
        };
        if packet.type_() != STREAM {
            self.answer(ports, OP_RST);
            return Ok(());
        }
        if packet.op() == OP_REQUEST && self.connections.len() < MAX_CONNECTIONS {
            self.connections.insert(ports, Connection::default());
            self.answer(ports, OP_RESPONSE);
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            if packet.op() != OP_RST {
                self.answer(ports, OP_RST);
            }
            return Ok(());
        };
        connection.peer_buffer = packet.buf_alloc();
        connection.peer_taken = packet.fwd_cnt();
        match packet.op() {
            OP_RW => {
                let mut data = vec![0; packet.len() as usize];
                if let Some(slice) = packet.data_slice() {
                    slice.read_slice(&mut data, 0)?;
                }
                connection.echo.extend(data);
                if connection.echo.len() > BUFFER as usize {
                    self.end(ports);
                }
            }
            OP_SHUTDOWN => self.end(ports),
            OP_RST => {
                self.connections.remove(&ports);
            }
            OP_CREDIT_REQUEST => self.answer(ports, OP_CREDIT_UPDATE),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ports: Ports) {
        self.connections.remove(&ports);
        self.answer(ports, OP_RST);
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    fn next_answer(&mut self, room: usize) -> Option<Answer> {
        if let Some((ports, op)) = self.answers.pop_front() {
            let data = Vec::new();
            return Some(Answer { ports, op, data });
        }
        let (ports, connection) = self
            .connections
            .iter_mut()
            .find(|(_, connection)| connection.sendable() > 0)?;
        let len = connection.sendable().min(room);
        connection.sent = connection.sent.wrapping_add(len as u32);
        Some(Answer {
            ports: *ports,
            op: OP_RW,
            data: connection.echo.drain(..len).collect(),
        })
    }
}

pub struct Echo {
    guest_cid: u64,
    /// The queues may be in different event loops.
    state: Mutex<State>,
}

impl Echo {
    pub fn new(guest_cid: u64) -> Self {
        Echo {
            guest_cid,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// One packet of the guest's. A malformed one has no effect.
    fn receive(&self, state: &mut State, element: &Element) -> Result<()> {
        let memory = element.chain_memory()?;
        let mut chain = memory.chain()?;
        let packet = VsockPacket::from_tx_virtq_chain(&memory, &mut chain, BUFFER)?;
        state.hear(&packet)
    }

    /// Fills one buffer of the guest's; how many bytes were written.
    fn fill(&self, state: &mut State, element: &Element) -> Result<Option<u32>> {
        let memory = element.chain_memory()?;
        let mut chain = memory.chain()?;
        let mut packet = VsockPacket::from_rx_virtq_chain(&memory, &mut chain, u32::MAX)?;
        let room = packet.data_slice().map_or(0, |slice| slice.len());
        let Some(answer) = state.next_answer(room) else {
            return Ok(None);
        };
        let taken = state
            .connections
            .get(&answer.ports)
            .map_or(0, |connection| connection.sent);
        packet.set_header_from_raw(&[0; PKT_HEADER_SIZE])?;
        packet
            .set_src_cid(HOST_CID)
            .set_dst_cid(self.guest_cid)
            .set_src_port(answer.ports.host)
            .set_dst_port(answer.ports.guest)
            .set_len(answer.data.len() as u32)
            .set_type(STREAM)
            .set_op(answer.op)
            .set_buf_alloc(BUFFER)
            .set_fwd_cnt(taken);
        if let Some(slice) = packet.data_slice() {
            slice.write_slice(&answer.data, 0)?;
        }
        Ok(Some((PKT_HEADER_SIZE + answer.data.len()) as u32))
    }

    fn send(&self, state: &mut State) {
        while let Some(element) = state.empty.pop_front() {
            match self.fill(state, &element) {
                Ok(Some(written)) => element.complete(written).expect("written fits"),
                Ok(None) => return state.empty.push_front(element),
                // No buffer for a packet: the guest has it back, empty.
                Err(_) => drop(element),
            }
        }
    }
}

impl Device for Echo {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let state = &mut *self.state();
        while let Ok(Some(element)) = vq.pop_one() {
            match vq.index() {
                RX => state.empty.push_back(element),
                TX => {
                    // Malformed packets are dropped.
                    let _ = self.receive(state, &element);
                    vq.stage(element, 0).expect("nothing written always fits");
                }
                _ => break,
            }
        }
        self.send(state);
        Kick::Done
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, _reason: StopReason) {
        if vq.index() == RX {
            let mut state = self.state();
            while let Some(element) = state.empty.pop_back() {
                // The newest first, so that it can be put back.
                let _ = vq.unpop(element);
            }
        }
    }

    fn disconnected(&self, _errno: i32, _reason: &str) {
        *self.state() = State::default();
    }
}

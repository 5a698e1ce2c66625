//! What an application implements.

use std::os::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::message::{RawMessage, Verdict};
use crate::protocol::messages::CryptoSession;
use crate::virtqueue::Virtqueue;

/// What [`Device::kick`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Everything that the device wants to look at has been looked at. It is called again when the driver
    /// makes more buffers available.
    Done,
    /// Call again after the loop has served others, also if the ring has nothing new by then. A queue that
    /// leaves its context meanwhile begins afresh with [`Device::queue_started`].
    Again,
}

/// Why a queue leaves its context; see [`Device::queue_stopping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum StopReason {
    /// The front-end changes something (a new kick fd, for one); the queue comes back.
    Reconfigured = 1,
    /// The front-end stops the ring (GET_VRING_BASE).
    VringBase = 2,
    /// The front-end disables the ring.
    Disabled = 3,
    /// The server is being detached from its contexts.
    Detached = 4,
    /// The queue moves to another context.
    Moved = 5,
    /// The device is being reset.
    Reset = 6,
    /// The connection has ended.
    Disconnected = 7,
    /// The server is being stopped.
    ServerStopping = 8,
    /// The ring is broken.
    Broken = 9,
}

impl StopReason {
    pub(crate) fn from_u32(value: u32) -> Self {
        match value {
            2 => StopReason::VringBase,
            3 => StopReason::Disabled,
            4 => StopReason::Detached,
            5 => StopReason::Moved,
            6 => StopReason::Reset,
            7 => StopReason::Disconnected,
            8 => StopReason::ServerStopping,
            9 => StopReason::Broken,
            _ => StopReason::Reconfigured,
        }
    }
}

bitflags::bitflags! {
    /// What a device implements beside its virtqueues; see [`Device::capabilities`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u64 {
        /// [`Device::send_rarp`]
        const RARP = 1 << 0;
        /// [`Device::net_set_mtu`]
        const MTU = 1 << 1;
        /// [`Device::shared_object`]
        const SHARED_OBJECT = 1 << 2;
        /// [`Device::create_crypto_session`] and [`Device::close_crypto_session`]
        const CRYPTO = 1 << 3;
        /// [`Device::gpu_set_socket`]
        const GPU_SOCKET = 1 << 4;
        /// [`Device::save_state`] and [`Device::load_state`]. Such a device has no status (SET_STATUS is not offered):
        /// QEMU resets a device that has one when the guest stops, and its state would be gone before it is saved.
        const STATE = 1 << 5;
    }
}

fn not_supported<T>(what: &str) -> Result<T> {
    Err(Error::new(
        libc::EOPNOTSUPP,
        format!("{what}: not implemented"),
    ))
}

/// A virtio device.
///
/// Every method but [`destroy`](Device::destroy) is called on the thread that owns the context concerned,
/// inside a dispatch of that context (or inside stop or detach called by that thread): the queue's context
/// for the methods that take a queue, the server's home context for the others. A device whose queues all
/// live in one context therefore needs no lock. No lock of the library's is held meanwhile.
///
/// Inside a callback [`Server::stop`](crate::Server::stop) answers `EDEADLK`, and so do start, detach and free of
/// the same server (but free is legal inside [`stopped`](Device::stopped)); everything else may be called,
/// [`Server::request_stop`](crate::Server::request_stop) and
/// [`Server::request_detach`](crate::Server::request_detach) among it.
///
/// While the server is detached nothing is called; events are delivered later, or dropped by a stop.
///
/// The methods that return a [`Result`] answer a request of the front-end. An error refuses it: the
/// front-end is told, or, where the protocol has no way to tell it, the connection ends. While the server is
/// detached the front-end waits for its answer; a connection that ends meanwhile takes the question with it
/// (one that is being answered just then is heard to the end, and its answer dropped).
///
/// A panic is caught: the server is then poisoned, its connection ends, and it can only be stopped and
/// freed.
pub trait Device: Send + Sync + 'static {
    /// There may be buffers to pop. Guest notifications are off meanwhile.
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick;

    /// Which of the methods that answer requests the device implements. Only their protocol features are
    /// offered, and the requests of the others are refused without a call. Asked once, when the server is
    /// built, on the thread that builds it.
    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }

    /// The queue has arrived in this context and can be popped.
    fn queue_started(&self, _vq: &mut Virtqueue<'_>) {}

    /// The queue is about to leave this context. Complete or unpop what is merely held; requests that are
    /// being worked on may be completed later, from any thread. Pop answers `ESHUTDOWN` by now.
    fn queue_stopping(&self, _vq: &mut Virtqueue<'_>, _reason: StopReason) {}

    /// Nothing of this queue is in flight any more.
    fn queue_stopped(&self, _index: u32) {}

    /// A front-end has connected.
    fn connected(&self) {}

    /// The connection has ended and everything of it is gone. `errno` is 0 when the peer closed it between
    /// two messages or the server was stopped.
    fn disconnected(&self, _errno: i32, _reason: &str) {}

    /// The driver's features and the front-end's protocol features.
    fn features_acked(&self, _features: u64, _protocol_features: u64) {}

    /// The driver wrote these bytes of the config space (merged over writes not yet delivered); read them
    /// with [`Server::config`](crate::Server::config).
    fn config_written(&self, _offset: u32, _size: u32) {}

    /// The driver or the front-end reset the device; all queues are stopped.
    fn reset(&self) {}

    /// The driver's device status, as the front-end passes it on (SET_STATUS; virtio 1.3, 2.1): for a device
    /// that wants to know how far the driver is. Of several that were not delivered yet, the last one. Zero
    /// comes after [`reset`](Self::reset), which acts on it.
    fn status_set(&self, _status: u8) {}

    /// This ring is broken and stopped; the others go on.
    fn ring_broken(&self, _index: u32, _errno: i32, _reason: &str) {}

    /// The drain time-out expired: this queue's memory now lives on its own until its last element is
    /// completed, and the queue will come back as a new one.
    fn orphaned(&self, _index: u32) {}

    /// Broadcast a fake RARP for the guest with this address, so that the network learns where it is after a
    /// migration (SEND_RARP). A front-end that does not wait for the answer does not learn of an error.
    ///
    /// # Errors
    /// The device's own.
    fn send_rarp(&self, _mac: [u8; 6]) -> Result<()> {
        not_supported("send_rarp")
    }

    /// The host's MTU, which the driver sees (NET_SET_MTU).
    ///
    /// # Errors
    /// The device's own: the MTU does not suit it.
    fn net_set_mtu(&self, _mtu: u16) -> Result<()> {
        not_supported("net_set_mtu")
    }

    /// The dma-buf of an object that this device has exported, by its UUID in network byte order
    /// (GET_SHARED_OBJECT).
    ///
    /// # Errors
    /// The device's own: there is no such object.
    fn shared_object(&self, _uuid: [u8; 16]) -> Result<OwnedFd> {
        not_supported("shared_object")
    }

    /// Create a session of a crypto device and answer its ID, up to 63 bits (CREATE_CRYPTO_SESSION; virtio 1.3,
    /// 5.9.7.2). All sessions of a connection end with it.
    ///
    /// # Errors
    /// The device's own.
    fn create_crypto_session(&self, _session: &CryptoSession) -> Result<u64> {
        not_supported("create_crypto_session")
    }

    /// End a session (CLOSE_CRYPTO_SESSION).
    ///
    /// # Errors
    /// The device's own: there is no such session.
    fn close_crypto_session(&self, _id: u64) -> Result<()> {
        not_supported("close_crypto_session")
    }

    /// The socket on which a GPU device talks to its display (GPU_SET_SOCKET; QEMU's vhost-user-gpu
    /// specification says what about).
    ///
    /// # Errors
    /// The device's own.
    fn gpu_set_socket(&self, _socket: OwnedFd) -> Result<()> {
        not_supported("gpu_set_socket")
    }

    /// A message that the device wants to see before the library
    /// ([`ServerBuilder::intercept`](crate::ServerBuilder::intercept)). The library has checked nothing but
    /// its header: not whether its feature is negotiated, nor its size. The front-end gets exactly one reply
    /// where one is due, whatever the answer. A request that the specification gives a reply of its own must
    /// get one from a device that takes it.
    ///
    /// What the library is not shown it does not know: a device that takes a message away from it, about memory
    /// or rings for one, answers for what follows.
    ///
    /// # Errors
    /// The device's own, which refuse the message as the library would.
    fn message(&self, _message: &mut RawMessage) -> Result<Verdict> {
        Ok(Verdict::NotMine)
    }

    /// Fills `buffer` with the device's state from byte `offset` of it on, for another host to load, and answers how many
    /// bytes that is; 0 is the end (vhost-user specification, "Migrating back-end state").
    ///
    /// All rings are stopped. Pieces are asked for in order, each once; `offset` 0 begins anew. A transfer that is given up
    /// just ends: the front-end resets the device, starts a ring, begins another transfer or goes.
    ///
    /// # Errors
    /// The device's own: the transfer fails, and the front-end is told when it asks.
    fn save_state(&self, _offset: u64, _buffer: &mut [u8]) -> Result<usize> {
        not_supported("save_state")
    }

    /// Takes over a state that [`save_state`](Device::save_state) gave on another host: the bytes from `offset` on, in
    /// pieces of any size. An empty one is the end, where the device says whether the state is complete and good.
    ///
    /// # Errors
    /// As for [`save_state`](Device::save_state).
    fn load_state(&self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        not_supported("load_state")
    }

    /// The stop that [`Server::request_stop`](crate::Server::request_stop) began is complete; not called if
    /// [`Server::stop`](crate::Server::stop) began it. The server may be freed in here.
    fn stopped(&self) {}

    /// Exactly once, when the server is freed: no callback follows. Called on the freeing thread, or on the
    /// internal one if a running server was dropped inside a callback.
    fn destroy(&self) {}
}

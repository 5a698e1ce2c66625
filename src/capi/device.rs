//! `vu_device_ops`: what an application implements.

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use crate::device::{Capabilities, Device, Kick, StopReason};
use crate::error::{Error, Result};
use crate::message::{RawMessage, Verdict};
use crate::protocol::messages::CryptoSession;
use crate::sync::Arc;
use crate::virtqueue::Virtqueue;

use super::crypto::vu_crypto_session;
use super::error::c_string;
use super::guard::refusal;
use super::message::{Room, vu_message};
use super::structs::{Extensible, layout};
use super::vq::vu_vq;

/// Answer of vu_device_ops.kick: call again after the loop has served others.
pub const VU_AGAIN: c_int = 1;

/// Why a queue leaves its context: the front-end changes something (its kick
/// descriptor, for one); the queue comes back.
pub const VU_STOP_RECALL: u32 = 1;
/// The front-end stops the ring (GET_VRING_BASE).
pub const VU_STOP_VRING_BASE: u32 = 2;
/// The front-end disables the ring.
pub const VU_STOP_DISABLED: u32 = 3;
/// The server, or the queue, is being detached from its context.
pub const VU_STOP_DETACH: u32 = 4;
/// The queue moves to another context.
pub const VU_STOP_MOVE: u32 = 5;
/// The device is being reset.
pub const VU_STOP_RESET: u32 = 6;
/// The connection has ended.
pub const VU_STOP_DISCONNECT: u32 = 7;
/// The server is being stopped.
pub const VU_STOP_SERVER: u32 = 8;
/// The ring is broken.
pub const VU_STOP_BROKEN: u32 = 9;

const _: () = {
    assert!(VU_STOP_RECALL == StopReason::Reconfigured as u32);
    assert!(VU_STOP_VRING_BASE == StopReason::VringBase as u32);
    assert!(VU_STOP_DISABLED == StopReason::Disabled as u32);
    assert!(VU_STOP_DETACH == StopReason::Detached as u32);
    assert!(VU_STOP_MOVE == StopReason::Moved as u32);
    assert!(VU_STOP_RESET == StopReason::Reset as u32);
    assert!(VU_STOP_DISCONNECT == StopReason::Disconnected as u32);
    assert!(VU_STOP_SERVER == StopReason::ServerStopping as u32);
    assert!(VU_STOP_BROKEN == StopReason::Broken as u32);
};

/// A virtio device.
///
/// Every function but `kick` may be NULL. Each is called on the thread that
/// owns the context concerned, inside a dispatch of that context (or inside
/// vu_server_stop() or vu_server_detach_ctx() called by that thread): the
/// queue's context for kick, queue_started and queue_stopping, the server's
/// home context for the others. The ones of the home context come in order, and
/// before a queue is started all that precede it have been delivered. While the
/// server is detached none is called; they are delivered later, or dropped by a
/// stop.
///
/// The functions after `destroy` answer requests of the front-end. One that is
/// NULL is not implemented: its protocol feature is not offered. They return 0
/// or -errno, which refuses the request: the front-end is told, or, where the
/// protocol has no way to tell it, the connection ends. While the server is
/// detached the front-end waits for its answer; a connection that ends
/// meanwhile takes the question with it. What they put out through a pointer
/// counts only if they return 0.
///
/// A function must return: no longjmp() and no C++ exception may pass through
/// the library.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vu_device_ops {
    /// sizeof(vu_device_ops), see VU_DEVICE_OPS_INIT.
    pub struct_size: usize,
    /// Required. There may be elements to pop; guest notifications are off
    /// meanwhile. Returns 0 when everything that the device wants to look at
    /// has been looked at (it is called again when the driver makes more
    /// available), or VU_AGAIN.
    pub kick: Option<unsafe extern "C" fn(dev: *mut c_void, vq: *mut vu_vq) -> c_int>,
    /// The queue has arrived in this context and can be popped.
    pub queue_started: Option<unsafe extern "C" fn(dev: *mut c_void, vq: *mut vu_vq)>,
    /// The queue is about to leave this context, for one of VU_STOP_*. Complete
    /// or unpop the elements that are merely held (the receive buffers of a
    /// network device); requests that are being worked on may be completed
    /// later, from any thread. vu_vq_pop() answers -ESHUTDOWN by now.
    pub queue_stopping: Option<unsafe extern "C" fn(dev: *mut c_void, vq: *mut vu_vq, reason: u32)>,
    /// Nothing of this queue is in flight any more.
    pub queue_stopped: Option<unsafe extern "C" fn(dev: *mut c_void, index: u32)>,
    /// A front-end has connected.
    pub connected: Option<unsafe extern "C" fn(dev: *mut c_void)>,
    /// The connection has ended and everything of it is gone. `error` is 0 if
    /// the peer closed it between two messages or the server was stopped, else
    /// -errno; `reason` says it in words, valid during the call.
    pub disconnected:
        Option<unsafe extern "C" fn(dev: *mut c_void, error: c_int, reason: *const c_char)>,
    /// The features that the driver has accepted, and the front-end's protocol
    /// features.
    pub features_acked:
        Option<unsafe extern "C" fn(dev: *mut c_void, features: u64, protocol_features: u64)>,
    /// The driver wrote these bytes of the config space (merged over writes
    /// that were not delivered yet); read them with vu_server_get_config().
    pub config_written: Option<unsafe extern "C" fn(dev: *mut c_void, offset: u32, size: u32)>,
    /// The driver or the front-end reset the device; all its queues are stopped.
    pub reset: Option<unsafe extern "C" fn(dev: *mut c_void)>,
    /// This ring is broken and stopped, the others go on: -errno, and `reason`
    /// in words, valid during the call.
    pub ring_broken: Option<
        unsafe extern "C" fn(dev: *mut c_void, index: u32, error: c_int, reason: *const c_char),
    >,
    /// The drain time-out expired with elements of this queue in flight. Its
    /// memory stays until the last of them is completed; the device is served
    /// by a new queue with this index.
    pub orphaned: Option<unsafe extern "C" fn(dev: *mut c_void, index: u32)>,
    /// The stop that vu_server_request_stop() began is complete; not called if
    /// vu_server_stop() began it. vu_server_free() is legal in here.
    pub stopped: Option<unsafe extern "C" fn(dev: *mut c_void)>,
    /// Called exactly once: inside vu_server_free(), or inside vu_server_new()
    /// if that fails after it could read this structure. Nothing of the device
    /// is called after it.
    pub destroy: Option<unsafe extern "C" fn(dev: *mut c_void)>,
    /// Broadcast a fake RARP for the guest with this MAC address, so that the
    /// network learns where it is after a migration (SEND_RARP). Returns 0 or
    /// -errno, of which a front-end that does not wait learns nothing.
    pub send_rarp: Option<unsafe extern "C" fn(dev: *mut c_void, mac: *const u8) -> c_int>,
    /// The host's MTU, 68 to 65535, which the driver sees (NET_SET_MTU).
    /// Returns 0, or -errno if it does not suit the device.
    pub net_set_mtu: Option<unsafe extern "C" fn(dev: *mut c_void, mtu: u32) -> c_int>,
    /// The dma-buf of an object that this device has exported, by its UUID of
    /// 16 bytes in network byte order (GET_SHARED_OBJECT). Returns 0, with a
    /// descriptor in `fd` that the library takes and closes, or -errno if there
    /// is no such object.
    pub shared_object:
        Option<unsafe extern "C" fn(dev: *mut c_void, uuid: *const u8, fd: *mut c_int) -> c_int>,
    /// Create a session of a crypto device (CREATE_CRYPTO_SESSION; virtio 1.3,
    /// 5.9.7.2); needs close_crypto_session. `session` is valid during the call.
    /// Returns 0 with the session's ID in `id`, up to 63 bits, or -errno. All
    /// sessions of a connection end with it.
    pub create_crypto_session: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            session: *const vu_crypto_session,
            id: *mut u64,
        ) -> c_int,
    >,
    /// End a session (CLOSE_CRYPTO_SESSION); needs create_crypto_session.
    /// Returns 0, or -errno if there is no such session.
    pub close_crypto_session: Option<unsafe extern "C" fn(dev: *mut c_void, id: u64) -> c_int>,
    /// The socket on which a GPU device talks to its display (GPU_SET_SOCKET;
    /// QEMU's vhost-user-gpu specification says what about). Returns 0, and then
    /// the descriptor is the device's to close, or -errno.
    pub gpu_set_socket: Option<unsafe extern "C" fn(dev: *mut c_void, fd: c_int) -> c_int>,
    /// Not a question: the driver's device status, as the front-end passes it on
    /// (SET_STATUS; virtio 1.3, 2.1). Of several that were not delivered yet,
    /// the last one. Zero comes after `reset`, which acts on it.
    pub status_set: Option<unsafe extern "C" fn(dev: *mut c_void, status: u8)>,
    /// A message that the device wants to see before the library, one of
    /// vu_server_config.message_requests. The library has checked nothing but
    /// its header: not whether its feature is negotiated, nor its size.
    /// `message` is valid during the call. Returns one of VU_MESSAGE_*, or
    /// -errno, which refuses the message as the library would. The front-end
    /// gets exactly one reply where one is due, whatever the answer; a request
    /// that the specification gives a reply of its own must get one from a
    /// device that takes it. What the library is not shown it does not know: a
    /// device that takes a message away from it, about memory or rings for one,
    /// answers for what follows.
    pub message: Option<unsafe extern "C" fn(dev: *mut c_void, message: *mut vu_message) -> c_int>,
    /// Fills `buffer` with the device's state from byte `offset` of it on, for
    /// another host to load (SET_DEVICE_STATE_FD; "Migrating back-end state" in
    /// the vhost-user specification). Returns how many bytes, up to `size`; 0
    /// at the end; or -errno, which fails the transfer. All rings are stopped.
    /// Pieces are asked for in order, each once, and 0 begins anew; a transfer
    /// that is given up just ends. Needs load_state. A device with the two has
    /// no status (SET_STATUS is not offered): QEMU resets a device that has one
    /// when the guest stops, before it asks for the state.
    pub save_state: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            offset: u64,
            buffer: *mut c_void,
            size: usize,
        ) -> i64,
    >,
    /// Takes over a state that save_state gave on another host: `size` bytes
    /// from `offset` on, in pieces of any size. Size 0 is the end, where the
    /// device says whether the state is complete and good. Returns 0 or -errno.
    pub load_state: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            offset: u64,
            bytes: *const c_void,
            size: usize,
        ) -> c_int,
    >,
}

layout!(vu_device_ops, 192, {
    struct_size: 0,
    kick: 8,
    queue_started: 16,
    queue_stopping: 24,
    queue_stopped: 32,
    connected: 40,
    disconnected: 48,
    features_acked: 56,
    config_written: 64,
    reset: 72,
    ring_broken: 80,
    orphaned: 88,
    stopped: 96,
    destroy: 104,
    send_rarp: 112,
    net_set_mtu: 120,
    shared_object: 128,
    create_crypto_session: 136,
    close_crypto_session: 144,
    gpu_set_socket: 152,
    status_set: 160,
    message: 168,
    save_state: 176,
    load_state: 184,
});

// SAFETY: repr(C), begins with its size, functions may be NULL.
unsafe impl Extensible for vu_device_ops {
    const NAME: &'static str = "ops";
}

/// A device in C, as the crate sees it.
pub(super) struct CDevice {
    ops: vu_device_ops,
    dev: *mut c_void,
}

// SAFETY: `dev` is only passed on; on which threads is the contract that the header states.
unsafe impl Send for CDevice {}
// SAFETY: as above.
unsafe impl Sync for CDevice {}

impl CDevice {
    pub(super) fn new(ops: vu_device_ops, dev: *mut c_void) -> Self {
        CDevice { ops, dev }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.ops.kick.is_none() {
            return Err(Error::invalid("ops.kick: NULL"));
        }
        if self.ops.save_state.is_some() != self.ops.load_state.is_some() {
            return Err(Error::invalid(
                "ops.save_state, ops.load_state: one without the other",
            ));
        }
        if self.ops.create_crypto_session.is_some() != self.ops.close_crypto_session.is_some() {
            return Err(Error::invalid(
                "ops.create_crypto_session, ops.close_crypto_session: one without the other",
            ));
        }
        Ok(())
    }
}

/// What C knows a lent queue as.
fn pointer(vq: &Virtqueue<'_>) -> *mut vu_vq {
    Arc::as_ptr(vq.queue()).cast_mut().cast()
}

/// Calls a function that answers 0 or -errno.
fn answer<F>(name: &str, f: Option<F>, call: impl FnOnce(F) -> c_int) -> Result<()> {
    let Some(f) = f else {
        return Err(Error::new(libc::EOPNOTSUPP, format!("ops.{name}: NULL")));
    };
    match call(f) {
        0 => Ok(()),
        other => Err(refusal(name, other)),
    }
}

/// Takes a descriptor that a function has put out.
fn take_fd(name: &str, fd: c_int) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::new(libc::EBADF, format!("{name}: descriptor {fd}")));
    }
    // SAFETY: the header says that it becomes the library's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// In each `unsafe` below the application's own function gets its own data back, and queues and strings that
// outlive the call.
impl Device for CDevice {
    fn capabilities(&self) -> Capabilities {
        let ops = &self.ops;
        [
            (ops.send_rarp.is_some(), Capabilities::RARP),
            (ops.net_set_mtu.is_some(), Capabilities::MTU),
            (ops.shared_object.is_some(), Capabilities::SHARED_OBJECT),
            (ops.create_crypto_session.is_some(), Capabilities::CRYPTO),
            (ops.gpu_set_socket.is_some(), Capabilities::GPU_SOCKET),
            (ops.save_state.is_some(), Capabilities::STATE),
        ]
        .into_iter()
        .filter_map(|(implemented, capability)| implemented.then_some(capability))
        .collect()
    }

    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let Some(f) = self.ops.kick else {
            return Kick::Done;
        };
        // SAFETY: see above.
        match unsafe { f(self.dev, pointer(vq)) } {
            VU_AGAIN => Kick::Again,
            0 => Kick::Done,
            other => {
                vq.queue().server.logger.warning(format_args!(
                    "queue {}: kick returned {other}, which is neither 0 nor VU_AGAIN",
                    vq.index()
                ));
                Kick::Done
            }
        }
    }

    fn queue_started(&self, vq: &mut Virtqueue<'_>) {
        if let Some(f) = self.ops.queue_started {
            // SAFETY: see above.
            unsafe { f(self.dev, pointer(vq)) };
        }
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, reason: StopReason) {
        if let Some(f) = self.ops.queue_stopping {
            // SAFETY: see above.
            unsafe { f(self.dev, pointer(vq), reason as u32) };
        }
    }

    fn queue_stopped(&self, index: u32) {
        if let Some(f) = self.ops.queue_stopped {
            // SAFETY: see above.
            unsafe { f(self.dev, index) };
        }
    }

    fn connected(&self) {
        if let Some(f) = self.ops.connected {
            // SAFETY: see above.
            unsafe { f(self.dev) };
        }
    }

    fn disconnected(&self, errno: i32, reason: &str) {
        if let Some(f) = self.ops.disconnected {
            // SAFETY: see above.
            unsafe { f(self.dev, -errno, c_string(reason).as_ptr()) };
        }
    }

    fn features_acked(&self, features: u64, protocol_features: u64) {
        if let Some(f) = self.ops.features_acked {
            // SAFETY: see above.
            unsafe { f(self.dev, features, protocol_features) };
        }
    }

    fn config_written(&self, offset: u32, size: u32) {
        if let Some(f) = self.ops.config_written {
            // SAFETY: see above.
            unsafe { f(self.dev, offset, size) };
        }
    }

    fn reset(&self) {
        if let Some(f) = self.ops.reset {
            // SAFETY: see above.
            unsafe { f(self.dev) };
        }
    }

    fn ring_broken(&self, index: u32, errno: i32, reason: &str) {
        if let Some(f) = self.ops.ring_broken {
            // SAFETY: see above.
            unsafe { f(self.dev, index, -errno, c_string(reason).as_ptr()) };
        }
    }

    fn orphaned(&self, index: u32) {
        if let Some(f) = self.ops.orphaned {
            // SAFETY: see above.
            unsafe { f(self.dev, index) };
        }
    }

    fn send_rarp(&self, mac: [u8; 6]) -> Result<()> {
        answer("send_rarp", self.ops.send_rarp, |f| {
            // SAFETY: see above.
            unsafe { f(self.dev, mac.as_ptr()) }
        })
    }

    fn net_set_mtu(&self, mtu: u16) -> Result<()> {
        answer("net_set_mtu", self.ops.net_set_mtu, |f| {
            // SAFETY: see above.
            unsafe { f(self.dev, mtu.into()) }
        })
    }

    fn shared_object(&self, uuid: [u8; 16]) -> Result<OwnedFd> {
        let mut fd = -1;
        answer("shared_object", self.ops.shared_object, |f| {
            // SAFETY: see above.
            unsafe { f(self.dev, uuid.as_ptr(), &raw mut fd) }
        })?;
        take_fd("shared_object", fd)
    }

    fn create_crypto_session(&self, session: &CryptoSession) -> Result<u64> {
        let session = vu_crypto_session::new(session);
        let mut id = 0;
        answer(
            "create_crypto_session",
            self.ops.create_crypto_session,
            |f| {
                // SAFETY: see above.
                unsafe { f(self.dev, &raw const session, &raw mut id) }
            },
        )?;
        Ok(id)
    }

    fn close_crypto_session(&self, id: u64) -> Result<()> {
        answer("close_crypto_session", self.ops.close_crypto_session, |f| {
            // SAFETY: see above.
            unsafe { f(self.dev, id) }
        })
    }

    fn gpu_set_socket(&self, socket: OwnedFd) -> Result<()> {
        answer("gpu_set_socket", self.ops.gpu_set_socket, |f| {
            // SAFETY: see above.
            unsafe { f(self.dev, socket.as_raw_fd()) }
        })?;
        // It is the device's from here on.
        let _ = socket.into_raw_fd();
        Ok(())
    }

    fn status_set(&self, status: u8) {
        if let Some(f) = self.ops.status_set {
            // SAFETY: see above.
            unsafe { f(self.dev, status) };
        }
    }

    fn message(&self, message: &mut RawMessage) -> Result<Verdict> {
        let Some(f) = self.ops.message else {
            return Ok(Verdict::NotMine);
        };
        // SAFETY: see above.
        Room::new(message).call(message, |c| unsafe { f(self.dev, c) })
    }

    fn save_state(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let Some(f) = self.ops.save_state else {
            return Err(Error::new(libc::EOPNOTSUPP, "ops.save_state: NULL"));
        };
        // SAFETY: see above; the buffer is writable for its length.
        let count = unsafe { f(self.dev, offset, buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(count).map_err(|_| {
            refusal(
                "save_state",
                c_int::try_from(count).unwrap_or(-libc::EINVAL),
            )
        })
    }

    fn load_state(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        answer("load_state", self.ops.load_state, |f| {
            // SAFETY: see above.
            unsafe { f(self.dev, offset, bytes.as_ptr().cast(), bytes.len()) }
        })
    }

    fn stopped(&self) {
        if let Some(f) = self.ops.stopped {
            // SAFETY: see above.
            unsafe { f(self.dev) };
        }
    }

    fn destroy(&self) {
        if let Some(f) = self.ops.destroy {
            // SAFETY: see above.
            unsafe { f(self.dev) };
        }
    }
}

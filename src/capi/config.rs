//! `vu_server_config`: the data of a server, and how it becomes a builder.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;

use crate::config_space;
use crate::error::{Error, Result};
use crate::log::Level;
use crate::server::ServerBuilder;
use crate::sync::{Arc, AtomicBool, Ordering};

use super::error::c_string;
use super::structs::{Extensible, layout};

/// Log level, as in syslog(3): something is lost; a callback failed, a queue
/// was orphaned.
pub const VU_LOG_ERROR: c_int = 3;
/// Log level: the peer or the guest misbehaves; a refused message, a broken
/// ring.
pub const VU_LOG_WARNING: c_int = 4;
/// Log level: connections come and go.
pub const VU_LOG_INFO: c_int = 6;
/// Log level: each message.
pub const VU_LOG_DEBUG: c_int = 7;

/// vu_server_config.on_broken_ring: stop that ring, the others go on.
pub const VU_BROKEN_RING_STOP: u32 = 0;
/// vu_server_config.on_broken_ring: end the connection.
pub const VU_BROKEN_RING_DISCONNECT: u32 = 1;

/// vu_server_config.flags: also run queues that the front-end has not enabled,
/// as a network device does; vu_vq_enabled() tells them apart.
pub const VU_SERVER_RUN_DISABLED_QUEUES: u64 = 1;
/// vu_server_config.flags: refuse guest memory whose file the front-end could
/// truncate (no F_SEAL_SHRINK). Without this, a front-end that truncates a
/// mapped file makes the next access to it a SIGBUS in this process, and so
/// does one that shares more huge pages than there are; such memory is refused,
/// too. (A front-end that punches holes into huge pages can still do that.)
pub const VU_SERVER_REQUIRE_SEALED_MEMORY: u64 = 2;

/// vu_server_config.flags: offer front-ends no record of what is in flight.
/// Without this, what was popped and not completed when this process died is
/// popped a second time by the next one, if the front-end keeps that record
/// (vhost-user specification, "Inflight I/O tracking"). For a device whose
/// requests must never be done twice.
pub const VU_SERVER_NO_INFLIGHT_AREA: u64 = 4;
/// vu_server_config.flags: the device calls vu_elem_suspend() for what is in
/// flight when a front-end that can take it over stops a ring
/// (VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT is offered).
pub const VU_SERVER_SUSPENDS: u64 = 8;
/// vu_server_config.flags: offer in-band notifications, that is, messages in the
/// place of kick, call and err descriptors that the front-end does not give, as
/// simulations want it. Some front-ends (QEMU for one) accept every feature that
/// is offered and then do not know these messages.
pub const VU_SERVER_INBAND_NOTIFICATIONS: u64 = 16;

const _: () = {
    assert!(Level::Error as c_int == VU_LOG_ERROR);
    assert!(Level::Warning as c_int == VU_LOG_WARNING);
    assert!(Level::Info as c_int == VU_LOG_INFO);
    assert!(Level::Debug as c_int == VU_LOG_DEBUG);
    assert!(VU_BROKEN_RING_STOP == 0);
};

const FLAGS: u64 = VU_SERVER_RUN_DISABLED_QUEUES
    | VU_SERVER_REQUIRE_SEALED_MEMORY
    | VU_SERVER_NO_INFLIGHT_AREA
    | VU_SERVER_SUSPENDS
    | VU_SERVER_INBAND_NOTIFICATIONS;

/// What a server is made from. All zero but struct_size and num_queues is a
/// fine configuration.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vu_server_config {
    /// sizeof(vu_server_config), see VU_SERVER_CONFIG_INIT.
    pub struct_size: usize,
    /// The internal thread is called "vu-<name>", cut to 15 bytes, and log
    /// lines are about it; UTF-8. NULL: "server".
    pub name: *const c_char,
    /// VU_SERVER_* flags; an unknown one is -EINVAL.
    pub flags: u64,
    /// Virtio feature bits of the device class to offer (0 to 23 and 50 to 63).
    /// The library adds those that it implements: VIRTIO_F_VERSION_1,
    /// VIRTIO_F_RING_PACKED (not without VIRTIO_F_VERSION_1),
    /// VIRTIO_F_ACCESS_PLATFORM, VIRTIO_RING_F_INDIRECT_DESC,
    /// VIRTIO_RING_F_EVENT_IDX.
    pub features: u64,
    /// Features of the library's that shall not be offered.
    pub features_masked: u64,
    /// Virtqueues: 1 to 1024.
    pub num_queues: u32,
    /// The largest ring accepted: a power of two, 32768 at most; 0: 32768.
    /// Packed rings can have any size up to that, split ones any power of two.
    pub max_queue_size: u32,
    /// The configuration space at the start, copied; later it is changed with
    /// vu_server_set_config().
    pub config_space: *const c_void,
    /// Its bytes: 0 to 256.
    pub config_size: u32,
    /// config_size bytes, copied: the driver may write the bytes of the config
    /// space that are not zero in here. NULL: none.
    pub config_writable: *const c_void,
    /// Bytes of vu_elem.priv; 0: none.
    pub elem_priv_size: u32,
    /// How many elements vu_vq_stage() gathers before they are published: 1 to
    /// 256; 0: 32.
    pub stage_max: u32,
    /// How long stop and disconnect wait for elements in flight before they cut
    /// their queues off, in milliseconds; 0: 10000, UINT32_MAX: for ever.
    pub drain_timeout_ms: u32,
    /// One of VU_BROKEN_RING_*.
    pub on_broken_ring: u32,
    /// Log lines up to this level are delivered: VU_LOG_*, or any other level
    /// of syslog(3); 0: none.
    pub log_level: u32,
    /// Gets log lines: NUL-terminated UTF-8 without a newline, valid during the
    /// call. From any thread that runs code of the library's; must not call
    /// the library. NULL: silent. Of VU_LOG_WARNING and VU_LOG_INFO, which a
    /// peer can cause without end, 20 lines come in 5 s at most; the next one
    /// says how many were left out.
    pub log:
        Option<unsafe extern "C" fn(log_opaque: *mut c_void, level: c_int, message: *const c_char)>,
    /// Passed to `log`.
    pub log_opaque: *mut c_void,
    /// Called when the server becomes quiesced, has nothing in flight any more
    /// or is stopped: something that a loop may wait for has changed. From any
    /// thread, at any time; may only wake that loop. NULL: none.
    pub wake: Option<unsafe extern "C" fn(wake_opaque: *mut c_void)>,
    /// Passed to `wake`.
    pub wake_opaque: *mut c_void,
    /// How long a request to the front-end (vu_server_object_add() and its kin)
    /// waits for its answer, in milliseconds; 0: 5000, UINT32_MAX: for ever.
    pub reply_timeout_ms: u32,
    /// Shared memory regions of the device (virtio 1.3, 2.10): 0 to 256. Without
    /// any the protocol feature SHMEM is not offered.
    pub num_shmem_regions: u32,
    /// Their sizes by their shared memory ID, copied: each a multiple of 4096, 0
    /// for one that there is not. vu_server_shmem_map() fills them.
    pub shmem_sizes: *const u64,
    /// Requests of the front-end, by number, that vu_device_ops.message sees
    /// before the library, copied.
    pub message_requests: *const u32,
    /// How many: 0 to 256.
    pub num_message_requests: u32,
}

layout!(vu_server_config, 160, {
    struct_size: 0,
    name: 8,
    flags: 16,
    features: 24,
    features_masked: 32,
    num_queues: 40,
    max_queue_size: 44,
    config_space: 48,
    config_size: 56,
    config_writable: 64,
    elem_priv_size: 72,
    stage_max: 76,
    drain_timeout_ms: 80,
    on_broken_ring: 84,
    log_level: 88,
    log: 96,
    log_opaque: 104,
    wake: 112,
    wake_opaque: 120,
    reply_timeout_ms: 128,
    num_shmem_regions: 132,
    shmem_sizes: 136,
    message_requests: 144,
    num_message_requests: 152,
});

// SAFETY: repr(C), begins with its size, NULL is allowed for pointers and functions.
unsafe impl Extensible for vu_server_config {
    const NAME: &'static str = "config";
}

/// The application's pointers that its functions get back.
struct Opaque(*mut c_void);
// SAFETY: only passed on; the header says that the functions are called on any thread.
unsafe impl Send for Opaque {}
// SAFETY: as above.
unsafe impl Sync for Opaque {}

impl Opaque {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

impl vu_server_config {
    /// Checks what only exists in C; the builder checks the rest. Once `silent` is set, `log` is not called
    /// any more.
    ///
    /// # Safety
    /// The pointers are what the header says.
    pub(super) unsafe fn builder(&self, silent: &Arc<AtomicBool>) -> Result<ServerBuilder> {
        self.check()?;
        // SAFETY: the caller's promise.
        let (name, shmem, requests, space, writable) = unsafe {
            (
                self.name()?,
                list("shmem_sizes", self.shmem_sizes, self.num_shmem_regions)?,
                list(
                    "message_requests",
                    self.message_requests,
                    self.num_message_requests,
                )?,
                bytes("config_space", self.config_space, self.config_size)?,
                match self.config_writable.is_null() {
                    true => Vec::new(),
                    false => bytes("config_writable", self.config_writable, self.config_size)?,
                },
            )
        };
        let mut builder = ServerBuilder::default()
            .features(self.features)
            .mask_features(self.features_masked)
            .queues(self.num_queues)
            .max_queue_size(self.max_queue_size)
            .config_space(space, writable)
            .elem_priv_size(self.elem_priv_size)
            .stage_max(self.stage_max)
            .run_disabled_queues(self.flags & VU_SERVER_RUN_DISABLED_QUEUES != 0)
            .require_sealed_memory(self.flags & VU_SERVER_REQUIRE_SEALED_MEMORY != 0)
            .inflight_area(self.flags & VU_SERVER_NO_INFLIGHT_AREA == 0)
            .suspends(self.flags & VU_SERVER_SUSPENDS != 0)
            .in_band_notifications(self.flags & VU_SERVER_INBAND_NOTIFICATIONS != 0)
            .shmem_regions(shmem)
            .intercept(requests)
            .disconnect_on_broken_ring(self.on_broken_ring == VU_BROKEN_RING_DISCONNECT);
        if let Some(name) = name {
            builder = builder.name(name);
        }
        match self.drain_timeout_ms {
            0 => {}
            u32::MAX => builder = builder.drain_timeout(None),
            ms => builder = builder.drain_timeout(Some(Duration::from_millis(ms.into()))),
        }
        match self.reply_timeout_ms {
            0 => {}
            u32::MAX => builder = builder.reply_timeout(None),
            ms => builder = builder.reply_timeout(Some(Duration::from_millis(ms.into()))),
        }
        Ok(self.with_functions(builder, silent))
    }

    fn check(&self) -> Result<()> {
        let unknown = self.flags & !FLAGS;
        if unknown != 0 {
            return Err(Error::invalid(format!("flags {unknown:#x}: unknown")));
        }
        if self.on_broken_ring > VU_BROKEN_RING_DISCONNECT {
            return Err(Error::invalid(format!(
                "on_broken_ring {}: not one of VU_BROKEN_RING_*",
                self.on_broken_ring
            )));
        }
        if self.log_level > VU_LOG_DEBUG as u32 {
            return Err(Error::invalid(format!(
                "log_level {}: more than VU_LOG_DEBUG",
                self.log_level
            )));
        }
        Ok(())
    }

    /// # Safety
    /// `name` is NULL or a string.
    unsafe fn name(&self) -> Result<Option<&str>> {
        if self.name.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(self.name) };
        name.to_str()
            .map(Some)
            .map_err(|_| Error::invalid("name: not UTF-8"))
    }

    fn with_functions(
        &self,
        mut builder: ServerBuilder,
        silent: &Arc<AtomicBool>,
    ) -> ServerBuilder {
        if let (Some(log), Some(level)) = (self.log, level(self.log_level)) {
            let opaque = Opaque(self.log_opaque);
            let silent = silent.clone();
            builder = builder.log(level, move |level, message| {
                // Acquire pairs with the Release in `vu_server_free`.
                if !silent.load(Ordering::Acquire) {
                    // SAFETY: the application's function with its own data.
                    unsafe { log(opaque.get(), level as c_int, c_string(message).as_ptr()) };
                }
            });
        }
        if let Some(wake) = self.wake {
            let opaque = Opaque(self.wake_opaque);
            // SAFETY: the application's function with its own data.
            builder = builder.wake(move || unsafe { wake(opaque.get()) });
        }
        builder
    }
}

/// The library's level that a syslog level lets through.
fn level(level: u32) -> Option<Level> {
    match level {
        0..=2 => None,
        3 => Some(Level::Error),
        4..=5 => Some(Level::Warning),
        6 => Some(Level::Info),
        _ => Some(Level::Debug),
    }
}

/// The most entries of a list.
const MAX_LIST: u32 = 256;

/// # Safety
/// `from` is NULL or `count` entries long.
unsafe fn list<T: Copy>(name: &str, from: *const T, count: u32) -> Result<Vec<T>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if from.is_null() || count > MAX_LIST {
        return Err(Error::invalid(format!(
            "{name}: {count} entries at {from:p}, at most {MAX_LIST}"
        )));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(from, count as usize) }.to_vec())
}

/// # Safety
/// `from` is NULL or `size` bytes long.
unsafe fn bytes(name: &str, from: *const c_void, size: u32) -> Result<Vec<u8>> {
    if size as usize > config_space::MAX_SIZE {
        return Err(Error::invalid(format!(
            "config_size {size}: more than {}",
            config_space::MAX_SIZE
        )));
    }
    if size == 0 {
        return Ok(Vec::new());
    }
    if from.is_null() {
        return Err(Error::invalid(format!(
            "{name}: NULL, with config_size {size}"
        )));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size as usize) }.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_between_those_of_the_library_let_less_through() {
        assert_eq!(level(0), None);
        assert_eq!(level(2), None);
        assert_eq!(level(5), Some(Level::Warning));
    }
}

//! What a server is made of.

use std::time::Duration;

use crate::config_space::ConfigSpace;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::log::{Level, LogFn, Logger};
use crate::protocol::messages::MAX_SHMEM_REGIONS;
use crate::shared::{Config, Doorbell, Shared};
use crate::virtqueue::MAX_STAGE;

use super::Server;
use crate::features;

/// The most queues a device can have.
pub(crate) const MAX_QUEUES: u32 = 1024;
/// The largest ring of the virtio specification (2.7).
pub(crate) const MAX_QUEUE_SIZE: u32 = 32768;
/// More at once would only make the driver wait.
const DEFAULT_STAGE: u32 = 32;
/// What every host can map.
const PAGE: u64 = 4096;
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);
const DEFAULT_REPLY: Duration = Duration::from_secs(5);

/// Collects the data of a [`Server`]; everything has a default but the device.
pub struct ServerBuilder {
    name: String,
    features: u64,
    masked: u64,
    queues: u32,
    max_queue_size: u32,
    config_space: Vec<u8>,
    config_writable: Vec<u8>,
    elem_priv_size: u32,
    stage_max: u32,
    drain_timeout: Option<Duration>,
    disconnect_on_broken_ring: bool,
    run_disabled_queues: bool,
    require_sealed_memory: bool,
    inflight_area: bool,
    suspends: bool,
    in_band_notifications: bool,
    intercepted: Vec<u32>,
    reply_timeout: Option<Duration>,
    shmem_regions: Vec<u64>,
    log_level: Option<Level>,
    log: Option<LogFn>,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        ServerBuilder {
            name: "server".into(),
            features: 0,
            masked: 0,
            queues: 1,
            max_queue_size: 0,
            config_space: Vec::new(),
            config_writable: Vec::new(),
            elem_priv_size: 0,
            stage_max: 0,
            drain_timeout: Some(DEFAULT_DRAIN),
            disconnect_on_broken_ring: false,
            run_disabled_queues: false,
            require_sealed_memory: false,
            inflight_area: true,
            suspends: false,
            in_band_notifications: false,
            intercepted: Vec::new(),
            reply_timeout: Some(DEFAULT_REPLY),
            shmem_regions: Vec::new(),
            log_level: None,
            log: None,
            wake: None,
        }
    }
}

impl ServerBuilder {
    /// The internal thread is called `vu-<name>`, cut to the system's 15 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Feature bits of the device class (virtio 1.3, 2.2: bits 0 to 23 and 50 to 127). The library adds
    /// those that it implements itself.
    pub fn features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    /// Features of the library's that shall not be offered; packed rings (VIRTIO_F_RING_PACKED) are not without
    /// VIRTIO_F_VERSION_1.
    pub fn mask_features(mut self, features: u64) -> Self {
        self.masked = features;
        self
    }

    /// How many virtqueues, 1 to 1024.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// The largest ring accepted: a power of two up to 32768; 0 means that. Packed rings can have any size up to it, split
    /// ones any power of two.
    pub fn max_queue_size(mut self, size: u32) -> Self {
        self.max_queue_size = size;
        self
    }

    /// The device's configuration space, up to 256 bytes, and a mask that is non-zero where the driver may
    /// write (what it leaves out is read-only).
    pub fn config_space(mut self, bytes: impl Into<Vec<u8>>, writable: impl Into<Vec<u8>>) -> Self {
        self.config_space = bytes.into();
        self.config_writable = writable.into();
        self
    }

    pub(crate) fn elem_priv_size(mut self, size: u32) -> Self {
        self.elem_priv_size = size;
        self
    }

    /// How many completions are staged before they are published, 1 to 256; 0 means 32.
    pub fn stage_max(mut self, elements: u32) -> Self {
        self.stage_max = elements;
        self
    }

    /// How long stop and disconnect wait for requests in flight; `None`: for ever. 10 s by default.
    pub fn drain_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// A broken ring ends the connection instead of just that ring.
    pub fn disconnect_on_broken_ring(mut self, yes: bool) -> Self {
        self.disconnect_on_broken_ring = yes;
        self
    }

    /// The device runs queues that the front-end has not enabled, as a network device does.
    pub fn run_disabled_queues(mut self, yes: bool) -> Self {
        self.run_disabled_queues = yes;
        self
    }

    /// Refuse guest memory whose file the front-end could truncate (no `F_SEAL_SHRINK`). Without this, a
    /// front-end that truncates a mapped file makes the next access to it a SIGBUS in this process, and so does one
    /// that shares more huge pages than there are; such memory is refused, too. (A front-end that punches holes into
    /// huge pages can still do that.)
    pub fn require_sealed_memory(mut self, yes: bool) -> Self {
        self.require_sealed_memory = yes;
        self
    }

    /// Whether a front-end may keep a record of what is in flight, with which it starts the rings again after this process
    /// has died: what was popped and not completed is then popped a second time (vhost-user specification, "Inflight I/O
    /// tracking"). Offered by default; not for a device whose requests must never be done twice.
    pub fn inflight_area(mut self, yes: bool) -> Self {
        self.inflight_area = yes;
        self
    }

    /// The device calls [`Element::suspend`](crate::Element::suspend) for requests in flight when a front-end that can take
    /// them over stops a ring (GET_VRING_BASE_INFLIGHT is offered).
    pub fn suspends(mut self, yes: bool) -> Self {
        self.suspends = yes;
        self
    }

    /// Offer INBAND_NOTIFICATIONS: kicks, calls and errors of rings without descriptors travel as messages, as
    /// simulations want it. Not offered by default, because some front-ends (QEMU for one) accept every feature
    /// that is offered and then do not know these messages.
    pub fn in_band_notifications(mut self, yes: bool) -> Self {
        self.in_band_notifications = yes;
        self
    }

    /// Requests of the front-end, by number, that the device sees before the library
    /// ([`Device::message`]): numbers that the specification does not know, or known ones that the device
    /// answers itself. The library never waits for the device with any other.
    pub fn intercept(mut self, requests: impl Into<Vec<u32>>) -> Self {
        self.intercepted = requests.into();
        self
    }

    /// How long a request to the front-end ([`Server::object_add`] and its kin) waits for its answer; `None`:
    /// for ever. 5 s by default.
    pub fn reply_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.reply_timeout = timeout;
        self
    }

    /// The sizes of the device's shared memory regions (virtio 1.3, 2.10) by their ID, up to 256, each a
    /// multiple of 4096; 0 is a region that there is not. They are empty until
    /// [`Server::shmem_map`] fills them. The device class says what they are for; without any, the protocol
    /// feature SHMEM is not offered.
    pub fn shmem_regions(mut self, sizes: impl Into<Vec<u64>>) -> Self {
        self.shmem_regions = sizes.into();
        self
    }

    /// Where log lines up to `level` go. Silent by default. Of warnings and of infos, which a peer can cause
    /// without end, 20 come in 5 s at most; the next one says how many were left out.
    pub fn log(mut self, level: Level, sink: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        self.log_level = Some(level);
        self.log = Some(Box::new(sink));
        self
    }

    /// Called on any thread when the server becomes quiesced, idle or stopped; may only wake a loop.
    pub fn wake(mut self, wake: impl Fn() + Send + Sync + 'static) -> Self {
        self.wake = Some(Box::new(wake));
        self
    }

    /// Makes the server.
    ///
    /// # Errors
    /// `EINVAL` naming the field; `EMFILE`.
    pub fn build(self, device: impl Device) -> Result<Server> {
        self.build_boxed(Box::new(device))
            .map_err(|(error, _)| error)
    }

    /// On an error the device comes back, so that its owner can let it go in its own way.
    pub(crate) fn build_boxed(
        mut self,
        device: Box<dyn Device>,
    ) -> std::result::Result<Server, (Error, Box<dyn Device>)> {
        let config_space = match ConfigSpace::new(
            std::mem::take(&mut self.config_space),
            std::mem::take(&mut self.config_writable),
        ) {
            Ok(space) => space,
            Err(error) => return Err((error, device)),
        };
        let logger = Logger::new(self.log_level, self.log.take());
        match self
            .check()
            .and_then(|config| Ok((config, Doorbell::new()?)))
        {
            Ok((config, internal)) => {
                let shared = Shared::new(config, logger, config_space, device, internal);
                Ok(Server::from_shared(shared))
            }
            Err(error) => Err((error, device)),
        }
    }

    fn check(self) -> Result<Config> {
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(Error::invalid(format!(
                "num_queues {}: not in 1 to {MAX_QUEUES}",
                self.queues
            )));
        }
        let size = if self.max_queue_size == 0 {
            MAX_QUEUE_SIZE
        } else {
            self.max_queue_size
        };
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(Error::invalid(format!(
                "max_queue_size {size}: not a power of two up to {MAX_QUEUE_SIZE}"
            )));
        }
        let stage_max = if self.stage_max == 0 {
            DEFAULT_STAGE
        } else {
            self.stage_max
        };
        if stage_max as usize > MAX_STAGE {
            return Err(Error::invalid(format!(
                "stage_max {stage_max}: more than {MAX_STAGE}"
            )));
        }
        let reserved = self.features & features::RESERVED;
        if reserved != 0 {
            return Err(Error::invalid(format!(
                "features {reserved:#x}: not the device class's to offer"
            )));
        }
        let regions = &self.shmem_regions;
        if regions.len() > MAX_SHMEM_REGIONS {
            return Err(Error::invalid(format!(
                "shmem_regions: {} are more than {MAX_SHMEM_REGIONS}",
                regions.len()
            )));
        }
        if let Some(size) = regions.iter().find(|&size| size % PAGE != 0) {
            return Err(Error::invalid(format!(
                "shmem_regions: size {size:#x} is not a multiple of {PAGE}"
            )));
        }
        if self.name.contains('\0') {
            return Err(Error::invalid("name: has a NUL byte"));
        }
        let mut masked = self.masked;
        if masked & features::VERSION_1 != 0 {
            // There is no legacy packed ring.
            masked |= features::RING_PACKED;
        }
        Ok(Config {
            name: self.name,
            features: self.features | features::LIBRARY & !masked,
            num_queues: self.queues,
            max_queue_size: size as u16,
            elem_priv_size: self.elem_priv_size,
            stage_max: stage_max as usize,
            drain_timeout: self.drain_timeout,
            disconnect_on_broken_ring: self.disconnect_on_broken_ring,
            run_disabled_queues: self.run_disabled_queues,
            require_sealed_memory: self.require_sealed_memory,
            inflight_area: self.inflight_area,
            suspends: self.suspends,
            in_band_notifications: self.in_band_notifications,
            intercepted: self.intercepted,
            reply_timeout: self.reply_timeout,
            shmem_regions: self.shmem_regions,
            wake: self.wake,
        })
    }
}

impl std::fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Kick;
    use crate::virtqueue::Virtqueue;

    struct Null;
    impl Device for Null {
        fn kick(&self, _: &mut Virtqueue<'_>) -> Kick {
            Kick::Done
        }
    }

    fn refused(builder: ServerBuilder, field: &str) {
        let error = builder.build(Null).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.message().contains(field), "{error}");
    }

    #[test]
    fn every_field_is_checked_by_name() {
        let new = ServerBuilder::default;
        refused(new().queues(0), "num_queues 0");
        refused(new().queues(1025), "num_queues 1025");
        refused(new().max_queue_size(3), "max_queue_size 3");
        refused(new().max_queue_size(65536), "max_queue_size 65536");
        refused(new().stage_max(257), "stage_max 257");
        refused(new().features(1 << 30), "features 0x40000000");
        refused(new().name("a\0b"), "name");
        refused(new().config_space(vec![0; 257], []), "config_size 257");
        refused(new().shmem_regions(vec![0; 257]), "257");
        refused(new().shmem_regions([4096, 100]), "0x64");
        refused(new().config_space([0], [1, 1]), "config_writable");
        assert!(new().queues(1024).build(Null).is_ok());
    }
}

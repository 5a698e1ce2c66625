//! A front-end with memory and queues, negotiated and running in one call.
//! Failures panic and name the request: a test that gets no session is over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::backend_channel::BackendChannel;
use super::driver::SplitDriver;
use super::error::{Error, Result};
use super::frontend::{Frontend, TIMEOUT};
use super::inflight::Inflight;
use super::memory::{GuestMemory, Region, RegionSpec};
use super::packed_driver::PackedDriver;
use super::postcopy::Pages;
use super::queue::Driver;
use super::wire::{feature, protocol_feature, req};
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

/// Device status of a running device, virtio's ACKNOWLEDGE, DRIVER,
/// FEATURES_OK and DRIVER_OK.
pub const STATUS_RUNNING: u64 = 1 | 2 | 8 | 4;

/// SET_MEM_TABLE holds no more.
const MEM_TABLE_REGIONS: usize = 8;

#[derive(Clone, Debug)]
pub struct SessionBuilder<D = SplitDriver> {
    queues: u16,
    queue_size: u16,
    features: u64,
    protocol_features: u64,
    regions: Vec<RegionSpec>,
    mem_slots: bool,
    inflight: bool,
    start: bool,
    kick_fd: bool,
    call_fd: bool,
    postcopy: bool,
    timeout: Duration,
    driver: PhantomData<D>,
}

impl Default for SessionBuilder {
    fn default() -> Self {
        SessionBuilder {
            queues: 1,
            queue_size: 256,
            features: feature::PROTOCOL_FEATURES
                | feature::VERSION_1
                | feature::EVENT_IDX
                | feature::INDIRECT_DESC,
            protocol_features: protocol_feature::MQ
                | protocol_feature::LOG_SHMFD
                | protocol_feature::REPLY_ACK
                | protocol_feature::BACKEND_REQ
                | protocol_feature::CONFIG
                | protocol_feature::RESET_DEVICE
                | protocol_feature::CONFIGURE_MEM_SLOTS
                | protocol_feature::STATUS,
            regions: vec![RegionSpec::new(0, 64 << 20)],
            mem_slots: false,
            inflight: false,
            start: true,
            kick_fd: true,
            call_fd: true,
            postcopy: false,
            timeout: TIMEOUT,
            driver: PhantomData,
        }
    }
}

impl SessionBuilder {
    /// Packed rings instead of split ones, which the back-end must offer.
    pub fn packed(self) -> SessionBuilder<PackedDriver> {
        SessionBuilder {
            queues: self.queues,
            queue_size: self.queue_size,
            features: self.features | PackedDriver::FEATURES,
            protocol_features: self.protocol_features,
            regions: self.regions,
            mem_slots: self.mem_slots,
            inflight: self.inflight,
            start: self.start,
            kick_fd: self.kick_fd,
            call_fd: self.call_fd,
            postcopy: self.postcopy,
            timeout: self.timeout,
            driver: PhantomData,
        }
    }
}

impl<D: Driver> SessionBuilder<D> {
    pub fn queues(mut self, count: u16) -> Self {
        self.queues = count;
        self
    }

    pub fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// Takes these features too, if they are offered.
    pub fn features(mut self, mask: u64) -> Self {
        self.features |= mask;
        self
    }

    /// Does without these features even if they are offered.
    pub fn without_features(mut self, mask: u64) -> Self {
        self.features &= !mask;
        self
    }

    pub fn protocol_features(mut self, mask: u64) -> Self {
        self.protocol_features |= mask;
        self
    }

    pub fn without_protocol_features(mut self, mask: u64) -> Self {
        self.protocol_features &= !mask;
        self
    }

    pub fn regions(mut self, regions: &[RegionSpec]) -> Self {
        self.regions = regions.to_vec();
        self
    }

    /// Announces memory with ADD_MEM_REG; more than 8 regions imply it.
    pub fn mem_slots(mut self) -> Self {
        self.mem_slots = true;
        self
    }

    /// Keeps an in-flight area for the back-end, over reconnects too.
    pub fn inflight(mut self) -> Self {
        self.inflight = true;
        self.protocol_features(protocol_feature::INFLIGHT_SHMFD)
    }

    /// Negotiates and maps, and leaves the rings alone.
    pub fn not_started(mut self) -> Self {
        self.start = false;
        self
    }

    /// Sends SET_VRING_KICK with NOFD: the device has to poll.
    pub fn without_kick_fd(mut self) -> Self {
        self.kick_fd = false;
        self
    }

    /// Sends SET_VRING_CALL with NOFD: the driver polls.
    pub fn without_call_fd(mut self) -> Self {
        self.call_fd = false;
        self
    }

    /// Takes the guest over from another host in postcopy. The rings are not started: whoever is to see them full
    /// of what is still to come empties the memory first.
    pub fn postcopy(mut self) -> Self {
        self.postcopy = true;
        self.start = false;
        self.protocol_features |= protocol_feature::PAGEFAULT;
        self
    }

    /// The limit of every wait of the session's front-end.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    #[track_caller]
    pub fn connect(self, path: impl AsRef<Path>) -> Session<D> {
        let frontend = Frontend::connect_within(path, self.timeout).unwrap();
        self.over(frontend)
    }

    #[track_caller]
    pub fn over(self, frontend: Frontend) -> Session<D> {
        self.try_over(frontend).unwrap()
    }

    pub fn try_over(self, frontend: Frontend) -> Result<Session<D>> {
        let memory = GuestMemory::new(&self.regions)?;
        let mut session = Session {
            frontend: None,
            memory,
            queues: Vec::new(),
            features: 0,
            protocol_features: 0,
            backend: None,
            inflight: None,
            pages: None,
            addresses: Vec::new(),
            bases: vec![D::START; self.queues.into()],
            plan: self,
        };
        session.negotiate(frontend)?;
        let event_idx = session.features & feature::EVENT_IDX != 0;
        for _ in 0..session.plan.queues {
            let driver = D::new(&session.memory, session.plan.queue_size, event_idx)?;
            session.queues.push(driver);
        }
        if session.plan.start {
            session.try_start_all()?;
        }
        Ok(session)
    }
}

pub struct Session<D = SplitDriver> {
    /// `None` between a disconnect and the next connection.
    frontend: Option<Frontend>,
    pub memory: Arc<GuestMemory>,
    pub queues: Vec<D>,
    pub features: u64,
    pub protocol_features: u64,
    /// Our end of the back-end's channel, if BACKEND_REQ was negotiated.
    pub backend: Option<BackendChannel>,
    /// What the back-end keeps of its requests in flight.
    pub inflight: Option<Inflight>,
    /// The guest's pages while it arrives in postcopy.
    pub pages: Option<Pages>,
    /// Where the back-end has mapped each region then.
    pub addresses: Vec<u64>,
    /// By queue: where the ring goes on at its next start.
    pub bases: Vec<u32>,
    plan: SessionBuilder<D>,
}

impl Session {
    pub fn builder() -> SessionBuilder {
        SessionBuilder::default()
    }
}

impl<D: Driver> Session<D> {
    #[track_caller]
    pub fn fe(&self) -> &Frontend {
        self.frontend.as_ref().expect("session is disconnected")
    }

    #[track_caller]
    pub fn fe_mut(&mut self) -> &mut Frontend {
        self.frontend.as_mut().expect("session is disconnected")
    }

    pub fn is_connected(&self) -> bool {
        self.frontend.is_some()
    }

    pub fn has_protocol_feature(&self, mask: u64) -> bool {
        self.protocol_features & mask == mask
    }

    fn negotiate(&mut self, mut frontend: Frontend) -> Result<()> {
        frontend.timeout = self.plan.timeout;
        let offered = frontend.get_features()?;
        self.features = offered & self.plan.features;
        if self.features & D::FEATURES != D::FEATURES {
            return Err(Error::Broken(format!(
                "features {offered:#x} are offered, {:#x} are needed",
                D::FEATURES
            )));
        }
        self.protocol_features = 0;
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            let offered = frontend.get_protocol_features()?;
            self.protocol_features = offered & self.plan.protocol_features;
            frontend.set_protocol_features(self.protocol_features)?;
        }
        frontend.set_owner()?;
        frontend.set_features(self.features)?;
        self.backend = if self.has_protocol_feature(protocol_feature::BACKEND_REQ) {
            Some(frontend.set_backend_req_fd()?)
        } else {
            None
        };
        if self.plan.postcopy {
            self.announce_arriving_memory(&frontend)?;
        } else {
            self.announce_memory(&frontend)?;
        }
        if self.plan.inflight {
            if self.inflight.is_none() {
                let (queues, size) = (self.plan.queues, self.plan.queue_size);
                self.inflight = Some(frontend.get_inflight_fd_of(D::INFLIGHT, queues, size)?);
            }
            self.inflight
                .iter()
                .try_for_each(|area| frontend.set_inflight_fd(area))?;
        }
        self.frontend = Some(frontend);
        Ok(())
    }

    fn announce_arriving_memory(&mut self, frontend: &Frontend) -> Result<()> {
        self.pages = Some(Pages::serve(frontend.postcopy_advise()?));
        frontend.postcopy_listen()?;
        let regions = self.memory.regions();
        if self.plan.mem_slots {
            let offers = regions.iter().map(|region| frontend.offer_mem_reg(region));
            self.addresses = offers.collect::<Result<_>>()?;
            return frontend.end_update(req::ADD_MEM_REG);
        }
        let regions: Vec<&Region> = regions.iter().map(Arc::as_ref).collect();
        self.addresses = frontend.offer_mem_table(&regions)?;
        frontend.end_update(req::SET_MEM_TABLE)
    }

    /// What is in the guest's memory stays behind on the other host for now.
    #[track_caller]
    pub fn evacuate(&self) {
        for (region, base) in self.memory.regions().iter().zip(&self.addresses) {
            self.pages().evacuate(region, *base);
        }
    }

    #[track_caller]
    pub fn pages(&self) -> &Pages {
        self.pages
            .as_ref()
            .expect("a guest that arrives in postcopy")
    }

    fn announce_memory(&self, frontend: &Frontend) -> Result<()> {
        let regions = self.memory.regions();
        if self.plan.mem_slots || regions.len() > MEM_TABLE_REGIONS {
            return regions
                .iter()
                .try_for_each(|region| frontend.add_mem_reg(region));
        }
        let regions: Vec<&Region> = regions.iter().map(Arc::as_ref).collect();
        frontend.set_mem_table(&regions)
    }

    #[track_caller]
    pub fn start_queue(&mut self, index: usize) {
        self.try_start_queue(index)
            .unwrap_or_else(|error| panic!("starting queue {index}: {error}"));
    }

    pub fn try_start_queue(&mut self, index: usize) -> Result<()> {
        let number = index as u32;
        let queue = &self.queues[index];
        let addr = queue.vring_addr(number)?;
        let call = self.plan.call_fd.then(|| queue.call_fd().as_raw_fd());
        let kick = self.plan.kick_fd.then(|| queue.kick_fd().as_raw_fd());
        let frontend = self.fe();
        frontend.set_vring_num(number, queue.size().into())?;
        frontend.set_vring_base(number, self.bases[index])?;
        frontend.set_vring_addr(&addr)?;
        frontend.set_vring_err(number, Some(queue.err_fd().as_raw_fd()))?;
        frontend.set_vring_call(number, call)?;
        frontend.set_vring_kick(number, kick)?;
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            frontend.set_vring_enable(number, true)?;
        }
        Ok(())
    }

    fn try_start_all(&mut self) -> Result<()> {
        for index in 0..self.queues.len() {
            self.try_start_queue(index)?;
        }
        if self.has_protocol_feature(protocol_feature::STATUS) {
            self.fe().set_status(STATUS_RUNNING)?;
        }
        Ok(())
    }

    #[track_caller]
    pub fn start_all(&mut self) {
        self.try_start_all().unwrap();
    }

    /// GET_VRING_BASE; the ring goes on there when it is started again.
    #[track_caller]
    pub fn stop_queue(&mut self, index: usize) -> u32 {
        let base = self
            .fe()
            .get_vring_base(index as u32)
            .unwrap_or_else(|error| panic!("stopping queue {index}: {error}"));
        self.bases[index] = base;
        base
    }

    #[track_caller]
    pub fn stop_all(&mut self) {
        for index in 0..self.queues.len() {
            self.stop_queue(index);
        }
        if self.has_protocol_feature(protocol_feature::STATUS) {
            self.fe().set_status(0).unwrap();
        }
    }

    /// Stops the queues and closes, as a VMM does when its guest shuts down.
    #[track_caller]
    pub fn disconnect(&mut self) {
        self.stop_all();
        self.close();
    }

    /// Closes in the middle of everything. Memory, rings and what is in
    /// flight stay; the rings go on at their used index, all there is to know.
    #[track_caller]
    pub fn abort(&mut self) {
        self.close();
        for (base, queue) in self.bases.iter_mut().zip(&self.queues) {
            *base = queue.used_base().unwrap();
        }
    }

    /// Closes and looks at nothing.
    pub fn close(&mut self) {
        self.frontend = None;
        self.backend = None;
    }

    /// Connects again with the same memory and rings.
    #[track_caller]
    pub fn reconnect(&mut self, path: impl AsRef<Path>) {
        let frontend = Frontend::connect_within(path, self.plan.timeout).unwrap();
        self.reconnect_over(frontend);
    }

    #[track_caller]
    pub fn reconnect_over(&mut self, frontend: Frontend) {
        self.negotiate(frontend).unwrap();
        if self.plan.start {
            self.start_all();
        }
    }

    /// Clears the rings as a rebooted guest does. Only while they are stopped.
    #[track_caller]
    pub fn reset_rings(&mut self) {
        for (base, queue) in self.bases.iter_mut().zip(&mut self.queues) {
            queue.restart().unwrap();
            *base = D::START;
        }
    }

    /// GET_VRING_BASE, a ring as a rebooted guest leaves it, and a new start.
    #[track_caller]
    pub fn restart_queue(&mut self, index: usize) {
        self.stop_queue(index);
        self.queues[index].restart().unwrap();
        self.bases[index] = D::START;
        self.start_queue(index);
    }

    /// Plugs memory in: our mapping first, then ADD_MEM_REG.
    #[track_caller]
    pub fn add_region(&self, spec: RegionSpec) -> Arc<Region> {
        let region = self.memory.add(spec).unwrap();
        self.fe().add_mem_reg(&region).unwrap();
        region
    }

    /// Unplugs memory: REM_MEM_REG first, then our mapping.
    #[track_caller]
    pub fn remove_region(&self, gpa: u64) -> Arc<Region> {
        let region = self.memory.region_at(gpa, 1).unwrap();
        self.fe().rem_mem_reg(&region).unwrap();
        self.memory.remove(gpa).unwrap()
    }
}

//! One connected front-end, on the internal thread: read a message, dispatch it, reply; then clean up.
//!
//! * [`ask`] questions that the device must answer
//! * [`intercept`] messages that the device sees first
//! * [`dispatch`] the table of handlers, refusals and replies
//! * [`features`], [`memory`], [`vrings`], [`config`], [`backend_channel`], [`in_band`], [`postcopy`],
//!   [`device_state`] handlers by topic
//! * [`housekeeping`] what every wait does; [`wait`] waiting for queues, interruptible by stop and hang-up
//! * [`teardown`] the end of a connection

mod ask;
mod backend_channel;
mod config;
mod device_state;
mod dirty_log;
mod dispatch;
mod features;
mod housekeeping;
mod in_band;
mod inflight;
mod intercept;
mod iotlb;
mod memory;
mod postcopy;
mod reset;
mod ring_areas;
mod teardown;
mod transfer;
mod vring;
mod vrings;
mod wait;

use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::memory::{DirtyLog, Iotlb as Translations};
use crate::protocol::features::ProtocolFeatures;
use crate::shared::Shared;
use crate::stats::count;
use crate::stream::Event;
use crate::sync::Arc;
use crate::transport::{Expect, Message, Transport, TransportError};

pub use dispatch::is_served;

use backend_channel::BackendChannel;
use device_state::DeviceState;
use inflight::InflightArea;
use postcopy::Postcopy;
use vring::Vring;

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The server is being stopped.
    Stop,
    /// The peer closed the connection between two messages.
    Closed,
    /// The peer went away or broke the protocol.
    Failed(Error),
}

impl From<TransportError> for End {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Closed => End::Closed,
            other => End::Failed(Error::new(other.errno(), other.to_string())),
        }
    }
}

pub(crate) struct Session {
    shared: Arc<Shared>,
    transport: Transport,
    vrings: Vec<Vring>,
    /// Acknowledged by the driver and the front-end.
    features: u64,
    /// SET_FEATURES came since the connection began or the device was reset.
    features_set: bool,
    protocol_features: ProtocolFeatures,
    backend: Option<BackendChannel>,
    /// What SET_LOG_BASE brought; in use while the driver's features say so.
    log: Option<Arc<DirtyLog>>,
    /// What SET_INFLIGHT_FD brought.
    inflight: Option<InflightArea>,
    /// Translations, if the driver's addresses go through an IOMMU.
    iotlb: Option<Arc<Translations>>,
    /// The device status that the front-end set; 0 after a reset.
    status: u8,
    /// A ring was started since the front-end last said SET_OWNER.
    used_since_owner: bool,
    /// Owners may still pin an older table than the current one.
    pins_pending: bool,
    /// A lock that may be held through a page fault was busy: look again soon.
    look_again_soon: bool,
    postcopy: Postcopy,
    device_state: DeviceState,
}

/// Serves one front-end from its first to its last message.
pub(crate) fn serve(shared: &Arc<Shared>, connection: OwnedFd) {
    let mut session = Session {
        shared: shared.clone(),
        transport: Transport::new(connection, Expect::Requests),
        vrings: (0..shared.config.num_queues)
            .map(|_| Vring::default())
            .collect(),
        features: 0,
        features_set: false,
        protocol_features: ProtocolFeatures::empty(),
        backend: None,
        log: None,
        inflight: None,
        iotlb: None,
        status: 0,
        used_since_owner: false,
        pins_pending: false,
        look_again_soon: false,
        postcopy: Postcopy::new(),
        device_state: DeviceState::NoTransfer,
    };
    shared.logger.info(format_args!("front-end connected"));
    shared.gate.reopen();
    shared.stream.push(Event::Connected);
    let end = session.run();
    session.tear_down(end);
}

impl Session {
    /// Until the connection ends.
    fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.step() {
                return end;
            }
        }
    }

    fn step(&mut self) -> Result<(), End> {
        self.keep_house()?;
        match self.transport.receive()? {
            Some(message) => self.handle(message),
            None => {
                self.wait_for_message();
                Ok(())
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<(), End> {
        self.shared.counters.message(message.header.request);
        if let Some(reply) = self.dispatch(message)? {
            self.transport.enqueue(reply);
            self.send_all()?;
        }
        Ok(())
    }

    fn count_protocol_error(&self) {
        count(&self.shared.counters.protocol_errors);
    }
}

//! Features, owner and status.

use crate::device::Capabilities;
use crate::features::{ACCESS_PLATFORM, RING_PACKED, VERSION_1};
use crate::protocol::features::{F_LOG_ALL, F_PROTOCOL_FEATURES, ProtocolFeatures};
use crate::protocol::messages::{decode_status, decode_u64};
use crate::stream::Event;
use crate::transport::Message;

use super::Session;
use super::dispatch::{Answer, Fault, Handled};

impl Session {
    pub(super) fn offered_features(&self) -> u64 {
        self.shared.config.features | F_PROTOCOL_FEATURES | F_LOG_ALL
    }

    pub(super) fn offered_protocol_features(&self) -> ProtocolFeatures {
        let mut offered = ProtocolFeatures::MQ
            | ProtocolFeatures::LOG_SHMFD
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::BACKEND_REQ
            | ProtocolFeatures::CROSS_ENDIAN
            | ProtocolFeatures::BACKEND_SEND_FD
            | ProtocolFeatures::HOST_NOTIFIER
            | ProtocolFeatures::RESET_DEVICE
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS
            | ProtocolFeatures::GPA_ADDRESSES;
        // QEMU resets a device that has a status when the guest stops, before it asks for the state.
        offered |= if self.shared.capabilities.contains(Capabilities::STATE) {
            ProtocolFeatures::DEVICE_STATE
        } else {
            ProtocolFeatures::STATUS
        };
        for (capability, feature) in [
            (Capabilities::RARP, ProtocolFeatures::RARP),
            (Capabilities::MTU, ProtocolFeatures::MTU),
            (Capabilities::CRYPTO, ProtocolFeatures::CRYPTO_SESSION),
            (Capabilities::SHARED_OBJECT, ProtocolFeatures::SHARED_OBJECT),
        ] {
            if self.shared.capabilities.contains(capability) {
                offered |= feature;
            }
        }
        let config = &self.shared.config;
        if config.inflight_area {
            offered |= ProtocolFeatures::INFLIGHT_SHMFD;
            if config.suspends {
                offered |= ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
            }
        }
        if config.shmem_regions.iter().any(|&size| size != 0) {
            offered |= ProtocolFeatures::SHMEM;
        }
        if config.in_band_notifications {
            offered |= ProtocolFeatures::INBAND_NOTIFICATIONS;
        }
        if !self.shared.config_space.lock().is_empty() {
            offered |= ProtocolFeatures::CONFIG;
        }
        if self.postcopy.is_possible() {
            offered |= ProtocolFeatures::PAGEFAULT;
        }
        offered
    }

    pub(super) fn get_features(&mut self, _: &mut Message) -> Handled {
        Ok(Answer::u64(self.offered_features()))
    }

    pub(super) fn set_features(&mut self, message: &mut Message) -> Handled {
        let features = decode_u64(&message.body)?;
        let unoffered = features & !self.offered_features();
        if unoffered != 0 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("features {features:#x}: {unoffered:#x} not offered"),
            ));
        }
        if features & RING_PACKED != 0 && features & VERSION_1 == 0 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("features {features:#x}: RING_PACKED without VERSION_1"),
            ));
        }
        let changed = features ^ self.features;
        if changed & !F_LOG_ALL != 0 && self.any_started() {
            return Err(Fault::refuse(
                libc::EBUSY,
                format!("features {features:#x}: {changed:#x} change while a ring is started"),
            ));
        }
        if changed & F_LOG_ALL != 0 {
            self.refuse_in_postcopy("dirty log")?;
        }
        self.features = features;
        self.switch_iotlb(features & ACCESS_PLATFORM != 0)?;
        self.shared.set_acked_features(features);
        if features & F_PROTOCOL_FEATURES == 0 {
            // Without it there is no SET_VRING_ENABLE: rings start enabled.
            for queue in self.shared.queues() {
                queue.set_enabled(true);
            }
        }
        let first = !std::mem::replace(&mut self.features_set, true);
        if first || changed & !F_LOG_ALL != 0 {
            self.push_features();
        }
        if changed & F_LOG_ALL != 0 && self.log.is_some() {
            self.change_logging()?;
        }
        Ok(Answer::Done)
    }

    fn push_features(&self) {
        self.shared.stream.push(Event::FeaturesAcked {
            features: self.features,
            protocol_features: self.protocol_features.bits(),
        });
    }

    pub(super) fn get_protocol_features(&mut self, _: &mut Message) -> Handled {
        Ok(Answer::u64(self.offered_protocol_features().bits()))
    }

    pub(super) fn set_protocol_features(&mut self, message: &mut Message) -> Handled {
        let bits = decode_u64(&message.body)?;
        let unoffered = bits & !self.offered_protocol_features().bits();
        if unoffered != 0 {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!("protocol features {bits:#x}: {unoffered:#x} not offered"),
            ));
        }
        let acked = ProtocolFeatures::from_bits_truncate(bits);
        let suspends = acked.contains(ProtocolFeatures::GET_VRING_BASE_INFLIGHT);
        if suspends && !acked.contains(ProtocolFeatures::INFLIGHT_SHMFD) {
            return Err(Fault::refuse(
                libc::EINVAL,
                format!(
                    "protocol features {bits:#x}: GET_VRING_BASE_INFLIGHT without INFLIGHT_SHMFD"
                ),
            ));
        }
        Self::check_in_band(acked)?;
        self.check_address_change(acked)?;
        self.shared.set_suspends_inflight(suspends);
        let changed = acked != self.protocol_features;
        self.protocol_features = acked;
        self.refresh_channel();
        self.switch_in_band();
        if changed && self.features_set {
            self.push_features();
        }
        Ok(Answer::Done)
    }

    /// Regions are known by the addresses that they were announced with.
    fn check_address_change(&self, acked: ProtocolFeatures) -> Result<(), Fault> {
        let changed = acked.symmetric_difference(self.protocol_features);
        let gpa = ProtocolFeatures::GPA_ADDRESSES;
        if changed.contains(gpa) && !self.shared.table.current().is_empty() {
            return Err(Fault::refuse(
                libc::EBUSY,
                format!(
                    "protocol features {:#x}: {gpa:?} changed while there is memory",
                    acked.bits()
                ),
            ));
        }
        Ok(())
    }

    /// A front-end may say this again on the same connection: QEMU does when it unplugs the device and plugs
    /// one in with the same character device. It then sends its memory anew without having removed it, so
    /// what a used and stopped device has left is dropped here.
    pub(super) fn set_owner(&mut self, _: &mut Message) -> Handled {
        if self.used_since_owner && !self.any_started() {
            self.forget_memory()?;
            self.used_since_owner = false;
        }
        Ok(Answer::Done)
    }

    pub(super) fn get_queue_num(&mut self, _: &mut Message) -> Handled {
        Ok(Answer::u64(u64::from(self.shared.config.num_queues)))
    }

    pub(super) fn set_status(&mut self, message: &mut Message) -> Handled {
        let status = decode_status(&message.body)?;
        if status == 0 && (self.status != 0 || self.any_started()) {
            self.reset_rings()?;
        }
        self.status = status;
        self.shared.stream.push(Event::StatusSet { status });
        Ok(Answer::Done)
    }

    pub(super) fn get_status(&mut self, _: &mut Message) -> Handled {
        Ok(Answer::u64(u64::from(self.status)))
    }
}

//! The table of front-end requests.

use super::checks::{BodySize, FdCount, POSTCOPY_MARKER_SIZE};
use super::{ErrorReply, RequestSpec, id};
use crate::protocol::features::ProtocolFeatures as Feature;
use crate::protocol::messages::{
    CONFIG_HEAD_SIZE, CRYPTO_SESSION_NEW, CRYPTO_SESSION_OLD, DeviceStateTransfer, Inflight, Iotlb,
    Log, MAX_CONFIG_SIZE, MAX_REGIONS, MemoryRegion, SingleRegion, TABLE_HEAD_SIZE, UUID_SIZE,
    VringAddr, VringState,
};
use crate::protocol::{MAX_BODY, MAX_FDS};

const EMPTY: BodySize = BodySize::Exact(0);
const U64: BodySize = BodySize::Exact(8);
const STATE: BodySize = BodySize::Exact(VringState::SIZE);
const INFLIGHT: BodySize = BodySize::Exact(Inflight::SIZE);
const CONFIG: BodySize = BodySize::Range(CONFIG_HEAD_SIZE, CONFIG_HEAD_SIZE + MAX_CONFIG_SIZE);
const REGION: BodySize = BodySize::Either(SingleRegion::SIZE, POSTCOPY_MARKER_SIZE);
const REGIONS: BodySize = BodySize::Table {
    head: TABLE_HEAD_SIZE,
    entry: MemoryRegion::SIZE,
    max: MAX_REGIONS,
};

/// The structure differs between versions of front-ends.
const CRYPTO_SESSION: BodySize = BodySize::Either(CRYPTO_SESSION_OLD, CRYPTO_SESSION_NEW);

/// A device-state error carries the invalid-descriptor flag, or the front-end
/// would look for a descriptor.
const DEVICE_STATE_ERROR: u64 = 1 << 8 | 1;

const fn row(id: u32, name: &'static str, body: BodySize, fds: FdCount) -> RequestSpec {
    RequestSpec {
        id,
        name,
        body,
        fds,
        needs: None,
        own_reply: false,
        error_reply: ErrorReply::Nothing,
    }
}

impl RequestSpec {
    const fn needs(mut self, feature: Feature) -> RequestSpec {
        self.needs = Some(feature);
        self
    }

    const fn replies(mut self, error: ErrorReply) -> RequestSpec {
        self.own_reply = true;
        self.error_reply = error;
        self
    }
}

use ErrorReply::{Empty, NegativeSession, Nothing, Status, Zeroed};

// The largest reply, the sizes of 256 shared memory regions, fits a message,
// and so do the descriptors of a full memory table.
const _: () = assert!(8 + 256 * 8 <= MAX_BODY && MAX_REGIONS <= MAX_FDS);

/// All front-end requests, in the order of their ids from 1.
#[rustfmt::skip]
pub static REQUESTS: [RequestSpec; 44] = [
    row(id::GET_FEATURES, "VHOST_USER_GET_FEATURES", EMPTY, FdCount::NONE)
        .replies(Nothing),
    row(id::SET_FEATURES, "VHOST_USER_SET_FEATURES", U64, FdCount::NONE),
    row(id::SET_OWNER, "VHOST_USER_SET_OWNER", EMPTY, FdCount::NONE),
    row(id::RESET_OWNER, "VHOST_USER_RESET_OWNER", EMPTY, FdCount::NONE),
    row(id::SET_MEM_TABLE, "VHOST_USER_SET_MEM_TABLE", REGIONS, FdCount::PerRegion),
    row(id::SET_LOG_BASE, "VHOST_USER_SET_LOG_BASE", BodySize::Exact(Log::SIZE), FdCount::ONE)
        .needs(Feature::LOG_SHMFD).replies(Nothing),
    row(id::SET_LOG_FD, "VHOST_USER_SET_LOG_FD", EMPTY, FdCount::ONE),
    row(id::SET_VRING_NUM, "VHOST_USER_SET_VRING_NUM", STATE, FdCount::NONE),
    row(id::SET_VRING_ADDR, "VHOST_USER_SET_VRING_ADDR",
        BodySize::Exact(VringAddr::SIZE), FdCount::NONE),
    row(id::SET_VRING_BASE, "VHOST_USER_SET_VRING_BASE", STATE, FdCount::NONE),
    row(id::GET_VRING_BASE, "VHOST_USER_GET_VRING_BASE", STATE, FdCount::NONE)
        .replies(Nothing),
    row(id::SET_VRING_KICK, "VHOST_USER_SET_VRING_KICK", U64, FdCount::UnlessNofd),
    row(id::SET_VRING_CALL, "VHOST_USER_SET_VRING_CALL", U64, FdCount::UnlessNofd),
    row(id::SET_VRING_ERR, "VHOST_USER_SET_VRING_ERR", U64, FdCount::UnlessNofd),
    row(id::GET_PROTOCOL_FEATURES, "VHOST_USER_GET_PROTOCOL_FEATURES", EMPTY, FdCount::NONE)
        .replies(Nothing),
    row(id::SET_PROTOCOL_FEATURES, "VHOST_USER_SET_PROTOCOL_FEATURES", U64, FdCount::NONE),
    row(id::GET_QUEUE_NUM, "VHOST_USER_GET_QUEUE_NUM", EMPTY, FdCount::NONE)
        .needs(Feature::MQ).replies(Nothing),
    row(id::SET_VRING_ENABLE, "VHOST_USER_SET_VRING_ENABLE", STATE, FdCount::NONE),
    row(id::SEND_RARP, "VHOST_USER_SEND_RARP", U64, FdCount::NONE)
        .needs(Feature::RARP),
    row(id::NET_SET_MTU, "VHOST_USER_NET_SET_MTU", U64, FdCount::NONE)
        .needs(Feature::MTU),
    row(id::SET_BACKEND_REQ_FD, "VHOST_USER_SET_BACKEND_REQ_FD", EMPTY, FdCount::ONE)
        .needs(Feature::BACKEND_REQ),
    row(id::IOTLB_MSG, "VHOST_USER_IOTLB_MSG", BodySize::Exact(Iotlb::SIZE), FdCount::NONE)
        .replies(Status(1)),
    row(id::SET_VRING_ENDIAN, "VHOST_USER_SET_VRING_ENDIAN", STATE, FdCount::NONE)
        .needs(Feature::CROSS_ENDIAN),
    row(id::GET_CONFIG, "VHOST_USER_GET_CONFIG", CONFIG, FdCount::NONE)
        .needs(Feature::CONFIG).replies(Empty),
    row(id::SET_CONFIG, "VHOST_USER_SET_CONFIG", CONFIG, FdCount::NONE)
        .needs(Feature::CONFIG),
    row(id::CREATE_CRYPTO_SESSION, "VHOST_USER_CREATE_CRYPTO_SESSION",
        CRYPTO_SESSION, FdCount::NONE)
        .needs(Feature::CRYPTO_SESSION).replies(NegativeSession),
    row(id::CLOSE_CRYPTO_SESSION, "VHOST_USER_CLOSE_CRYPTO_SESSION", U64, FdCount::NONE)
        .needs(Feature::CRYPTO_SESSION),
    row(id::POSTCOPY_ADVISE, "VHOST_USER_POSTCOPY_ADVISE", EMPTY, FdCount::NONE)
        .needs(Feature::PAGEFAULT).replies(Empty),
    row(id::POSTCOPY_LISTEN, "VHOST_USER_POSTCOPY_LISTEN", EMPTY, FdCount::NONE)
        .needs(Feature::PAGEFAULT),
    row(id::POSTCOPY_END, "VHOST_USER_POSTCOPY_END", EMPTY, FdCount::NONE)
        .needs(Feature::PAGEFAULT).replies(Status(1)),
    row(id::GET_INFLIGHT_FD, "VHOST_USER_GET_INFLIGHT_FD", INFLIGHT, FdCount::NONE)
        .needs(Feature::INFLIGHT_SHMFD).replies(Zeroed(Inflight::SIZE)),
    row(id::SET_INFLIGHT_FD, "VHOST_USER_SET_INFLIGHT_FD", INFLIGHT, FdCount::ONE)
        .needs(Feature::INFLIGHT_SHMFD),
    row(id::GPU_SET_SOCKET, "VHOST_USER_GPU_SET_SOCKET", EMPTY, FdCount::ONE),
    row(id::RESET_DEVICE, "VHOST_USER_RESET_DEVICE", EMPTY, FdCount::NONE)
        .needs(Feature::RESET_DEVICE),
    row(id::VRING_KICK, "VHOST_USER_VRING_KICK", STATE, FdCount::NONE)
        .needs(Feature::INBAND_NOTIFICATIONS),
    row(id::GET_MAX_MEM_SLOTS, "VHOST_USER_GET_MAX_MEM_SLOTS", EMPTY, FdCount::NONE)
        .needs(Feature::CONFIGURE_MEM_SLOTS).replies(Nothing),
    row(id::ADD_MEM_REG, "VHOST_USER_ADD_MEM_REG", REGION, FdCount::UnlessMarker)
        .needs(Feature::CONFIGURE_MEM_SLOTS),
    // Some front-ends send the region's descriptor with its removal; the
    // specification lets a back-end close it and go on.
    row(id::REM_MEM_REG, "VHOST_USER_REM_MEM_REG", REGION, FdCount::Range(0, 1))
        .needs(Feature::CONFIGURE_MEM_SLOTS),
    row(id::SET_STATUS, "VHOST_USER_SET_STATUS", U64, FdCount::NONE)
        .needs(Feature::STATUS),
    row(id::GET_STATUS, "VHOST_USER_GET_STATUS", EMPTY, FdCount::NONE)
        .needs(Feature::STATUS).replies(Nothing),
    row(id::GET_SHARED_OBJECT, "VHOST_USER_GET_SHARED_OBJECT",
        BodySize::Exact(UUID_SIZE), FdCount::NONE)
        .needs(Feature::SHARED_OBJECT).replies(Empty),
    row(id::SET_DEVICE_STATE_FD, "VHOST_USER_SET_DEVICE_STATE_FD",
        BodySize::Exact(DeviceStateTransfer::SIZE), FdCount::ONE)
        .needs(Feature::DEVICE_STATE).replies(Status(DEVICE_STATE_ERROR)),
    row(id::CHECK_DEVICE_STATE, "VHOST_USER_CHECK_DEVICE_STATE", EMPTY, FdCount::NONE)
        .needs(Feature::DEVICE_STATE).replies(Status(1)),
    row(id::GET_SHMEM_CONFIG, "VHOST_USER_GET_SHMEM_CONFIG", EMPTY, FdCount::NONE)
        .needs(Feature::SHMEM).replies(Nothing),
];

#[cfg(test)]
mod tests {
    use super::super::{lookup, request_name};
    use super::*;

    #[test]
    fn every_id_has_its_own_row_in_order() {
        for (index, spec) in REQUESTS.iter().enumerate() {
            assert_eq!(spec.id as usize, index + 1, "{}", spec.name);
            assert_eq!(lookup(spec.id).map(|row| row.name), Some(spec.name));
            assert_eq!(request_name(spec.id), spec.name);
        }
    }

    #[test]
    fn names_are_the_specifications_and_unique() {
        let mut names: Vec<_> = REQUESTS.iter().map(|spec| spec.name).collect();
        assert!(names.iter().all(|name| name.starts_with("VHOST_USER_")));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REQUESTS.len());
    }

    #[test]
    fn every_legal_body_fits_a_message() {
        for spec in &REQUESTS {
            let largest = match spec.body {
                BodySize::Exact(size) => size,
                BodySize::Either(one, other) => one.max(other),
                BodySize::Range(min, max) => {
                    assert!(min <= max, "{}", spec.name);
                    max
                }
                BodySize::Table { head, entry, max } => head + entry * max,
            };
            assert!(largest <= MAX_BODY, "{}", spec.name);
            assert!(spec.body.accepts(largest), "{}", spec.name);
            assert!(!spec.body.accepts(largest + 1), "{}", spec.name);
        }
    }

    #[test]
    fn only_own_replies_have_an_error_form() {
        for spec in &REQUESTS {
            let has_form = spec.error_reply != Nothing;
            assert!(!has_form || spec.own_reply, "{}", spec.name);
        }
    }

    #[test]
    fn requests_that_the_specification_answers_have_a_reply() {
        let answered: Vec<_> = REQUESTS
            .iter()
            .filter(|spec| spec.own_reply)
            .map(|spec| spec.id)
            .collect();
        assert_eq!(
            answered,
            [
                1, 6, 11, 15, 17, 22, 24, 26, 28, 30, 31, 36, 40, 41, 42, 43, 44
            ]
        );
    }

    #[test]
    fn needed_features_are_single_bits() {
        for spec in &REQUESTS {
            let bits = spec.needs.map_or(1, |feature| feature.bits().count_ones());
            assert_eq!(bits, 1, "{}", spec.name);
        }
    }
}

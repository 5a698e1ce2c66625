//! Feature bits that the protocol itself defines.

/// The protocol features, bits 0 to 22. The `vhost` crate's definitions agree
/// with the specification for all of them.
pub use vhost::vhost_user::message::VhostUserProtocolFeatures as ProtocolFeatures;

/// The feature bit, beside the device's own, by which a back-end announces
/// protocol features (VHOST_USER_F_PROTOCOL_FEATURES).
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// The feature bit that turns the dirty log on (VHOST_F_LOG_ALL).
pub const F_LOG_ALL: u64 = 1 << 26;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_specification() {
        let names = [
            "MQ",
            "LOG_SHMFD",
            "RARP",
            "REPLY_ACK",
            "MTU",
            "BACKEND_REQ",
            "CROSS_ENDIAN",
            "CRYPTO_SESSION",
            "PAGEFAULT",
            "CONFIG",
            "BACKEND_SEND_FD",
            "HOST_NOTIFIER",
            "INFLIGHT_SHMFD",
            "RESET_DEVICE",
            "INBAND_NOTIFICATIONS",
            "CONFIGURE_MEM_SLOTS",
            "STATUS",
            "XEN_MMAP",
            "SHARED_OBJECT",
            "DEVICE_STATE",
            "GET_VRING_BASE_INFLIGHT",
            "GPA_ADDRESSES",
            "SHMEM",
        ];
        for (bit, name) in names.iter().enumerate() {
            let feature = ProtocolFeatures::from_name(name);
            assert_eq!(feature.map(|f| f.bits()), Some(1 << bit), "{name}");
        }
        assert_eq!(ProtocolFeatures::all().bits(), (1 << names.len()) - 1);
    }
}

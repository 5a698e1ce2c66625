//! Bodies of the requests for network devices.

use super::codec::{DecodeError, decode_u64, require};

/// Decodes the body of SEND_RARP: the MAC address is its first six bytes.
pub fn decode_mac(body: &[u8]) -> Result<[u8; 6], DecodeError> {
    let [a, b, c, d, e, f, ..] = decode_u64(body)?.to_ne_bytes();
    Ok([a, b, c, d, e, f])
}

/// Decodes the body of NET_SET_MTU, within the limits of the virtio specification (1.3, 5.1.4).
pub fn decode_mtu(body: &[u8]) -> Result<u16, DecodeError> {
    let mtu = decode_u64(body)?;
    require(
        (68..=u64::from(u16::MAX)).contains(&mtu),
        "MTU",
        mtu,
        "is not 68 to 65535",
    )?;
    Ok(mtu as u16)
}

#[cfg(test)]
mod tests {
    use super::super::encode_u64;
    use super::*;

    #[test]
    fn an_address_is_the_first_six_bytes() {
        assert_eq!(
            decode_mac(&[1, 2, 3, 4, 5, 6, 7, 8]),
            Ok([1, 2, 3, 4, 5, 6])
        );
        assert!(decode_mac(&[0; 6]).is_err());
    }

    #[test]
    fn an_mtu_has_both_ends() {
        for (mtu, legal) in [
            (0, false),
            (67, false),
            (68, true),
            (65535, true),
            (65536, false),
        ] {
            assert_eq!(decode_mtu(&encode_u64(mtu)).is_ok(), legal, "{mtu}");
        }
        let error = decode_mtu(&encode_u64(1 << 32 | 1500)).map_err(|error| error.to_string());
        assert_eq!(error, Err("MTU 0x1000005dc is not 68 to 65535".to_string()));
    }
}

//! The body of the requests about objects that several devices of a virtual machine share.

use super::codec::{BodyReader, DecodeError};

/// Bytes of a UUID, in the order of RFC 9562: it is the whole body, in both directions.
pub const UUID_SIZE: usize = 16;

/// Decodes the body of GET_SHARED_OBJECT.
pub fn decode_uuid(body: &[u8]) -> Result<[u8; UUID_SIZE], DecodeError> {
    BodyReader::exact("shared object", body, UUID_SIZE)?.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_sixteen_bytes() {
        let uuid: [u8; UUID_SIZE] = std::array::from_fn(|at| at as u8);
        assert_eq!(decode_uuid(&uuid), Ok(uuid));
        assert!(decode_uuid(&uuid[1..]).is_err());
        assert!(decode_uuid(&[0; UUID_SIZE + 1]).is_err());
    }
}

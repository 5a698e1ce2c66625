//! Bodies of the config space and status requests.

use super::codec::{BodyReader, BodyWriter, DecodeError, decode_u64, require};

/// The most config space bytes that one message moves.
pub const MAX_CONFIG_SIZE: usize = 256;

/// Bytes before the payload: offset, size and flags.
pub const CONFIG_HEAD_SIZE: usize = 12;

/// The body of GET_CONFIG and SET_CONFIG, and the reply to GET_CONFIG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAccess<'a> {
    pub offset: u32,
    pub flags: u32,
    /// 1 to [`MAX_CONFIG_SIZE`] bytes; `offset` plus their number does not wrap.
    pub payload: &'a [u8],
}

impl<'a> ConfigAccess<'a> {
    /// The front-end writes fields that the driver may write.
    pub const FLAG_WRITE: u32 = 0;
    /// The front-end restores the config space after migration.
    pub const FLAG_MIGRATION: u32 = 1;

    /// The size field must agree with the number of bytes that follow it.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::new("config space", body);
        let (offset, size, flags) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let payload = reader.rest();
        require(
            (1..=MAX_CONFIG_SIZE as u32).contains(&size),
            "config size",
            size.into(),
            "is not 1 to 256",
        )?;
        require(
            offset.checked_add(size).is_some(),
            "config offset",
            offset.into(),
            "wraps around when the size is added",
        )?;
        require(
            size as usize == payload.len(),
            "config size",
            size.into(),
            "differs from the length of the payload",
        )?;
        Ok(ConfigAccess {
            offset,
            flags,
            payload,
        })
    }

    /// Checks the flags of a SET_CONFIG. (Those of a GET_CONFIG have no
    /// meaning, and front-ends disagree about them.)
    pub fn check_write_flags(&self) -> Result<(), DecodeError> {
        require(
            matches!(self.flags, Self::FLAG_WRITE | Self::FLAG_MIGRATION),
            "config flags",
            self.flags.into(),
            "are neither 0 (write) nor 1 (migration)",
        )
    }

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(CONFIG_HEAD_SIZE + self.payload.len())
            .u32(self.offset)
            .u32(self.payload.len() as u32)
            .u32(self.flags)
            .bytes(self.payload)
            .finish()
    }
}

/// Decodes the body of SET_STATUS: the device status is one byte.
pub fn decode_status(body: &[u8]) -> Result<u8, DecodeError> {
    let value = decode_u64(body)?;
    u8::try_from(value).map_err(|_| DecodeError::Value {
        field: "device status",
        value,
        rule: "exceeds 0xff",
    })
}

#[cfg(test)]
mod tests {
    use super::super::encode_u64;
    use super::*;

    fn body(offset: u32, size: u32, flags: u32, payload: usize) -> Vec<u8> {
        let mut body: Vec<u8> = [offset, size, flags]
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect();
        body.resize(CONFIG_HEAD_SIZE + payload, 0x5a);
        body
    }

    fn field_of(body: &[u8]) -> Option<&'static str> {
        match ConfigAccess::decode(body) {
            Err(DecodeError::Value { field, .. }) => Some(field),
            _ => None,
        }
    }

    #[test]
    fn a_config_access_round_trips() {
        for size in [1, 60, 256] {
            let bytes = body(8, size, 1, size as usize);
            let access = ConfigAccess::decode(&bytes).expect("legal");
            assert_eq!((access.offset, access.flags), (8, 1));
            assert_eq!(access.payload, vec![0x5a; size as usize]);
            assert_eq!(access.encode(), bytes);
        }
    }

    #[test]
    fn the_size_is_bounded_and_agrees_with_the_payload() {
        assert_eq!(field_of(&body(0, 0, 0, 0)), Some("config size"));
        assert_eq!(field_of(&body(0, 257, 0, 257)), Some("config size"));
        assert_eq!(field_of(&body(0, u32::MAX, 0, 256)), Some("config size"));
        assert_eq!(field_of(&body(0, 8, 0, 7)), Some("config size"));
        assert_eq!(field_of(&body(0, 8, 0, 9)), Some("config size"));
        assert_eq!(field_of(&body(u32::MAX, 1, 0, 1)), Some("config offset"));
        assert_eq!(field_of(&body(u32::MAX - 1, 1, 0, 1)), None);
        for size in 0..CONFIG_HEAD_SIZE {
            assert!(ConfigAccess::decode(&body(0, 1, 0, 1)[..size]).is_err());
        }
    }

    #[test]
    fn write_flags_are_zero_or_one() {
        for (flags, legal) in [(0, true), (1, true), (2, false), (u32::MAX, false)] {
            let bytes = body(0, 1, flags, 1);
            let access = ConfigAccess::decode(&bytes).expect("legal");
            assert_eq!(access.check_write_flags().is_ok(), legal, "{flags}");
        }
    }

    #[test]
    fn status_is_one_byte() {
        assert_eq!(decode_status(&encode_u64(0xff)), Ok(0xff));
        let error = decode_status(&encode_u64(0x100)).map_err(|error| error.to_string());
        assert_eq!(error, Err("device status 0x100 exceeds 0xff".to_string()));
        assert!(decode_status(&[0; 7]).is_err());
    }
}

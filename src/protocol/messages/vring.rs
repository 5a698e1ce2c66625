//! Bodies of the vring requests.

use super::codec::{BodyReader, BodyWriter, DecodeError, decode_u64, encode_u64, require};

/// A vring index with one number: size, base, enable, endianness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    pub index: u32,
    pub num: u32,
}

impl VringState {
    pub const SIZE: usize = 8;

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("vring state", body, Self::SIZE)?;
        Ok(VringState {
            index: reader.u32()?,
            num: reader.u32()?,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(Self::SIZE)
            .u32(self.index)
            .u32(self.num)
            .finish()
    }
}

/// The addresses of a vring, in the front-end's address space (or I/O virtual
/// addresses). Their alignment depends on the ring's layout, so the handler
/// judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    pub index: u32,
    pub flags: u32,
    pub descriptor: u64,
    pub used: u64,
    pub available: u64,
    pub log: u64,
}

impl VringAddr {
    pub const SIZE: usize = 40;
    /// The only flag: writes to the used ring are logged at `log`.
    pub const FLAG_LOG: u32 = 1;

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("vring address", body, Self::SIZE)?;
        Ok(VringAddr {
            index: reader.u32()?,
            flags: reader.u32()?,
            descriptor: reader.u64()?,
            used: reader.u64()?,
            available: reader.u64()?,
            log: reader.u64()?,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(Self::SIZE)
            .u32(self.index)
            .u32(self.flags)
            .u64(self.descriptor)
            .u64(self.used)
            .u64(self.available)
            .u64(self.log)
            .finish()
    }

    /// Whether writes to the used ring are logged.
    pub fn is_logged(&self) -> bool {
        self.flags & Self::FLAG_LOG != 0
    }

    /// Where the log has the used ring's first byte, if writes to it are logged.
    pub fn log_base(&self) -> Option<u64> {
        self.is_logged().then_some(self.log)
    }
}

/// The word of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFd {
    /// The vring, 0 to 255: the protocol has 8 bits for it.
    pub index: u32,
    /// No file descriptor comes with the message.
    pub nofd: bool,
}

impl VringFd {
    const INDEX_MASK: u64 = 0xff;
    pub(in crate::protocol) const NOFD: u64 = 1 << 8;

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let word = decode_u64(body)?;
        require(
            word & !(Self::INDEX_MASK | Self::NOFD) == 0,
            "vring word",
            word,
            "has reserved bits set",
        )?;
        Ok(VringFd {
            index: (word & Self::INDEX_MASK) as u32,
            nofd: word & Self::NOFD != 0,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let nofd = if self.nofd { Self::NOFD } else { 0 };
        encode_u64(u64::from(self.index) & Self::INDEX_MASK | nofd)
    }
}

/// The body of VRING_HOST_NOTIFIER_MSG: what is to be mapped for the driver, as the doorbell of a vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringArea {
    pub index: u8,
    /// There is no descriptor: the doorbell is withdrawn.
    pub nofd: bool,
    pub size: u64,
    pub offset: u64,
}

impl VringArea {
    pub const SIZE: usize = 24;

    pub fn encode(&self) -> Vec<u8> {
        let vring = VringFd {
            index: self.index.into(),
            nofd: self.nofd,
        };
        BodyWriter::new(Self::SIZE)
            .bytes(&vring.encode())
            .u64(self.size)
            .u64(self.offset)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_index_then_num() {
        let body = [1u32.to_ne_bytes(), 256u32.to_ne_bytes()].concat();
        let state = VringState { index: 1, num: 256 };
        assert_eq!(VringState::decode(&body), Ok(state));
        assert_eq!(state.encode(), body);
        assert!(VringState::decode(&body[..7]).is_err());
        assert!(VringState::decode(&[body, vec![0]].concat()).is_err());
    }

    #[test]
    fn address_has_the_specifications_order() {
        let mut body = [2u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat();
        for value in [0x1000u64, 0x2000, 0x3000, 0x4000] {
            body.extend_from_slice(&value.to_ne_bytes());
        }
        let addr = VringAddr {
            index: 2,
            flags: 1,
            descriptor: 0x1000,
            used: 0x2000,
            available: 0x3000,
            log: 0x4000,
        };
        assert_eq!(VringAddr::decode(&body), Ok(addr));
        assert!(addr.is_logged());
        assert_eq!(addr.encode(), body);
        assert!(VringAddr::decode(&body[..39]).is_err());
        assert!(VringAddr::decode(&[body, vec![0]].concat()).is_err());
    }

    #[test]
    fn fd_word_has_index_and_flag() {
        for (word, index, nofd) in [(0, 0, false), (0xff, 255, false), (0x103, 3, true)] {
            let fd = VringFd { index, nofd };
            assert_eq!(VringFd::decode(&encode_u64(word)), Ok(fd));
            assert_eq!(fd.encode(), encode_u64(word));
        }
    }

    #[test]
    fn an_area_is_word_then_size_then_offset() {
        let area = VringArea {
            index: 3,
            nofd: true,
            size: 0x1000,
            offset: 0x2000,
        };
        let words = [0x103u64, 0x1000, 0x2000].map(u64::to_ne_bytes);
        assert_eq!(area.encode(), words.concat());
    }

    #[test]
    fn fd_word_has_no_other_bits() {
        for bit in 9..64 {
            let word = 1 << bit;
            assert_eq!(
                VringFd::decode(&encode_u64(word)),
                Err(DecodeError::Value {
                    field: "vring word",
                    value: word,
                    rule: "has reserved bits set"
                })
            );
        }
        assert!(VringFd::decode(&[0; 7]).is_err());
    }
}

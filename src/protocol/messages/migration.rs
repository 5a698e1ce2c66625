//! Bodies of the requests that migration and recovery need.

use super::codec::{BodyReader, BodyWriter, DecodeError, require};

/// The largest queue that virtio knows.
const MAX_QUEUE_SIZE: u16 = 32768;

/// The area of SET_LOG_BASE; the reply repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    pub size: u64,
    pub offset: u64,
}

impl Log {
    pub const SIZE: usize = 16;

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("log", body, Self::SIZE)?;
        let log = Log {
            size: reader.u64()?,
            offset: reader.u64()?,
        };
        require(log.size != 0, "log size", log.size, "must not be zero")?;
        require(
            log.offset.checked_add(log.size).is_some(),
            "log offset",
            log.offset,
            "wraps around when the size is added",
        )?;
        Ok(log)
    }

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(Self::SIZE)
            .u64(self.size)
            .u64(self.offset)
            .finish()
    }
}

/// The area of GET_INFLIGHT_FD and SET_INFLIGHT_FD. In a GET the front-end
/// sends only queue count and size; the reply fills in the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    pub mmap_size: u64,
    pub mmap_offset: u64,
    pub num_queues: u16,
    pub queue_size: u16,
}

impl Inflight {
    /// The four fields have 20 bytes; all front-ends send the C structure,
    /// which ends with four bytes of padding, and want it back in that size.
    pub const SIZE: usize = 24;

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("in-flight description", body, Self::SIZE)?;
        let inflight = Inflight {
            mmap_size: reader.u64()?,
            mmap_offset: reader.u64()?,
            num_queues: reader.u16()?,
            queue_size: reader.u16()?,
        };
        inflight.check()?;
        Ok(inflight)
    }

    fn check(&self) -> Result<(), DecodeError> {
        require(
            self.num_queues != 0,
            "number of queues",
            self.num_queues.into(),
            "must not be zero",
        )?;
        require(
            (1..=MAX_QUEUE_SIZE).contains(&self.queue_size),
            "queue size",
            self.queue_size.into(),
            "is not 1 to 0x8000",
        )?;
        require(
            self.mmap_offset.checked_add(self.mmap_size).is_some(),
            "mmap offset",
            self.mmap_offset,
            "wraps around when the mmap size is added",
        )
    }

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(Self::SIZE)
            .u64(self.mmap_size)
            .u64(self.mmap_offset)
            .u16(self.num_queues)
            .u16(self.queue_size)
            .u32(0)
            .finish()
    }
}

/// The parameters of SET_DEVICE_STATE_FD. The only migration phase there is
/// is "stopped", so what is left is the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStateTransfer {
    /// From the back-end to the front-end, on the source.
    Save,
    /// From the front-end to the back-end, on the destination.
    Load,
}

impl DeviceStateTransfer {
    pub const SIZE: usize = 8;

    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("device state transfer", body, Self::SIZE)?;
        let (direction, phase) = (reader.u32()?, reader.u32()?);
        require(
            phase == 0,
            "migration phase",
            phase.into(),
            "is not 0 (stopped)",
        )?;
        match direction {
            0 => Ok(DeviceStateTransfer::Save),
            1 => Ok(DeviceStateTransfer::Load),
            _ => Err(DecodeError::Value {
                field: "transfer direction",
                value: direction.into(),
                rule: "is neither 0 (save) nor 1 (load)",
            }),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let direction = match self {
            DeviceStateTransfer::Save => 0,
            DeviceStateTransfer::Load => 1,
        };
        BodyWriter::new(Self::SIZE).u32(direction).u32(0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_size_then_offset() {
        let body = [0x1000u64.to_ne_bytes(), 0x40u64.to_ne_bytes()].concat();
        let log = Log {
            size: 0x1000,
            offset: 0x40,
        };
        assert_eq!(Log::decode(&body), Ok(log));
        assert_eq!(log.encode(), body);
        assert!(Log::decode(&body[..8]).is_err());
        assert!(Log::decode(&body[..15]).is_err());
        assert!(Log::decode(&[body, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_log_has_a_size_and_does_not_wrap() {
        for (size, offset, legal) in [
            (0, 0, false),
            (1, 0, true),
            (u64::MAX, 1, false),
            (1, u64::MAX, false),
            (1, u64::MAX - 1, true),
        ] {
            let body = Log { size, offset }.encode();
            assert_eq!(Log::decode(&body).is_ok(), legal, "{size:#x} {offset:#x}");
        }
    }

    const INFLIGHT: Inflight = Inflight {
        mmap_size: 0x2000,
        mmap_offset: 0x10,
        num_queues: 2,
        queue_size: 128,
    };

    #[test]
    fn an_in_flight_description_has_the_c_structures_size() {
        let body = INFLIGHT.encode();
        assert_eq!(body.len(), 24);
        assert_eq!(body[16..18], 2u16.to_ne_bytes());
        assert_eq!(body[18..20], 128u16.to_ne_bytes());
        assert_eq!(Inflight::decode(&body), Ok(INFLIGHT));
        assert!(Inflight::decode(&body[..23]).is_err());
        assert!(Inflight::decode(&[body, vec![0]].concat()).is_err());
    }

    #[test]
    fn in_flight_numbers_have_bounds() {
        for (inflight, legal) in [
            (
                Inflight {
                    num_queues: 0,
                    ..INFLIGHT
                },
                false,
            ),
            (
                Inflight {
                    num_queues: 0xffff,
                    ..INFLIGHT
                },
                true,
            ),
            (
                Inflight {
                    queue_size: 0,
                    ..INFLIGHT
                },
                false,
            ),
            (
                Inflight {
                    queue_size: 32768,
                    ..INFLIGHT
                },
                true,
            ),
            (
                Inflight {
                    queue_size: 32769,
                    ..INFLIGHT
                },
                false,
            ),
            (
                Inflight {
                    mmap_offset: u64::MAX,
                    ..INFLIGHT
                },
                false,
            ),
            (
                Inflight {
                    mmap_size: 0,
                    mmap_offset: 0,
                    ..INFLIGHT
                },
                true,
            ),
        ] {
            let body = inflight.encode();
            assert_eq!(Inflight::decode(&body).is_ok(), legal, "{inflight:?}");
        }
    }

    #[test]
    fn a_state_transfer_has_two_directions_and_one_phase() {
        let body =
            |direction: u32, phase: u32| [direction.to_ne_bytes(), phase.to_ne_bytes()].concat();
        for transfer in [DeviceStateTransfer::Save, DeviceStateTransfer::Load] {
            let decoded = DeviceStateTransfer::decode(&transfer.encode());
            assert_eq!(decoded, Ok(transfer));
        }
        assert_eq!(DeviceStateTransfer::Load.encode(), body(1, 0));
        assert!(DeviceStateTransfer::decode(&body(2, 0)).is_err());
        assert!(DeviceStateTransfer::decode(&body(0, 1)).is_err());
        assert!(DeviceStateTransfer::decode(&body(0, 0)[..7]).is_err());
    }
}

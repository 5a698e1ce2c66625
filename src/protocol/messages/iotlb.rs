//! The body of IOTLB messages, in both directions.

use super::codec::{BodyReader, BodyWriter, DecodeError, require};

/// What an IOTLB message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbKind {
    /// From the back-end: no translation for `iova`.
    Miss = 1,
    /// From the front-end: here is a translation.
    Update = 2,
    /// From the front-end: forget the range.
    Invalidate = 3,
    /// From the back-end: the permissions forbid the access.
    AccessFail = 4,
}

/// An IOTLB message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iotlb {
    pub iova: u64,
    pub size: u64,
    pub user_address: u64,
    /// Bit 0: read, bit 1: write.
    pub permissions: u8,
    pub kind: IotlbKind,
}

impl Iotlb {
    /// The fields have 26 bytes; the C structure that is sent ends with six
    /// bytes of padding.
    pub const SIZE: usize = 32;

    /// Decodes what a front-end sends: an update or an invalidation. The last
    /// byte of the range, `iova + (size - 1)`, does not wrap.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("IOTLB message", body, Self::SIZE)?;
        let (iova, size, user_address) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (permissions, kind) = (reader.u8()?, reader.u8()?);
        let iotlb = Iotlb {
            iova,
            size,
            user_address,
            permissions,
            kind: front_end_kind(kind)?,
        };
        iotlb.check()?;
        Ok(iotlb)
    }

    fn check(&self) -> Result<(), DecodeError> {
        const WRAPS: &str = "wraps around when the IOTLB size is added";
        require(self.size != 0, "IOTLB size", self.size, "must not be zero")?;
        let last = self.size - 1;
        let fits = self.iova.checked_add(last).is_some();
        require(fits, "IOVA", self.iova, WRAPS)?;
        if self.kind == IotlbKind::Update {
            let fits = self.user_address.checked_add(last).is_some();
            require(fits, "IOTLB user address", self.user_address, WRAPS)?;
        }
        require(
            self.permissions <= 3,
            "IOTLB permissions",
            self.permissions.into(),
            "exceed 3 (read and write)",
        )
    }

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(Self::SIZE)
            .u64(self.iova)
            .u64(self.size)
            .u64(self.user_address)
            .bytes(&[self.permissions, self.kind as u8])
            .bytes(&[0; 6])
            .finish()
    }
}

fn front_end_kind(kind: u8) -> Result<IotlbKind, DecodeError> {
    match kind {
        2 => Ok(IotlbKind::Update),
        3 => Ok(IotlbKind::Invalidate),
        _ => Err(DecodeError::Value {
            field: "IOTLB type",
            value: kind.into(),
            rule: "is neither 2 (update) nor 3 (invalidate)",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: Iotlb = Iotlb {
        iova: 0x1000,
        size: 0x1000,
        user_address: 0x7f00_0000_0000,
        permissions: 3,
        kind: IotlbKind::Update,
    };

    #[test]
    fn an_update_has_the_c_structures_layout() {
        let body = UPDATE.encode();
        assert_eq!(body.len(), 32);
        assert_eq!(body[16..24], UPDATE.user_address.to_ne_bytes());
        assert_eq!(body[24..26], [3, 2]);
        assert_eq!(Iotlb::decode(&body), Ok(UPDATE));
        assert!(Iotlb::decode(&body[..31]).is_err());
        assert!(Iotlb::decode(&[body, vec![0]].concat()).is_err());
    }

    #[test]
    fn only_updates_and_invalidations_come_from_a_front_end() {
        for kind in [0u8, 1, 4, 255] {
            let mut body = UPDATE.encode();
            body[25] = kind;
            let error = Iotlb::decode(&body);
            assert!(
                matches!(
                    error,
                    Err(DecodeError::Value {
                        field: "IOTLB type",
                        ..
                    })
                ),
                "{kind}: {error:?}"
            );
        }
    }

    #[test]
    fn ranges_and_permissions_are_checked() {
        let max = u64::MAX;
        let gone = IotlbKind::Invalidate;
        for (iotlb, legal) in [
            (Iotlb { size: 0, ..UPDATE }, false),
            (
                Iotlb {
                    size: max,
                    ..UPDATE
                },
                false,
            ),
            (
                Iotlb {
                    iova: max - 0xffe,
                    ..UPDATE
                },
                false,
            ),
            (
                Iotlb {
                    iova: max - 0xfff,
                    ..UPDATE
                },
                true,
            ),
            (
                Iotlb {
                    user_address: max,
                    ..UPDATE
                },
                false,
            ),
            (
                Iotlb {
                    user_address: max,
                    kind: gone,
                    ..UPDATE
                },
                true,
            ),
            (
                Iotlb {
                    iova: 0,
                    size: max,
                    kind: gone,
                    ..UPDATE
                },
                true,
            ),
            (
                Iotlb {
                    permissions: 0,
                    ..UPDATE
                },
                true,
            ),
            (
                Iotlb {
                    permissions: 4,
                    ..UPDATE
                },
                false,
            ),
        ] {
            assert_eq!(Iotlb::decode(&iotlb.encode()).is_ok(), legal, "{iotlb:?}");
        }
    }
}

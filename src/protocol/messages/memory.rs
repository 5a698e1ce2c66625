//! Bodies of the memory requests.

use super::codec::{BodyReader, BodyWriter, DecodeError, require};

/// The most regions of a SET_MEM_TABLE.
pub const MAX_REGIONS: usize = 8;

/// The largest region, the user address space of x86-64: anything beyond can
/// only be an attempt at arithmetic.
pub const MAX_REGION_SIZE: u64 = 1 << 47;

/// Bytes before the first region of a table: count and padding.
pub const TABLE_HEAD_SIZE: usize = 8;

/// Whether this is the message by which a front-end ends a memory update in
/// postcopy: it has the id of the request that it ends, and this body.
pub fn is_postcopy_marker(body: &[u8]) -> bool {
    body == [0; 8]
}

/// One memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    pub guest_address: u64,
    pub size: u64,
    pub user_address: u64,
    pub mmap_offset: u64,
}

impl MemoryRegion {
    pub const SIZE: usize = 32;

    fn read(reader: &mut BodyReader<'_>) -> Result<Self, DecodeError> {
        Ok(MemoryRegion {
            guest_address: reader.u64()?,
            size: reader.u64()?,
            user_address: reader.u64()?,
            mmap_offset: reader.u64()?,
        })
    }

    fn write(&self, writer: BodyWriter) -> BodyWriter {
        writer
            .u64(self.guest_address)
            .u64(self.size)
            .u64(self.user_address)
            .u64(self.mmap_offset)
    }

    /// What must hold for a region that is to be mapped: after this, `size`
    /// is positive and no sum of a field and `size` wraps.
    fn check(&self) -> Result<(), DecodeError> {
        let size = self.size;
        require(size != 0, "size", size, "must not be zero")?;
        require(
            size <= MAX_REGION_SIZE,
            "size",
            size,
            "exceeds the maximum of 0x800000000000",
        )?;
        for (field, base) in [
            ("guest address", self.guest_address),
            ("user address", self.user_address),
            ("mmap offset", self.mmap_offset),
        ] {
            let fits = base.checked_add(size).is_some();
            require(fits, field, base, "wraps around when the size is added")?;
        }
        Ok(())
    }
}

/// The table of SET_MEM_TABLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemTable {
    /// One to [`MAX_REGIONS`] regions.
    pub regions: Vec<MemoryRegion>,
}

impl MemTable {
    /// The count is judged before the size, so that each of a count out of
    /// range and a count that disagrees with the body gets its own message.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "memory table";
        let count = BodyReader::new(WHAT, body).u32()?;
        require(
            (1..=MAX_REGIONS as u32).contains(&count),
            "number of regions",
            count.into(),
            "is not 1 to 8",
        )?;
        let size = TABLE_HEAD_SIZE + count as usize * MemoryRegion::SIZE;
        let mut reader = BodyReader::exact(WHAT, body, size)?;
        reader.take::<TABLE_HEAD_SIZE>()?;
        let mut regions = Vec::with_capacity(MAX_REGIONS);
        for index in 0..count as usize {
            let region = MemoryRegion::read(&mut reader)?;
            region.check().map_err(|error| error.in_region(index))?;
            regions.push(region);
        }
        Ok(MemTable { regions })
    }

    /// The table as a body; in postcopy it is also the reply.
    pub fn encode(&self) -> Vec<u8> {
        let size = TABLE_HEAD_SIZE + self.regions.len() * MemoryRegion::SIZE;
        let head = BodyWriter::new(size).u32(self.regions.len() as u32).u32(0);
        let all = self.regions.iter();
        all.fold(head, |writer, region| region.write(writer))
            .finish()
    }
}

/// The body of ADD_MEM_REG and REM_MEM_REG: padding and one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SingleRegion(pub MemoryRegion);

impl SingleRegion {
    pub const SIZE: usize = 40;

    /// A region to be added: all its fields must make sense.
    pub fn decode_add(body: &[u8]) -> Result<Self, DecodeError> {
        let single = Self::read(body)?;
        single.0.check()?;
        Ok(single)
    }

    /// A region to be removed. Nothing is checked: it is found by comparing
    /// guest address, user address and size with those of the regions there
    /// are, and its mmap offset has no meaning.
    pub fn decode_remove(body: &[u8]) -> Result<Self, DecodeError> {
        Self::read(body)
    }

    fn read(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::exact("memory region", body, Self::SIZE)?;
        reader.u64()?;
        MemoryRegion::read(&mut reader).map(SingleRegion)
    }

    /// The region as a body; in postcopy it is also the reply.
    pub fn encode(&self) -> Vec<u8> {
        self.0.write(BodyWriter::new(Self::SIZE).u64(0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: MemoryRegion = MemoryRegion {
        guest_address: 0x1_0000_0000,
        size: 0x20_0000,
        user_address: 0x7f00_0000_0000,
        mmap_offset: 0x1000,
    };

    fn table(regions: &[MemoryRegion]) -> MemTable {
        MemTable {
            regions: regions.to_vec(),
        }
    }

    fn with_count(mut body: Vec<u8>, count: u32) -> Vec<u8> {
        body[..4].copy_from_slice(&count.to_ne_bytes());
        body
    }

    #[test]
    fn a_single_region_follows_eight_bytes_of_padding() {
        let mut body = vec![0xaa; 8];
        for value in [
            GOOD.guest_address,
            GOOD.size,
            GOOD.user_address,
            GOOD.mmap_offset,
        ] {
            body.extend_from_slice(&value.to_ne_bytes());
        }
        assert_eq!(SingleRegion::decode_add(&body), Ok(SingleRegion(GOOD)));
        assert_eq!(SingleRegion::decode_remove(&body), Ok(SingleRegion(GOOD)));
        assert_eq!(SingleRegion(GOOD).encode()[8..], body[8..]);
        for size in [32, 39, 41] {
            let other = vec![0; size];
            assert!(SingleRegion::decode_add(&other).is_err(), "{size}");
            assert!(SingleRegion::decode_remove(&other).is_err(), "{size}");
        }
    }

    #[test]
    fn tables_of_one_to_eight_regions_decode() {
        for count in 1..=8 {
            let regions = vec![GOOD; count];
            let body = table(&regions).encode();
            assert_eq!(body.len(), 8 + count * 32);
            assert_eq!(MemTable::decode(&body), Ok(table(&regions)));
        }
    }

    #[test]
    fn the_count_has_bounds() {
        for count in [0, 9, 33, u32::MAX] {
            let body = with_count(vec![0; 8 + 8 * 32], count);
            assert_eq!(
                MemTable::decode(&body),
                Err(DecodeError::Value {
                    field: "number of regions",
                    value: count.into(),
                    rule: "is not 1 to 8"
                })
            );
        }
    }

    #[test]
    fn count_and_size_must_agree() {
        let body = table(&[GOOD, GOOD]).encode();
        for count in [1, 3, 8] {
            assert!(MemTable::decode(&with_count(body.clone(), count)).is_err());
        }
        for size in 0..body.len() {
            assert!(MemTable::decode(&body[..size]).is_err(), "{size}");
        }
        assert!(MemTable::decode(&[body, vec![0]].concat()).is_err());
    }

    #[test]
    fn both_kinds_refuse_the_same_regions() {
        let max = u64::MAX;
        let bad = [
            ("size", MemoryRegion { size: 0, ..GOOD }),
            (
                "size",
                MemoryRegion {
                    size: MAX_REGION_SIZE + 1,
                    ..GOOD
                },
            ),
            ("size", MemoryRegion { size: max, ..GOOD }),
            (
                "guest address",
                MemoryRegion {
                    guest_address: max,
                    ..GOOD
                },
            ),
            (
                "guest address",
                MemoryRegion {
                    guest_address: max - GOOD.size + 1,
                    ..GOOD
                },
            ),
            (
                "user address",
                MemoryRegion {
                    user_address: max - 1,
                    ..GOOD
                },
            ),
            (
                "mmap offset",
                MemoryRegion {
                    mmap_offset: max - GOOD.size + 1,
                    ..GOOD
                },
            ),
        ];
        for (expected, region) in bad {
            match SingleRegion::decode_add(&SingleRegion(region).encode()) {
                Err(DecodeError::Value { field, .. }) => assert_eq!(field, expected),
                other => panic!("{region:?} gave {other:?}"),
            }
            match MemTable::decode(&table(&[GOOD, region]).encode()) {
                Err(DecodeError::Region { index, field, .. }) => {
                    assert_eq!((index, field), (1, expected));
                }
                other => panic!("{region:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn the_last_legal_values_are_accepted() {
        let high = u64::MAX - GOOD.size;
        for region in [
            MemoryRegion {
                size: MAX_REGION_SIZE,
                ..GOOD
            },
            MemoryRegion { size: 1, ..GOOD },
            MemoryRegion {
                guest_address: high,
                ..GOOD
            },
            MemoryRegion {
                user_address: high,
                ..GOOD
            },
            MemoryRegion {
                mmap_offset: high,
                ..GOOD
            },
        ] {
            let body = SingleRegion(region).encode();
            assert_eq!(SingleRegion::decode_add(&body), Ok(SingleRegion(region)));
        }
    }

    #[test]
    fn a_removal_ignores_the_mmap_offset() {
        let region = MemoryRegion {
            mmap_offset: u64::MAX,
            ..GOOD
        };
        let body = SingleRegion(region).encode();
        assert_eq!(SingleRegion::decode_remove(&body), Ok(SingleRegion(region)));
    }

    #[test]
    fn a_postcopy_marker_is_one_zero_word() {
        assert!(is_postcopy_marker(&[0; 8]));
        assert!(!is_postcopy_marker(&[0; 40]));
        assert!(!is_postcopy_marker(&[0; 7]));
        assert!(!is_postcopy_marker(&1u64.to_ne_bytes()));
    }
}

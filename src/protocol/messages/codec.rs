//! Reading and writing integers of a body, and the error of all decoders.

use std::fmt;

/// Why a body is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The body is shorter or longer than the structure.
    Size {
        what: &'static str,
        expected: usize,
        actual: usize,
    },
    /// A field has a value outside its rule.
    Value {
        field: &'static str,
        value: u64,
        rule: &'static str,
    },
    /// A field of a region in a memory table has a value outside its rule.
    Region {
        index: usize,
        field: &'static str,
        value: u64,
        rule: &'static str,
    },
}

impl DecodeError {
    /// Says which region of a table is meant.
    pub(super) fn in_region(self, index: usize) -> DecodeError {
        match self {
            DecodeError::Value { field, value, rule } => DecodeError::Region {
                index,
                field,
                value,
                rule,
            },
            other => other,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            DecodeError::Size {
                what,
                expected,
                actual,
            } => write!(f, "{what}: body size {actual} is not {expected}"),
            DecodeError::Value { field, value, rule } => write!(f, "{field} {value:#x} {rule}"),
            DecodeError::Region {
                index,
                field,
                value,
                rule,
            } => write!(f, "region {index}: {field} {value:#x} {rule}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Fails with the field, its value and the rule unless the rule is kept.
pub(super) fn require(
    kept: bool,
    field: &'static str,
    value: u64,
    rule: &'static str,
) -> Result<(), DecodeError> {
    if kept {
        Ok(())
    } else {
        Err(DecodeError::Value { field, value, rule })
    }
}

/// Reads a body from front to back.
pub(super) struct BodyReader<'a> {
    what: &'static str,
    body: &'a [u8],
    at: usize,
}

impl<'a> BodyReader<'a> {
    /// A reader over a body of any size.
    pub(super) fn new(what: &'static str, body: &'a [u8]) -> Self {
        BodyReader { what, body, at: 0 }
    }

    /// A reader over a body of exactly `size` bytes.
    pub(super) fn exact(
        what: &'static str,
        body: &'a [u8],
        size: usize,
    ) -> Result<Self, DecodeError> {
        if body.len() != size {
            return Err(DecodeError::Size {
                what,
                expected: size,
                actual: body.len(),
            });
        }
        Ok(Self::new(what, body))
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.rest().first_chunk::<N>().ok_or(DecodeError::Size {
            what: self.what,
            expected: self.at + N,
            actual: self.body.len(),
        })?;
        self.at += N;
        Ok(*bytes)
    }

    /// Passes over bytes that mean nothing.
    pub(super) fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        if self.rest().len() < count {
            return Err(DecodeError::Size {
                what: self.what,
                expected: self.at + count,
                actual: self.body.len(),
            });
        }
        self.at += count;
        Ok(())
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_ne_bytes)
    }
}

/// Builds a body from front to back.
pub(super) struct BodyWriter(Vec<u8>);

impl BodyWriter {
    pub(super) fn new(size: usize) -> Self {
        BodyWriter(Vec::with_capacity(size))
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Decodes a body that is one 64-bit integer.
pub fn decode_u64(body: &[u8]) -> Result<u64, DecodeError> {
    BodyReader::exact("u64", body, 8)?.u64()
}

/// Encodes a body that is one 64-bit integer.
pub fn encode_u64(value: u64) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_u64_is_eight_bytes() {
        assert_eq!(
            decode_u64(&encode_u64(0x0102_0304_0506_0708)),
            Ok(0x0102_0304_0506_0708)
        );
        for size in [0, 7, 9] {
            assert_eq!(
                decode_u64(&vec![0; size]),
                Err(DecodeError::Size {
                    what: "u64",
                    expected: 8,
                    actual: size
                })
            );
        }
    }

    #[test]
    fn reading_past_the_end_is_an_error_and_not_a_panic() {
        let mut reader = BodyReader::new("probe", &[1, 2, 3]);
        assert_eq!(reader.u16(), Ok(u16::from_ne_bytes([1, 2])));
        let error = reader.u32().map_err(|error| error.to_string());
        assert_eq!(error, Err("probe: body size 3 is not 6".to_string()));
        assert_eq!(reader.u8(), Ok(3));
        assert!(reader.u8().is_err());
    }

    #[test]
    fn errors_name_field_and_value() {
        let error = DecodeError::Value {
            field: "size",
            value: 0x1000,
            rule: "is bad",
        };
        assert_eq!(error.to_string(), "size 0x1000 is bad");
        assert_eq!(
            error.in_region(3).to_string(),
            "region 3: size 0x1000 is bad"
        );
    }
}

//! The checks of body size and descriptor count that rows are made of.

use std::fmt;

use super::RequestSpec;
use crate::protocol::messages::VringFd;

/// Bytes of the message by which a front-end ends a postcopy memory update;
/// it has the id of the request it ends.
pub(super) const POSTCOPY_MARKER_SIZE: usize = 8;

/// Which body sizes a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySize {
    /// This size.
    Exact(usize),
    /// One of these two.
    Either(usize, usize),
    /// Anything from the first to the second.
    Range(usize, usize),
    /// A head followed by none to `max` entries.
    Table {
        head: usize,
        entry: usize,
        max: usize,
    },
}

impl BodySize {
    /// Whether a body of `size` bytes is legal.
    pub fn accepts(&self, size: usize) -> bool {
        match *self {
            BodySize::Exact(exact) => size == exact,
            BodySize::Either(one, other) => size == one || size == other,
            BodySize::Range(min, max) => (min..=max).contains(&size),
            BodySize::Table { head, entry, max } => {
                (0..=max).any(|count| size == head + count * entry)
            }
        }
    }
}

impl fmt::Display for BodySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BodySize::Exact(exact) => write!(f, "{exact}"),
            BodySize::Either(one, other) => write!(f, "{one} or {other}"),
            BodySize::Range(min, max) => write!(f, "{min} to {max}"),
            BodySize::Table { head, entry, max } => {
                write!(f, "{head} + n * {entry} with n at most {max}")
            }
        }
    }
}

/// How many file descriptors a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdCount {
    /// From the first to the second.
    Range(usize, usize),
    /// One per region: the count is the first `u32` of the body.
    PerRegion,
    /// One, or none if the body has the NOFD bit.
    UnlessNofd,
    /// One, or none if the body is a postcopy end marker.
    UnlessMarker,
}

impl FdCount {
    /// No file descriptor.
    pub const NONE: FdCount = FdCount::Range(0, 0);
    /// Exactly one.
    pub const ONE: FdCount = FdCount::Range(1, 1);

    /// The least and the greatest legal count for a message with this body.
    fn bounds(&self, body: &[u8]) -> (usize, usize) {
        let exact = match *self {
            FdCount::Range(min, max) => return (min, max),
            FdCount::PerRegion => leading_u32(body) as usize,
            FdCount::UnlessNofd => usize::from(leading_u64(body) & VringFd::NOFD == 0),
            FdCount::UnlessMarker => usize::from(body.len() != POSTCOPY_MARKER_SIZE),
        };
        (exact, exact)
    }
}

fn leading_u32(body: &[u8]) -> u32 {
    body.first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn leading_u64(body: &[u8]) -> u64 {
    body.first_chunk()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

impl RequestSpec {
    /// Checks body size and descriptor count of a received request.
    pub fn check(&self, body: &[u8], fds: usize) -> Result<(), RequestError> {
        if !self.body.accepts(body.len()) {
            return Err(RequestError::BodySize {
                request: self.name,
                size: body.len(),
                expected: self.body,
            });
        }
        let (min, max) = self.fds.bounds(body);
        if fds < min || fds > max {
            return Err(RequestError::FdCount {
                request: self.name,
                count: fds,
                min,
                max,
            });
        }
        Ok(())
    }
}

/// Why a message does not fit its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The body has a size that the request never has.
    BodySize {
        request: &'static str,
        size: usize,
        expected: BodySize,
    },
    /// Too few or too many file descriptors.
    FdCount {
        request: &'static str,
        count: usize,
        min: usize,
        max: usize,
    },
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RequestError::BodySize {
                request,
                size,
                expected,
            } => write!(f, "{request}: body size {size} is not {expected}"),
            RequestError::FdCount {
                request,
                count,
                min,
                max,
            } if min == max => write!(f, "{request}: {count} file descriptors, not {min}"),
            RequestError::FdCount {
                request,
                count,
                min,
                max,
            } => write!(f, "{request}: {count} file descriptors, not {min} to {max}"),
        }
    }
}

impl std::error::Error for RequestError {}

#[cfg(test)]
mod tests {
    use super::super::{id, lookup};

    const NOFD: u64 = 0x100;

    fn check(id: u32, body: &[u8], fds: usize) -> Result<(), String> {
        let spec = lookup(id).ok_or("no row")?;
        spec.check(body, fds).map_err(|error| error.to_string())
    }

    fn word(value: u64) -> [u8; 8] {
        value.to_ne_bytes()
    }

    #[test]
    fn one_byte_less_or_more_is_refused() {
        for (id, size) in [
            (id::SET_VRING_NUM, 8),
            (id::SET_VRING_ADDR, 40),
            (id::SET_FEATURES, 8),
            (id::SET_STATUS, 8),
            (id::IOTLB_MSG, 32),
        ] {
            assert_eq!(check(id, &vec![0; size], 0), Ok(()), "{id}");
            assert!(check(id, &vec![0; size - 1], 0).is_err(), "{id}");
            assert!(check(id, &vec![0; size + 1], 0).is_err(), "{id}");
        }
        assert!(check(id::GET_FEATURES, &[0; 8], 0).is_err());
    }

    #[test]
    fn bad_sizes_of_region_and_log_messages_are_refused() {
        assert!(check(id::ADD_MEM_REG, &[0; 32], 1).is_err());
        assert!(check(id::ADD_MEM_REG, &[0; 40], 1).is_ok());
        assert!(check(id::SET_LOG_BASE, &[0; 8], 1).is_err());
        assert!(check(id::SET_LOG_BASE, &[0; 16], 1).is_ok());
    }

    #[test]
    fn config_size_has_both_ends() {
        for (size, legal) in [(11, false), (12, true), (268, true), (269, false)] {
            assert_eq!(check(id::GET_CONFIG, &vec![0; size], 0).is_ok(), legal);
        }
    }

    #[test]
    fn table_sizes_are_whole_regions() {
        for (size, legal) in [
            (7, false),
            (8, true),
            (39, false),
            (40, true),
            (41, false),
            (8 + 8 * 32, true),
            (8 + 9 * 32, false),
        ] {
            let spec = lookup(id::SET_MEM_TABLE);
            assert_eq!(spec.map(|s| s.body.accepts(size)), Some(legal), "{size}");
        }
    }

    #[test]
    fn a_table_has_one_descriptor_per_region() {
        let mut body = vec![0; 8 + 2 * 32];
        body[0..4].copy_from_slice(&2u32.to_ne_bytes());
        assert_eq!(check(id::SET_MEM_TABLE, &body, 2), Ok(()));
        assert_eq!(
            check(id::SET_MEM_TABLE, &body, 1),
            Err("VHOST_USER_SET_MEM_TABLE: 1 file descriptors, not 2".to_string())
        );
        assert!(check(id::SET_MEM_TABLE, &body, 3).is_err());
        body[0..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(check(id::SET_MEM_TABLE, &body, 2).is_err());
    }

    #[test]
    fn the_nofd_bit_and_the_descriptor_exclude_each_other() {
        for id in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
            assert_eq!(check(id, &word(3), 1), Ok(()));
            assert_eq!(check(id, &word(NOFD | 3), 0), Ok(()));
            assert!(check(id, &word(3), 0).is_err());
            assert!(check(id, &word(NOFD | 3), 1).is_err());
            assert!(check(id, &word(3), 2).is_err());
        }
    }

    #[test]
    fn postcopy_markers_carry_no_descriptor() {
        assert_eq!(check(id::ADD_MEM_REG, &word(0), 0), Ok(()));
        assert!(check(id::ADD_MEM_REG, &word(0), 1).is_err());
        assert!(check(id::ADD_MEM_REG, &[0; 40], 0).is_err());
        assert!(check(id::ADD_MEM_REG, &[0; 40], 2).is_err());
        assert_eq!(check(id::SET_MEM_TABLE, &word(0), 0), Ok(()));
        assert_eq!(check(id::REM_MEM_REG, &word(0), 0), Ok(()));
    }

    #[test]
    fn a_removal_tolerates_one_descriptor() {
        assert_eq!(check(id::REM_MEM_REG, &[0; 40], 0), Ok(()));
        assert_eq!(check(id::REM_MEM_REG, &[0; 40], 1), Ok(()));
        assert_eq!(
            check(id::REM_MEM_REG, &[0; 40], 2),
            Err("VHOST_USER_REM_MEM_REG: 2 file descriptors, not 0 to 1".to_string())
        );
    }

    #[test]
    fn errors_name_the_size() {
        assert_eq!(
            check(id::SET_VRING_NUM, &[0; 4], 0),
            Err("VHOST_USER_SET_VRING_NUM: body size 4 is not 8".to_string())
        );
        assert_eq!(
            check(id::SET_CONFIG, &[0; 4], 0),
            Err("VHOST_USER_SET_CONFIG: body size 4 is not 12 to 268".to_string())
        );
    }
}

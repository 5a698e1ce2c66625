//! The 12-byte message header.

use std::fmt;

use super::{HEADER_SIZE, MAX_BODY};

/// The protocol version, in the lower two bits of the flags.
pub const VERSION: u32 = 1;
/// The bits of the flags that hold the version.
pub const VERSION_MASK: u32 = 0x3;
/// Set on every reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// The sender wants an acknowledgement (REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

const KNOWN_FLAGS: u32 = VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY;

/// A message header, as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request id; a reply repeats the id it answers.
    pub request: u32,
    /// Version, REPLY and NEED_REPLY.
    pub flags: u32,
    /// Bytes of the body that follows.
    pub size: u32,
}

impl Header {
    /// The header of a request with a body of `size` bytes.
    pub fn request(request: u32, need_reply: bool, size: u32) -> Header {
        let ack = if need_reply { FLAG_NEED_REPLY } else { 0 };
        Header {
            request,
            flags: VERSION | ack,
            size,
        }
    }

    /// The header of the reply to `request` with a body of `size` bytes.
    pub fn reply(request: u32, size: u32) -> Header {
        Header {
            request,
            flags: VERSION | FLAG_REPLY,
            size,
        }
    }

    /// Takes the three fields from the wire, unchecked.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Header {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Header {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// The bytes for the wire.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// Whether the sender asked for an acknowledgement.
    pub fn need_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Whether this is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// Checks a header that must begin a request.
    pub fn check_request(&self) -> Result<(), HeaderError> {
        self.check_common()?;
        if self.is_reply() {
            return Err(HeaderError::ReplyOnRequest {
                request: self.request,
                flags: self.flags,
            });
        }
        Ok(())
    }

    /// Checks a header that must begin a reply (the back-end channel).
    pub fn check_reply(&self) -> Result<(), HeaderError> {
        self.check_common()?;
        if !self.is_reply() {
            return Err(HeaderError::NotAReply {
                request: self.request,
                flags: self.flags,
            });
        }
        Ok(())
    }

    fn check_common(&self) -> Result<(), HeaderError> {
        let (request, flags, size) = (self.request, self.flags, self.size);
        let version = flags & VERSION_MASK;
        if version != VERSION {
            return Err(HeaderError::Version { request, version });
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(HeaderError::ReservedFlags { request, flags });
        }
        if size as usize > MAX_BODY {
            return Err(HeaderError::SizeTooLarge { request, size });
        }
        Ok(())
    }
}

/// Why a header cannot begin a message. After one of these nothing tells where
/// the next message would start, so the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The body would be larger than [`MAX_BODY`].
    SizeTooLarge { request: u32, size: u32 },
    /// The version in the flags is not 1.
    Version { request: u32, version: u32 },
    /// Flag bits that the specification reserves are set.
    ReservedFlags { request: u32, flags: u32 },
    /// A request carries the REPLY flag.
    ReplyOnRequest { request: u32, flags: u32 },
    /// A reply does not carry the REPLY flag.
    NotAReply { request: u32, flags: u32 },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HeaderError::SizeTooLarge { request, size } => write!(
                f,
                "header of request {request}: size {size} exceeds the maximum of {MAX_BODY}"
            ),
            HeaderError::Version { request, version } => write!(
                f,
                "header of request {request}: version {version} is not {VERSION}"
            ),
            HeaderError::ReservedFlags { request, flags } => write!(
                f,
                "header of request {request}: flags {flags:#x} have reserved bits set"
            ),
            HeaderError::ReplyOnRequest { request, flags } => write!(
                f,
                "header of request {request}: flags {flags:#x} mark a request as a reply"
            ),
            HeaderError::NotAReply { request, flags } => write!(
                f,
                "header of request {request}: flags {flags:#x} do not mark a reply"
            ),
        }
    }
}

impl std::error::Error for HeaderError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_flags(flags: u32) -> Header {
        Header {
            request: 8,
            flags,
            size: 8,
        }
    }

    #[test]
    fn the_three_fields_are_native_integers_in_order() {
        let header = Header {
            request: 0x0102_0304,
            flags: 0x9,
            size: 0x40,
        };
        let bytes = header.encode();
        assert_eq!(bytes[0..4], 0x0102_0304u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 0x9u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 0x40u32.to_ne_bytes());
        assert_eq!(Header::decode(&bytes), header);
    }

    #[test]
    fn constructors_set_version_and_flags() {
        assert_eq!(Header::request(5, false, 0).flags, 0x1);
        assert_eq!(Header::request(5, true, 0).flags, 0x9);
        assert_eq!(Header::reply(5, 8).flags, 0x5);
    }

    #[test]
    fn size_is_bounded() {
        let mut header = Header::request(24, false, MAX_BODY as u32);
        assert_eq!(header.check_request(), Ok(()));
        for size in [MAX_BODY as u32 + 1, u32::MAX] {
            header.size = size;
            assert_eq!(
                header.check_request(),
                Err(HeaderError::SizeTooLarge { request: 24, size })
            );
        }
    }

    #[test]
    fn only_version_one_is_spoken() {
        for version in [0, 2, 3] {
            assert_eq!(
                with_flags(version).check_request(),
                Err(HeaderError::Version {
                    request: 8,
                    version
                })
            );
        }
    }

    #[test]
    fn every_reserved_bit_is_refused() {
        for bit in 4..32 {
            let flags = VERSION | 1 << bit;
            assert_eq!(
                with_flags(flags).check_request(),
                Err(HeaderError::ReservedFlags { request: 8, flags })
            );
        }
    }

    #[test]
    fn requests_and_replies_are_told_apart() {
        assert_eq!(
            with_flags(0x5).check_request(),
            Err(HeaderError::ReplyOnRequest {
                request: 8,
                flags: 0x5
            })
        );
        assert_eq!(with_flags(0x9).check_request(), Ok(()));
        assert_eq!(with_flags(0x5).check_reply(), Ok(()));
        assert_eq!(
            with_flags(0x1).check_reply(),
            Err(HeaderError::NotAReply {
                request: 8,
                flags: 0x1
            })
        );
    }

    #[test]
    fn errors_name_field_and_value() {
        let text = Header::request(24, false, 5000)
            .check_request()
            .map_err(|error| error.to_string());
        assert_eq!(
            text,
            Err("header of request 24: size 5000 exceeds the maximum of 4096".to_string())
        );
    }
}

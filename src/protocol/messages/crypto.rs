//! The body of CREATE_CRYPTO_SESSION.
//!
//! The specification leaves its layout to the front-end's structure. There are two: the older one begins with
//! the session's ID and knows symmetric sessions only; the newer one begins with the operation, which decides
//! between two layouts of what follows, and ends with the ID. Both have pointers of the front-end's in them,
//! which mean nothing here, and buffers of a fixed size with the keys, whose lengths are told apart.

use super::codec::{BodyReader, DecodeError, require};

/// Bytes of the older body: symmetric sessions only.
pub const CRYPTO_SESSION_OLD: usize = 8 + 48 + CIPHER_KEY + AUTH_KEY;
/// Bytes of the newer body.
pub const CRYPTO_SESSION_NEW: usize = 8 + (32 + ASYM_KEY) + 8;

const CIPHER_KEY: usize = 64;
const AUTH_KEY: usize = 512;
const ASYM_KEY: usize = 1024;
const POINTERS: usize = 16;

/// The operations that create a session (virtio 1.3, 5.9.7.2): the service's number, then that of the operation.
const SYMMETRIC: [u64; 4] = [0x0002, 0x0102, 0x0202, 0x0302];
const ASYMMETRIC: u64 = 0x0404;

/// What a crypto session is to do; each key has been checked to lie in its buffer. The numbers are those of the
/// virtio specification (1.3, 5.9).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CryptoParams {
    /// Of the services CIPHER, HASH, MAC and AEAD.
    Symmetric {
        cipher_algo: u32,
        hash_algo: u32,
        digest_len: u32,
        aad_len: u32,
        op_type: u8,
        direction: u8,
        hash_mode: u8,
        chain_order: u8,
        cipher_key: Vec<u8>,
        auth_key: Vec<u8>,
    },
    /// Of the service AKCIPHER.
    Asymmetric {
        algo: u32,
        key_type: u32,
        padding_algo: u32,
        hash_algo: u32,
        key: Vec<u8>,
    },
}

/// A crypto session that a device is asked to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CryptoSession {
    /// The operation, with its service: VIRTIO_CRYPTO_*_CREATE_SESSION.
    pub op_code: u64,
    /// What it is to do.
    pub params: CryptoParams,
    /// The request as it came, of 632 or 1072 bytes: nothing in it has been checked but what is above.
    pub body: Vec<u8>,
}

impl CryptoSession {
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = BodyReader::new("crypto session", body);
        if body.len() == CRYPTO_SESSION_OLD {
            reader.u64()?;
            let op_code = u64::from(reader.u32()?);
            check_op_code(op_code, &SYMMETRIC)?;
            let params = symmetric(&mut reader, 0)?;
            return Ok(CryptoSession::new(op_code, params, body));
        }
        require(
            body.len() == CRYPTO_SESSION_NEW,
            "crypto session size",
            body.len() as u64,
            "is not 632 or 1072",
        )?;
        let op_code = reader.u64()?;
        let params = if op_code == ASYMMETRIC {
            asymmetric(&mut reader)?
        } else {
            check_op_code(op_code, &SYMMETRIC)?;
            symmetric(&mut reader, 4)?
        };
        Ok(CryptoSession::new(op_code, params, body))
    }

    fn new(op_code: u64, params: CryptoParams, body: &[u8]) -> Self {
        CryptoSession {
            op_code,
            params,
            body: body.to_vec(),
        }
    }
}

fn check_op_code(op_code: u64, known: &[u64]) -> Result<(), DecodeError> {
    require(
        known.contains(&op_code),
        "crypto operation",
        op_code,
        "creates no session",
    )
}

/// `padding` bytes come before the pointers.
fn symmetric(reader: &mut BodyReader<'_>, padding: usize) -> Result<CryptoParams, DecodeError> {
    let (cipher_algo, cipher_key_len) = (reader.u32()?, reader.u32()?);
    let (hash_algo, digest_len) = (reader.u32()?, reader.u32()?);
    let (auth_key_len, aad_len) = (reader.u32()?, reader.u32()?);
    let [op_type, direction, hash_mode, chain_order] = reader.take()?;
    reader.skip(padding + POINTERS)?;
    let (cipher_buffer, auth_buffer) = (reader.take::<CIPHER_KEY>()?, reader.take::<AUTH_KEY>()?);
    Ok(CryptoParams::Symmetric {
        cipher_algo,
        hash_algo,
        digest_len,
        aad_len,
        op_type,
        direction,
        hash_mode,
        chain_order,
        cipher_key: key("cipher key length", &cipher_buffer, cipher_key_len)?,
        auth_key: key("authentication key length", &auth_buffer, auth_key_len)?,
    })
}

fn asymmetric(reader: &mut BodyReader<'_>) -> Result<CryptoParams, DecodeError> {
    let (algo, key_type, key_len) = (reader.u32()?, reader.u32()?, reader.u32()?);
    // Alignment, and one pointer.
    reader.skip(4 + POINTERS / 2)?;
    let (padding_algo, hash_algo) = (reader.u32()?, reader.u32()?);
    let buffer = reader.take::<ASYM_KEY>()?;
    Ok(CryptoParams::Asymmetric {
        algo,
        key_type,
        padding_algo,
        hash_algo,
        key: key("key length", &buffer, key_len)?,
    })
}

fn key(field: &'static str, buffer: &[u8], len: u32) -> Result<Vec<u8>, DecodeError> {
    let key = buffer.get(..len as usize).ok_or(DecodeError::Value {
        field,
        value: len.into(),
        rule: "exceeds its buffer",
    })?;
    Ok(key.to_vec())
}

/// The reply to a request of `size` bytes: its own layout with nothing in it but the session's ID. `None` if
/// the request had no layout that we know.
pub fn encode_crypto_reply(size: usize, id: i64) -> Option<Vec<u8>> {
    let at = match size {
        CRYPTO_SESSION_OLD => 0,
        CRYPTO_SESSION_NEW => CRYPTO_SESSION_NEW - 8,
        _ => return None,
    };
    let mut body = vec![0; size];
    body[at..at + 8].copy_from_slice(&id.to_ne_bytes());
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn symmetric_body(new: bool, cipher_len: u32, auth_len: u32) -> Vec<u8> {
        let mut body = if new {
            0x0102u64.to_ne_bytes().to_vec()
        } else {
            [&u64::MAX.to_ne_bytes()[..], &words(&[0x0102])].concat()
        };
        body.extend(words(&[1, cipher_len, 2, 3, auth_len, 4]));
        body.extend([5, 6, 7, 8]);
        body.extend(vec![0xff; POINTERS + if new { 4 } else { 0 }]);
        body.extend(vec![0xc1; CIPHER_KEY]);
        body.extend(vec![0xa2; AUTH_KEY]);
        body.resize(
            if new {
                CRYPTO_SESSION_NEW
            } else {
                CRYPTO_SESSION_OLD
            },
            0,
        );
        body
    }

    fn asymmetric_body(len: u32) -> Vec<u8> {
        let mut body = ASYMMETRIC.to_ne_bytes().to_vec();
        body.extend(words(&[1, 2, len, 0, 9, 9, 3, 4]));
        body.extend(vec![0xee; ASYM_KEY]);
        body.resize(CRYPTO_SESSION_NEW, 0);
        body
    }

    #[test]
    fn the_layouts_have_the_sizes_of_the_front_ends_structures() {
        assert_eq!((CRYPTO_SESSION_OLD, CRYPTO_SESSION_NEW), (632, 1072));
    }

    #[test]
    fn both_layouts_say_the_same() {
        for new in [false, true] {
            let body = symmetric_body(new, 16, 512);
            let session = CryptoSession::decode(&body);
            let expected = CryptoParams::Symmetric {
                cipher_algo: 1,
                hash_algo: 2,
                digest_len: 3,
                aad_len: 4,
                op_type: 5,
                direction: 6,
                hash_mode: 7,
                chain_order: 8,
                cipher_key: vec![0xc1; 16],
                auth_key: vec![0xa2; 512],
            };
            let expected = CryptoSession::new(0x0102, expected, &body);
            assert_eq!(session, Ok(expected), "{new}");
        }
        let asymmetric = CryptoSession::decode(&asymmetric_body(1024)).map(|r| r.params);
        let expected = CryptoParams::Asymmetric {
            algo: 1,
            key_type: 2,
            padding_algo: 3,
            hash_algo: 4,
            key: vec![0xee; 1024],
        };
        assert_eq!(asymmetric, Ok(expected));
    }

    #[test]
    fn a_length_beyond_its_buffer_is_refused() {
        for new in [false, true] {
            for (cipher, auth) in [
                (65, 0),
                (0, 513),
                (u32::MAX, 0),
                (0, u32::MAX),
                (0x8000_0000, 1),
            ] {
                let body = symmetric_body(new, cipher, auth);
                assert!(CryptoSession::decode(&body).is_err(), "{cipher} {auth}");
            }
        }
        for len in [1025, u32::MAX] {
            let error = CryptoSession::decode(&asymmetric_body(len)).map_err(|e| e.to_string());
            assert_eq!(
                error,
                Err(format!("key length {len:#x} exceeds its buffer"))
            );
        }
    }

    #[test]
    fn other_sizes_and_operations_are_refused() {
        let body = symmetric_body(true, 0, 0);
        for size in [0, 8, 631, 633, 1071] {
            assert!(CryptoSession::decode(&body[..size]).is_err(), "{size}");
        }
        for op_code in [0u64, 3, 0x0404 << 32, u64::MAX] {
            let mut body = body.clone();
            body[..8].copy_from_slice(&op_code.to_ne_bytes());
            assert!(CryptoSession::decode(&body).is_err(), "{op_code:#x}");
        }
        let mut old = symmetric_body(false, 0, 0);
        old[8..12].copy_from_slice(&0x0404u32.to_ne_bytes());
        assert!(
            CryptoSession::decode(&old).is_err(),
            "asymmetric in the older layout"
        );
    }

    #[test]
    fn the_reply_has_the_id_where_the_request_had_it() {
        let id = |body: &[u8]| body.first_chunk().map(|bytes| i64::from_ne_bytes(*bytes));
        let old = encode_crypto_reply(CRYPTO_SESSION_OLD, 7).expect("a layout");
        assert_eq!((old.len(), id(&old)), (632, Some(7)));
        let new = encode_crypto_reply(CRYPTO_SESSION_NEW, -1).expect("a layout");
        assert_eq!((new.len(), id(&new[1064..])), (1072, Some(-1)));
        assert_eq!(encode_crypto_reply(700, 0), None);
    }
}

//! `vu_crypto_session`: what a crypto device is asked to create.

use std::ffi::c_void;
use std::ptr;

use crate::protocol::messages::{CryptoParams, CryptoSession};

use super::structs::layout;

/// A crypto session that a device is asked to create; see
/// vu_device_ops.create_crypto_session. The library makes it, and later versions
/// may append fields. The numbers are those of the virtio specification (1.3,
/// 5.9); what does not belong to the kind of session is 0.
#[repr(C)]
pub struct vu_crypto_session {
    /// VIRTIO_CRYPTO_*_CREATE_SESSION. Of the service AKCIPHER: asymmetric.
    pub op_code: u64,
    /// Symmetric: the cipher. Asymmetric: the algorithm.
    pub algo: u32,
    /// Symmetric: the hash or MAC. Asymmetric: the hash.
    pub hash_algo: u32,
    /// Symmetric: bytes of a digest.
    pub digest_len: u32,
    /// Symmetric: bytes of additional authenticated data.
    pub aad_len: u32,
    /// Symmetric: VIRTIO_CRYPTO_SYM_OP_*.
    pub op_type: u32,
    /// Symmetric: VIRTIO_CRYPTO_OP_*.
    pub direction: u32,
    /// Symmetric: VIRTIO_CRYPTO_SYM_HASH_MODE_*.
    pub hash_mode: u32,
    /// Symmetric: VIRTIO_CRYPTO_SYM_ALG_CHAIN_ORDER_*.
    pub chain_order: u32,
    /// Asymmetric: VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_*.
    pub key_type: u32,
    /// Asymmetric: the padding.
    pub padding_algo: u32,
    /// Symmetric: the cipher's key. Asymmetric: the key.
    pub key: *const c_void,
    /// Its bytes, no more than there were in the request.
    pub key_len: usize,
    /// Symmetric: the authentication key.
    pub auth_key: *const c_void,
    /// Its bytes, no more than there were in the request.
    pub auth_key_len: usize,
    /// The request as it came: nothing in it has been checked but what is above.
    pub body: *const c_void,
    /// Its bytes: 632 or 1072.
    pub body_size: usize,
}

layout!(vu_crypto_session, 96, {
    op_code: 0,
    algo: 8,
    hash_algo: 12,
    digest_len: 16,
    aad_len: 20,
    op_type: 24,
    direction: 28,
    hash_mode: 32,
    chain_order: 36,
    key_type: 40,
    padding_algo: 44,
    key: 48,
    key_len: 56,
    auth_key: 64,
    auth_key_len: 72,
    body: 80,
    body_size: 88,
});

impl vu_crypto_session {
    /// Its pointers are into `session`.
    pub(super) fn new(session: &CryptoSession) -> Self {
        let mut c = vu_crypto_session {
            op_code: session.op_code,
            algo: 0,
            hash_algo: 0,
            digest_len: 0,
            aad_len: 0,
            op_type: 0,
            direction: 0,
            hash_mode: 0,
            chain_order: 0,
            key_type: 0,
            padding_algo: 0,
            key: ptr::null(),
            key_len: 0,
            auth_key: ptr::null(),
            auth_key_len: 0,
            body: session.body.as_ptr().cast(),
            body_size: session.body.len(),
        };
        match &session.params {
            CryptoParams::Symmetric {
                cipher_algo,
                hash_algo,
                digest_len,
                aad_len,
                op_type,
                direction,
                hash_mode,
                chain_order,
                cipher_key,
                auth_key,
            } => {
                (c.algo, c.hash_algo) = (*cipher_algo, *hash_algo);
                (c.digest_len, c.aad_len) = (*digest_len, *aad_len);
                (c.op_type, c.direction) = ((*op_type).into(), (*direction).into());
                (c.hash_mode, c.chain_order) = ((*hash_mode).into(), (*chain_order).into());
                (c.key, c.key_len) = (cipher_key.as_ptr().cast(), cipher_key.len());
                (c.auth_key, c.auth_key_len) = (auth_key.as_ptr().cast(), auth_key.len());
            }
            CryptoParams::Asymmetric {
                algo,
                key_type,
                padding_algo,
                hash_algo,
                key,
            } => {
                (c.algo, c.hash_algo) = (*algo, *hash_algo);
                (c.key_type, c.padding_algo) = (*key_type, *padding_algo);
                (c.key, c.key_len) = (key.as_ptr().cast(), key.len());
            }
        }
        c
    }
}

//! Bodies about a device's shared memory regions (virtio 1.3, 2.10).

use super::codec::BodyWriter;

/// A device has at most this many regions; the reply always speaks of all.
pub const MAX_SHMEM_REGIONS: usize = 256;

/// Encodes the reply to GET_SHMEM_CONFIG: the number of regions that have a size, then all sizes by their ID.
pub fn encode_shmem_config(sizes: &[u64]) -> Vec<u8> {
    let present = sizes.iter().filter(|&&size| size != 0).count();
    let padded = sizes.iter().chain(std::iter::repeat(&0));
    let head = BodyWriter::new(8 + 8 * MAX_SHMEM_REGIONS)
        .u32(present as u32)
        .u32(0);
    padded
        .take(MAX_SHMEM_REGIONS)
        .fold(head, |body, &size| body.u64(size))
        .finish()
}

/// The body of SHMEM_MAP and SHMEM_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemArea {
    pub region: u8,
    pub fd_offset: u64,
    pub offset: u64,
    pub len: u64,
    pub writable: bool,
}

impl ShmemArea {
    pub const SIZE: usize = 40;

    pub fn encode(&self) -> Vec<u8> {
        BodyWriter::new(Self::SIZE)
            .bytes(&[self.region, 0, 0, 0, 0, 0, 0, 0])
            .u64(self.fd_offset)
            .u64(self.offset)
            .u64(self.len)
            .u64(self.writable.into())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserShMemConfig};
    use vm_memory::ByteValued;

    #[test]
    fn the_layouts_are_those_of_the_vhost_crate() {
        let sizes = [0, 0x1000, 0x8000_0000];
        let mut all = [0; MAX_SHMEM_REGIONS];
        all[..3].copy_from_slice(&sizes);
        let config = VhostUserShMemConfig::new(2, &all);
        assert_eq!(encode_shmem_config(&sizes), config.as_slice());
        let area = ShmemArea {
            region: 7,
            fd_offset: 0x1000,
            offset: 0x2000,
            len: 0x3000,
            writable: true,
        };
        let theirs = VhostUserMMap {
            shmid: 7,
            padding: [0; 7],
            fd_offset: 0x1000,
            shm_offset: 0x2000,
            len: 0x3000,
            flags: VhostUserMMapFlags::WRITABLE.bits(),
        };
        assert_eq!(area.encode(), theirs.as_slice());
    }
}

//! Feature bits that are the library's business (virtio 1.3, section 6).

/// VIRTIO_RING_F_INDIRECT_DESC.
pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_RING_F_EVENT_IDX.
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub(crate) const VERSION_1: u64 = 1 << 32;

/// VIRTIO_F_ACCESS_PLATFORM: the driver's addresses may go through an IOMMU.
pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;

/// VIRTIO_F_RING_PACKED: the queues are packed ones, not split ones.
pub(crate) const RING_PACKED: u64 = 1 << 34;

/// Offered for every device.
pub(crate) const LIBRARY: u64 =
    INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM | RING_PACKED;

/// Bits 24 to 49 belong to the transport and the rings; a device class must not offer them.
pub(crate) const RESERVED: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

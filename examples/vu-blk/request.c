/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "request.h"

#include <endian.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>

#define STATUS_SIZE 1

_Static_assert(sizeof(struct virtio_blk_outhdr) == 16, "virtio_blk_req header");
_Static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == 16, "segment");

static bool in_bounds(const struct disk *disk, uint64_t sector, uint64_t count)
{
    uint64_t sectors = image_sectors(&disk->image);

    return sector <= sectors && count <= sectors - sector;
}

/*
 * Point the request at `length` bytes of data `skip` bytes into the buffers. The usual layout,
 * header and status in descriptors of their own, is used where it lies; any other is sliced.
 */
static bool set_data(struct request *request, const struct iovec *iov, uint32_t num, size_t skip,
                     size_t tail, size_t length)
{
    bool head_apart = !skip || iov[0].iov_len == skip;
    bool tail_apart = !tail || iov[num - 1].iov_len == tail;

    if (head_apart && tail_apart) {
        request->iov = iov + !!skip;
        request->iov_num = num - !!skip - !!tail;
    } else {
        request->own_iov = calloc(num, sizeof *request->own_iov);
        if (!request->own_iov) {
            return false;
        }
        int filled = vu_elem_iov_slice(iov, num, skip, length, request->own_iov, num);
        if (filled < 0) {
            free(request->own_iov);
            return false;
        }
        request->iov = request->own_iov;
        request->iov_num = (uint32_t)filled;
    }
    request->left = length;
    return true;
}

/* Fresh state in the element's private memory, whatever an earlier request left there. */
static struct request *new_request(vu_elem *elem, enum step step)
{
    struct request *request = elem->priv;

    *request = (struct request){ .elem = elem, .step = step };
    return request;
}

static bool is_writethrough(const struct disk *disk)
{
    /* Stored before the queues start or while the guest writes the field, when either mode is
     * right: no ordering is needed. */
    return atomic_load_explicit(&disk->writethrough, memory_order_relaxed);
}

static int begin_read(struct disk *disk, vu_elem *elem, uint64_t sector)
{
    uint32_t length = elem->in_len - STATUS_SIZE;

    if (length % SECTOR_SIZE || !in_bounds(disk, sector, length >> SECTOR_SHIFT)) {
        return VIRTIO_BLK_S_IOERR;
    }
    if (image_is_null(&disk->image) || !length) {
        return VIRTIO_BLK_S_OK;
    }
    struct request *request = new_request(elem, STEP_READ);
    request->offset = sector << SECTOR_SHIFT;
    if (!set_data(request, elem->in, elem->in_num, 0, STATUS_SIZE, length)) {
        return VIRTIO_BLK_S_IOERR;
    }
    return REQUEST_PENDING;
}

static int begin_write(struct disk *disk, vu_elem *elem, uint64_t sector)
{
    uint32_t length = elem->out_len - (uint32_t)sizeof(struct virtio_blk_outhdr);

    if (disk->image.read_only || length % SECTOR_SIZE ||
        !in_bounds(disk, sector, length >> SECTOR_SHIFT)) {
        return VIRTIO_BLK_S_IOERR;
    }
    if (image_is_null(&disk->image) || !length) {
        return VIRTIO_BLK_S_OK;
    }
    struct request *request = new_request(elem, STEP_WRITE);
    request->offset = sector << SECTOR_SHIFT;
    request->durable = is_writethrough(disk);
    if (!set_data(request, elem->out, elem->out_num, sizeof(struct virtio_blk_outhdr), 0,
                  length)) {
        return VIRTIO_BLK_S_IOERR;
    }
    return REQUEST_PENDING;
}

static int begin_flush(struct disk *disk, vu_elem *elem)
{
    if (image_is_null(&disk->image) || disk->image.read_only) {
        return VIRTIO_BLK_S_OK;
    }
    new_request(elem, STEP_SYNC);
    return REQUEST_PENDING;
}

static int get_id(const struct disk *disk, vu_elem *elem)
{
    size_t room = elem->in_len - STATUS_SIZE;
    size_t length = room < sizeof disk->serial ? room : sizeof disk->serial;

    vu_elem_write(elem, 0, disk->serial, length);
    return VIRTIO_BLK_S_OK;
}

/* Check one segment and turn it into bytes: VIRTIO_BLK_S_OK or the error. */
static int decode_range(const struct disk *disk, bool discard,
                        const struct virtio_blk_discard_write_zeroes *segment, struct range *range)
{
    uint64_t sector = le64toh(segment->sector);
    uint32_t count = le32toh(segment->num_sectors);
    uint32_t flags = le32toh(segment->flags);
    uint32_t known = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

    if (flags & ~known) {
        return VIRTIO_BLK_S_UNSUPP;
    }
    if (count > MAX_RANGE_SECTORS || !in_bounds(disk, sector, count)) {
        return VIRTIO_BLK_S_IOERR;
    }
    *range = (struct range){
        .offset = sector << SECTOR_SHIFT,
        .length = (uint64_t)count << SECTOR_SHIFT,
        .unmap = discard || flags,
    };
    return VIRTIO_BLK_S_OK;
}

/* Read and check every segment of a discard or write-zeroes request into `ranges`. */
static int decode_ranges(const struct disk *disk, const vu_elem *elem, bool discard,
                         struct range *ranges, uint32_t *num)
{
    struct virtio_blk_discard_write_zeroes segments[MAX_RANGES];
    size_t header = sizeof(struct virtio_blk_outhdr);
    size_t length = elem->out_len - header;

    if (!length || length % sizeof segments[0] || length > sizeof segments) {
        return VIRTIO_BLK_S_IOERR;
    }
    if (vu_elem_read(elem, header, segments, length) != length) {
        return VIRTIO_BLK_S_IOERR;
    }
    *num = 0;
    for (size_t i = 0; i < length / sizeof segments[0]; i++) {
        int status = decode_range(disk, discard, &segments[i], &ranges[*num]);
        if (status != VIRTIO_BLK_S_OK) {
            return status;
        }
        *num += ranges[*num].length != 0;
    }
    return VIRTIO_BLK_S_OK;
}

static int begin_ranges(struct disk *disk, vu_elem *elem, bool discard)
{
    struct range ranges[MAX_RANGES];
    uint32_t num;

    if (disk->image.read_only) {
        return VIRTIO_BLK_S_IOERR;
    }
    int status = decode_ranges(disk, elem, discard, ranges, &num);
    if (status != VIRTIO_BLK_S_OK || image_is_null(&disk->image) || !num) {
        return status;
    }
    struct request *request = new_request(elem, STEP_PUNCH);
    request->ranges = malloc(num * sizeof ranges[0]);
    if (!request->ranges) {
        return VIRTIO_BLK_S_IOERR;
    }
    memcpy(request->ranges, ranges, num * sizeof ranges[0]);
    request->range_num = num;
    request->discard = discard;
    request->durable = !discard && is_writethrough(disk);
    request_start_range(request);
    return REQUEST_PENDING;
}

static int begin(struct disk *disk, vu_elem *elem, const struct virtio_blk_outhdr *header)
{
    uint64_t sector = le64toh(header->sector);

    switch (le32toh(header->type)) {
    case VIRTIO_BLK_T_IN:
        return begin_read(disk, elem, sector);
    case VIRTIO_BLK_T_OUT:
        return begin_write(disk, elem, sector);
    case VIRTIO_BLK_T_FLUSH:
        return begin_flush(disk, elem);
    case VIRTIO_BLK_T_GET_ID:
        return get_id(disk, elem);
    case VIRTIO_BLK_T_DISCARD:
        return begin_ranges(disk, elem, true);
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return begin_ranges(disk, elem, false);
    default:
        return VIRTIO_BLK_S_UNSUPP;
    }
}

/* `written` covers the status byte, the last one, or drivers would not look at it. */
static void stage(vu_elem *elem, uint8_t status)
{
    vu_elem_write(elem, elem->in_len - STATUS_SIZE, &status, STATUS_SIZE);
    vu_vq_stage(vu_elem_vq(elem), elem, elem->in_len);
}

struct request *request_begin(struct disk *disk, vu_elem *elem)
{
    struct virtio_blk_outhdr header;

    /* Guest memory is read once; the guest may change it any time. */
    if (vu_elem_read(elem, 0, &header, sizeof header) != sizeof header ||
        elem->in_len < STATUS_SIZE) {
        vu_vq_stage(vu_elem_vq(elem), elem, 0);
        return NULL;
    }
    int status = begin(disk, elem, &header);
    if (status == REQUEST_PENDING) {
        return elem->priv;
    }
    stage(elem, (uint8_t)status);
    return NULL;
}

void request_finish(struct request *request, uint8_t status)
{
    free(request->own_iov);
    free(request->ranges);
    stage(request->elem, status);
}

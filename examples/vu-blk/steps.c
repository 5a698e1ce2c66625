/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The steps of a request, each one submission to io_uring. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "request.h"

#define MAX_SQE_IOV 1024 /* the kernel's UIO_MAXIOV */
#define ZERO_BUFFER_SIZE (64u << 10)

static char zero_buffer[ZERO_BUFFER_SIZE];

void request_start_range(struct request *request)
{
    const struct range *range = &request->ranges[request->range];

    request->step = range->unmap ? STEP_PUNCH : STEP_ZERO_RANGE;
    request->offset = range->offset;
    request->left = range->length;
}

static void prepare_data(struct request *request, int fd, struct io_uring_sqe *sqe)
{
    const struct iovec *iov = request->iov;
    unsigned num = request->iov_num < MAX_SQE_IOV ? request->iov_num : MAX_SQE_IOV;

    if (request->step == STEP_READ && num == 1) {
        io_uring_prep_read(sqe, fd, iov->iov_base, (unsigned)iov->iov_len, request->offset);
    } else if (request->step == STEP_READ) {
        io_uring_prep_readv(sqe, fd, iov, num, request->offset);
    } else if (num == 1) {
        io_uring_prep_write(sqe, fd, iov->iov_base, (unsigned)iov->iov_len, request->offset);
    } else {
        io_uring_prep_writev(sqe, fd, iov, num, request->offset);
    }
    if (request->durable) {
        sqe->rw_flags = RWF_DSYNC;
    }
}

static void prepare_zero_buffer(struct request *request, int fd, struct io_uring_sqe *sqe)
{
    unsigned length = request->left < ZERO_BUFFER_SIZE ? (unsigned)request->left : ZERO_BUFFER_SIZE;

    io_uring_prep_write(sqe, fd, zero_buffer, length, request->offset);
}

void request_prepare(struct request *request, int fd, struct io_uring_sqe *sqe)
{
    switch (request->step) {
    case STEP_READ:
    case STEP_WRITE:
        prepare_data(request, fd, sqe);
        break;
    case STEP_PUNCH:
        io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)request->offset, (off_t)request->left);
        break;
    case STEP_ZERO_RANGE:
        io_uring_prep_fallocate(sqe, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                (off_t)request->offset, (off_t)request->left);
        break;
    case STEP_ZERO_BUFFER:
        prepare_zero_buffer(request, fd, sqe);
        break;
    case STEP_SYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
}

/* Drop the first `count` bytes of the data; false if there is no memory for the rest's list. */
static bool consume(struct request *request, size_t count)
{
    while (request->iov_num && count >= request->iov->iov_len) {
        count -= request->iov->iov_len;
        request->iov++;
        request->iov_num--;
    }
    if (!count) {
        return true;
    }
    if (!request->own_iov) {
        size_t size = request->iov_num * sizeof *request->own_iov;
        request->own_iov = malloc(size);
        if (!request->own_iov) {
            return false;
        }
        memcpy(request->own_iov, request->iov, size);
        request->iov = request->own_iov;
    }
    struct iovec *first = request->own_iov + (request->iov - request->own_iov);
    first->iov_base = (char *)first->iov_base + count;
    first->iov_len -= count;
    return true;
}

static int advance_data(struct request *request, uint64_t done)
{
    /* Nothing more to read or no way to write: asking again would change nothing. */
    if (!done || done > request->left) {
        return VIRTIO_BLK_S_IOERR;
    }
    request->offset += done;
    request->left -= done;
    if (!request->left) {
        return VIRTIO_BLK_S_OK;
    }
    return consume(request, done) ? REQUEST_PENDING : VIRTIO_BLK_S_IOERR;
}

static int sync_or_finish(struct request *request)
{
    if (!request->durable) {
        return VIRTIO_BLK_S_OK;
    }
    request->durable = false;
    request->step = STEP_SYNC;
    return REQUEST_PENDING;
}

static int next_range(struct request *request)
{
    if (++request->range == request->range_num) {
        return sync_or_finish(request);
    }
    request_start_range(request);
    return REQUEST_PENDING;
}

/* The file system or the device cannot do this step. */
static bool is_unsupported(int error)
{
    return error == -EOPNOTSUPP || error == -EINVAL || error == -ENOSYS;
}

/*
 * A discard is a hint, so one that nobody understands has succeeded. Zeroes are a promise: if
 * they cannot be had one way, then another.
 */
static int fall_back(struct request *request, int fd)
{
    if (request->discard) {
        uint64_t range[] = { request->offset, request->left };
        ioctl(fd, BLKDISCARD, range);
        return next_range(request);
    }
    request->step = request->step == STEP_PUNCH ? STEP_ZERO_RANGE : STEP_ZERO_BUFFER;
    return REQUEST_PENDING;
}

static int advance_zero_buffer(struct request *request, uint64_t done)
{
    if (!done || done > request->left) {
        return VIRTIO_BLK_S_IOERR;
    }
    request->offset += done;
    request->left -= done;
    return request->left ? REQUEST_PENDING : next_range(request);
}

int request_advance(struct request *request, int fd, int res)
{
    if (res == -EINTR || res == -EAGAIN) {
        return REQUEST_PENDING;
    }
    bool whole_range = request->step == STEP_PUNCH || request->step == STEP_ZERO_RANGE;
    if (whole_range && is_unsupported(res)) {
        return fall_back(request, fd);
    }
    if (res < 0) {
        return VIRTIO_BLK_S_IOERR;
    }
    switch (request->step) {
    case STEP_READ:
    case STEP_WRITE:
        return advance_data(request, (uint64_t)res);
    case STEP_PUNCH:
    case STEP_ZERO_RANGE:
        return next_range(request);
    case STEP_ZERO_BUFFER:
        return advance_zero_buffer(request, (uint64_t)res);
    case STEP_SYNC:
        return VIRTIO_BLK_S_OK;
    }
    return VIRTIO_BLK_S_IOERR;
}

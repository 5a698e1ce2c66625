/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* One virtio-blk request: decoded, checked, and taken step by step to its status. */
#ifndef VU_BLK_REQUEST_H
#define VU_BLK_REQUEST_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <vu_server.h>

#include "image.h"

/* Limits that the config space announces and the decoder enforces. */
#define MAX_RANGES 16
#define MAX_RANGE_SECTORS (1u << 22)

struct range {
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes */
    bool unmap;
};

enum step {
    STEP_READ,
    STEP_WRITE,
    STEP_PUNCH,       /* deallocate the current range */
    STEP_ZERO_RANGE,  /* zero it, the file system's way */
    STEP_ZERO_BUFFER, /* zero it by writing */
    STEP_SYNC,
};

/* Lives in vu_elem.priv from request_begin() to request_finish(). */
struct request {
    vu_elem *elem;
    struct request *next; /* in the list of those that wait for room in the ring */
    const struct iovec *iov;
    uint32_t iov_num;
    enum step step;
    uint64_t offset; /* where the current step goes on, bytes */
    uint64_t left;   /* how much of it is left, bytes */
    struct iovec *own_iov;
    struct range *ranges;
    uint32_t range;
    uint32_t range_num;
    bool discard; /* the ranges may keep their contents */
    bool durable; /* on stable storage before it is completed */
};

/* What a request is checked against. */
struct disk {
    struct image image;
    _Atomic bool writethrough;
    char serial[20];
};

/* Returned beside VIRTIO_BLK_S_*: steps are left to be done. */
#define REQUEST_PENDING (-1)

/*
 * Take a freshly popped element. Either it is dealt with at once (staged with its status), or
 * the result is the request, which wants its steps done.
 */
struct request *request_begin(struct disk *disk, vu_elem *elem);

/* Begin with the range `request->range` says. */
void request_start_range(struct request *request);

/* The current step as a submission. */
void request_prepare(struct request *request, int fd, struct io_uring_sqe *sqe);

/* The step's result is `res`: REQUEST_PENDING, or the status of the whole request. */
int request_advance(struct request *request, int fd, int res);

/* Write the status and stage the element. */
void request_finish(struct request *request, uint8_t status);

#endif

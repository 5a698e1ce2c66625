/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the disk's sectors are kept in: a file, a block device, or nothing. */
#ifndef VU_BLK_IMAGE_H
#define VU_BLK_IMAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SECTOR_SHIFT 9
#define SECTOR_SIZE (1u << SECTOR_SHIFT)

struct image {
    int fd; /* -1: a null disk */
    bool block_device;
    bool read_only;
    _Atomic uint64_t sectors; /* written by the main thread, read by every queue */
    uint32_t logical_block;   /* bytes */
    uint32_t physical_block;  /* bytes */
    uint32_t optimal_io;      /* bytes, 0: unknown */
};

/* 0, or -1 after a line on stderr. */
int image_open(struct image *image, const char *path, bool read_only);
void image_open_null(struct image *image, uint64_t bytes, bool read_only);

/* Read the size again: 1 changed, 0 as before, -errno. */
int image_reread_size(struct image *image);
void image_close(struct image *image);

static inline bool image_is_null(const struct image *image)
{
    return image->fd < 0;
}

static inline uint64_t image_sectors(const struct image *image)
{
    /* The value stands alone: no other datum is published by it. */
    return atomic_load_explicit(&image->sectors, memory_order_relaxed);
}

#endif

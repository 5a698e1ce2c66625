/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

#define FILE_BLOCK 4096u

static int read_size(const struct image *image, uint64_t *bytes)
{
    if (image->block_device) {
        return ioctl(image->fd, BLKGETSIZE64, bytes) < 0 ? -errno : 0;
    }
    struct stat st;
    if (fstat(image->fd, &st) < 0) {
        return -errno;
    }
    *bytes = (uint64_t)st.st_size;
    return 0;
}

/* How the device likes to be addressed; what it does not say stays as it is. */
static void read_topology(struct image *image)
{
    int logical;
    unsigned int value;

    if (ioctl(image->fd, BLKSSZGET, &logical) == 0 && logical >= (int)SECTOR_SIZE) {
        image->logical_block = (uint32_t)logical;
    }
    image->physical_block = image->logical_block;
    if (ioctl(image->fd, BLKPBSZGET, &value) == 0 && value >= image->logical_block) {
        image->physical_block = value;
    }
    if (ioctl(image->fd, BLKIOOPT, &value) == 0) {
        image->optimal_io = value;
    }
}

/* 0, or -1 after a line on stderr. */
static int examine(struct image *image, const char *path)
{
    struct stat st;
    uint64_t bytes;

    if (fstat(image->fd, &st) < 0) {
        log_error("%s: %s", path, strerror(errno));
        return -1;
    }
    image->block_device = S_ISBLK(st.st_mode);
    if (!image->block_device && !S_ISREG(st.st_mode)) {
        log_error("%s: neither a regular file nor a block device", path);
        return -1;
    }
    int error = read_size(image, &bytes);
    if (error < 0) {
        log_error("%s: cannot read its size: %s", path, strerror(-error));
        return -1;
    }
    if (bytes < SECTOR_SIZE) {
        log_error("%s: %llu bytes is less than one sector of %u", path, (unsigned long long)bytes,
                  SECTOR_SIZE);
        return -1;
    }
    if (bytes % SECTOR_SIZE) {
        log_warning("%s: the last %llu bytes are no whole sector and not served", path,
                    (unsigned long long)(bytes % SECTOR_SIZE));
    }
    image->sectors = bytes >> SECTOR_SHIFT;
    image->logical_block = SECTOR_SIZE;
    image->physical_block = FILE_BLOCK;
    if (image->block_device) {
        read_topology(image);
    }
    return 0;
}

int image_open(struct image *image, const char *path, bool read_only)
{
    /* O_NONBLOCK: a FIFO given by mistake is reported, not waited for. */
    int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;

    *image = (struct image){ .fd = open(path, flags), .read_only = read_only };
    if (image->fd < 0) {
        log_error("%s: %s", path, strerror(errno));
        return -1;
    }
    if (examine(image, path) < 0) {
        image_close(image);
        return -1;
    }
    /* io_uring takes O_NONBLOCK as "fail rather than wait". */
    fcntl(image->fd, F_SETFL, flags & ~O_NONBLOCK);
    return 0;
}

void image_open_null(struct image *image, uint64_t bytes, bool read_only)
{
    *image = (struct image){
        .fd = -1,
        .read_only = read_only,
        .sectors = bytes >> SECTOR_SHIFT,
        .logical_block = SECTOR_SIZE,
        .physical_block = SECTOR_SIZE,
    };
}

int image_reread_size(struct image *image)
{
    uint64_t bytes;

    if (image_is_null(image)) {
        return 0;
    }
    int error = read_size(image, &bytes);
    if (error < 0) {
        return error;
    }
    uint64_t sectors = bytes >> SECTOR_SHIFT;
    return atomic_exchange_explicit(&image->sectors, sectors, memory_order_relaxed) != sectors;
}

void image_close(struct image *image)
{
    if (image->fd >= 0) {
        close(image->fd);
        image->fd = -1;
    }
}

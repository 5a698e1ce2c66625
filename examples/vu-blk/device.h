/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The virtio-blk device: its features, its config space, and what the library calls. */
#ifndef VU_BLK_DEVICE_H
#define VU_BLK_DEVICE_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stdint.h>
#include <vu_server.h>

#include "options.h"
#include "request.h"

struct device {
    struct disk disk;
    vu_server *server;
    /* The config space says writethrough because the driver cannot flush. */
    bool wce_changed;
    /* The front-end is gone, and why (0: it closed the connection). */
    void (*disconnected)(void *data, int error);
    void *data;
};

/* How the options and the image show in a virtio-blk config space. */
uint64_t device_features(const struct device *device);
void device_config(const struct device *device, const struct options *options,
                   struct virtio_blk_config *config);

/*
 * The device as a server of the library, not yet started. The queues' data (vu_vq_set_data())
 * are the engines that do their I/O, NULL for a null disk.
 */
int device_new_server(struct device *device, const struct options *options, vu_error **err);

/* Tell the guest the image's present size, if that has changed: 1, 0 or -errno. */
int device_update_capacity(struct device *device);

#endif

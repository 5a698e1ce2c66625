/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "device.h"

#include <endian.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "engine.h"
#include "log.h"

#define POP_BATCH 64
#define MAX_BATCHES 16 /* of one queue before the context's others have their turn */
#define SEG_MAX 126
#define DRAIN_TIMEOUT_MS 1000

/* --- config space --------------------------------------------------------------------- */

static uint32_t log2_of(uint32_t power)
{
    return (uint32_t)__builtin_ctz(power);
}

uint64_t device_features(const struct device *device)
{
    uint64_t features = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
                        1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_TOPOLOGY |
                        1ull << VIRTIO_BLK_F_CONFIG_WCE | 1ull << VIRTIO_BLK_F_MQ;

    if (device->disk.image.read_only) {
        return features | 1ull << VIRTIO_BLK_F_RO;
    }
    return features | 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
}

static uint32_t seg_max(const struct options *options)
{
    /* Header and status take a descriptor each. */
    uint32_t room = options->queue_size ? options->queue_size - 2 : SEG_MAX;

    return room < SEG_MAX ? room : SEG_MAX;
}

void device_config(const struct device *device, const struct options *options,
                   struct virtio_blk_config *config)
{
    const struct image *image = &device->disk.image;
    uint32_t blocks_per_physical = image->physical_block / image->logical_block;

    *config = (struct virtio_blk_config){
        .capacity = htole64(image_sectors(image)),
        .seg_max = htole32(seg_max(options)),
        .blk_size = htole32(image->logical_block),
        .physical_block_exp = (uint8_t)log2_of(blocks_per_physical),
        .min_io_size = htole16((uint16_t)blocks_per_physical),
        .opt_io_size = htole32(image->optimal_io / image->logical_block),
        .wce = 1,
        .num_queues = htole16((uint16_t)options->num_queues),
    };
    if (!image->read_only) {
        config->max_discard_sectors = htole32(MAX_RANGE_SECTORS);
        config->max_discard_seg = htole32(MAX_RANGES);
        config->discard_sector_alignment = htole32(image->physical_block / SECTOR_SIZE);
        config->max_write_zeroes_sectors = htole32(MAX_RANGE_SECTORS);
        config->max_write_zeroes_seg = htole32(MAX_RANGES);
        config->write_zeroes_may_unmap = 1;
    }
}

int device_update_capacity(struct device *device)
{
    int changed = image_reread_size(&device->disk.image);

    if (changed <= 0) {
        return changed;
    }
    uint64_t capacity = htole64(image_sectors(&device->disk.image));
    int error = vu_server_set_config(device->server, offsetof(struct virtio_blk_config, capacity),
                                     &capacity, sizeof capacity);
    return error < 0 ? error : 1;
}

/* --- cache mode ----------------------------------------------------------------------- */

static uint8_t get_wce(const struct device *device)
{
    uint8_t wce = 1;

    vu_server_get_config(device->server, offsetof(struct virtio_blk_config, wce), &wce, sizeof wce);
    return wce;
}

static void set_wce(struct device *device, uint8_t wce)
{
    if (get_wce(device) != wce) {
        vu_server_set_config(device->server, offsetof(struct virtio_blk_config, wce), &wce,
                             sizeof wce);
    }
}

static void set_writethrough(struct device *device, bool writethrough)
{
    atomic_store_explicit(&device->disk.writethrough, writethrough, memory_order_relaxed);
}

static void on_features_acked(void *dev, uint64_t features, uint64_t protocol_features)
{
    struct device *device = dev;
    bool can_flush = features & 1ull << VIRTIO_BLK_F_FLUSH;
    bool can_switch = features & 1ull << VIRTIO_BLK_F_CONFIG_WCE;

    (void)protocol_features;
    /* A driver that cannot flush must be able to rely on every write. */
    if (can_switch && !can_flush) {
        set_wce(device, 0);
        device->wce_changed = true;
    }
    set_writethrough(device, can_switch ? !get_wce(device) : !can_flush);
}

static void on_config_written(void *dev, uint32_t offset, uint32_t size)
{
    struct device *device = dev;

    (void)offset;
    (void)size;
    if (vu_server_features(device->server) & 1ull << VIRTIO_BLK_F_CONFIG_WCE) {
        set_writethrough(device, !get_wce(device));
    }
}

static void on_reset(void *dev)
{
    struct device *device = dev;

    /* What the driver wrote, the library has forgotten. */
    if (device->wce_changed) {
        set_wce(device, 1);
        device->wce_changed = false;
    }
    set_writethrough(device, false);
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    struct device *device = dev;

    (void)reason; /* the library has logged it */
    on_reset(device);
    if (device->disconnected) {
        device->disconnected(device->data, error);
    }
}

/* --- requests ------------------------------------------------------------------------- */

static void begin_batch(struct device *device, struct engine *engine, vu_elem **elems, int num)
{
    for (int i = 0; i < num; i++) {
        struct request *request = request_begin(&device->disk, elems[i]);
        if (request) {
            engine_add(engine, request);
        }
    }
}

static int on_kick(void *dev, vu_vq *vq)
{
    struct device *device = dev;
    struct engine *engine = vu_vq_data(vq);
    vu_elem *elems[POP_BATCH];
    int batches = 0;
    int num;

    while ((num = vu_vq_pop(vq, elems, POP_BATCH)) > 0) {
        begin_batch(device, engine, elems, num);
        if (++batches == MAX_BATCHES) {
            break;
        }
    }
    if (engine) {
        engine_run(engine);
    } else {
        vu_vq_flush(vq);
    }
    /* An error has been reported by the library, and the queue comes to no more kicks. */
    return num > 0 ? VU_AGAIN : 0;
}

static void on_queue_stopping(void *dev, vu_vq *vq, uint32_t reason)
{
    struct engine *engine = vu_vq_data(vq);

    (void)dev;
    (void)reason;
    /* What waits for room in the ring goes in as completions make some; each of them wakes the
     * context, so nothing is held that would need another kick. */
    if (engine) {
        engine_run(engine);
    }
}

static const vu_device_ops device_ops = {
    VU_DEVICE_OPS_INIT,
    .kick = on_kick,
    .queue_stopping = on_queue_stopping,
    .features_acked = on_features_acked,
    .config_written = on_config_written,
    .reset = on_reset,
    .disconnected = on_disconnected,
};

int device_new_server(struct device *device, const struct options *options, vu_error **err)
{
    struct virtio_blk_config space;
    struct virtio_blk_config writable = { .wce = 1 };
    vu_server_config config = VU_SERVER_CONFIG_INIT;

    device_config(device, options, &space);
    /* Zero-padded, and without a terminator when it fills the field. */
    memset(device->disk.serial, 0, sizeof device->disk.serial);
    memcpy(device->disk.serial, options->serial,
           strnlen(options->serial, sizeof device->disk.serial));

    config.name = "blk";
    config.features = device_features(device);
    config.num_queues = options->num_queues;
    config.max_queue_size = options->queue_size;
    config.config_space = &space;
    config.config_size = sizeof space;
    config.config_writable = &writable;
    config.elem_priv_size = sizeof(struct request);
    config.drain_timeout_ms = DRAIN_TIMEOUT_MS;
    config.log_level = options->verbose ? VU_LOG_DEBUG : VU_LOG_WARNING;
    config.log = log_library;
    return vu_server_new(&config, &device_ops, device, &device->server, err);
}

/* A hung device: the drain gives up, and what it still holds stays usable after the server is freed. */
#define _GNU_SOURCE
#include "echo-device.h"

struct device {
    struct rig rig;
    vu_elem *held;
    int orphaned, destroyed;
};

static int on_kick(void *dev, vu_vq *vq)
{
    struct device *device = dev;

    if (!device->held && ok(vu_vq_pop(vq, &device->held, 1)) == 1) {
        ok(vu_vq_inflight_inc(vq));
        ok(vu_server_inflight_inc(device->rig.server));
        vu_ctx_quit(device->rig.ctx);
    }
    return 0;
}

static void on_orphaned(void *dev, uint32_t index)
{
    check(index == 0);
    ((struct device *)dev)->orphaned++;
}

static void on_destroy(void *dev)
{
    ((struct device *)dev)->destroyed++;
}

static void must_not_log(void *opaque, int level, const char *message)
{
    (void)level;
    if (*(int *)opaque)
        test_check(false, message, __FILE__, __LINE__);
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = on_kick,
                               .orphaned = on_orphaned, .destroy = on_destroy};
    vu_server_config config = test_config();
    static struct device device;
    pthread_t thread;
    char bytes[8];
    vu_vq *vq;
    vu_ctx *ctx;

    watchdog(50);
    config.drain_timeout_ms = 50;
    config.log = must_not_log;
    config.log_opaque = &device.destroyed;
    config.log_level = VU_LOG_DEBUG;
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&device.rig, &config, &ops, &device, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    ok(fe_start(&device.rig.fe));
    rig_submit(&device.rig, 0, 8, 8);
    pthread_join(thread, NULL);
    check(device.held != NULL);
    vq = vu_elem_vq(device.held);
    ok(vu_ctx_adopt(ctx));

    ok(vu_server_stop(device.rig.server));
    check(device.orphaned == 1);
    check(vu_server_vq(device.rig.server, 0) != vq);
    ok(vu_server_free(device.rig.server));
    check(device.destroyed == 1);
    ok(vu_ctx_free(ctx));

    /* Memory, queue and server are still there for what is in flight. */
    check(vu_elem_read(device.held, 0, bytes, 8) == 8 && memcmp(bytes, "xxxxxxxx", 8) == 0);
    check(vu_elem_write(device.held, 0, bytes, 8) == 8);
    check(vu_vq_index(vq) == 0 && vu_vq_server(vq) == NULL);
    ok(vu_elem_complete(device.held, 8));
    ok(vu_vq_inflight_dec(vq));
    ok(vu_server_inflight_dec(device.rig.server));
    fe_destroy(&device.rig.fe);
    return 0;
}

/* Inside every callback: what must not be called says so and changes nothing, the rest works. */
#define _GNU_SOURCE
#include "echo-device.h"

enum callback {
    KICK,
    QUEUE_STARTED,
    QUEUE_STOPPING,
    QUEUE_STOPPED,
    CONNECTED,
    DISCONNECTED,
    FEATURES_ACKED,
    RESET,
    STOPPED,
    CALLBACKS,
};

struct device {
    struct rig rig;
    int seen[CALLBACKS];
};

static void call_everything(void *dev, enum callback callback)
{
    struct device *device = dev;
    vu_server *server = device->rig.server;
    vu_ctx *ctx = device->rig.ctx;
    vu_server_stats stats = VU_SERVER_STATS_INIT;

    device->seen[callback]++;
    err(vu_server_start(server, "unix:/nowhere", ctx, NULL), -EDEADLK);
    err(vu_server_stop(server), -EDEADLK);
    err(vu_server_detach_ctx(server), -EDEADLK);
    if (callback != STOPPED)
        err(vu_server_free(server), -EDEADLK);
    err(vu_ctx_free(ctx), -EBUSY);
    ok(vu_ctx_adopt(ctx));
    ok(vu_ctx_flush(ctx));
    ok(vu_server_get_stats(server, &stats));
    check(vu_server_vq(server, 0) != NULL);
    check(vu_server_is_stopped(server) == (callback == STOPPED));
}

static int on_kick(void *dev, vu_vq *vq)
{
    call_everything(dev, KICK);
    err(vu_server_attach_ctx(vu_vq_server(vq), ((struct device *)dev)->rig.ctx), -EBUSY);
    return echo_kick(dev, vq);
}

static void on_queue_started(void *dev, vu_vq *vq)
{
    check(vu_vq_index(vq) == 0);
    call_everything(dev, QUEUE_STARTED);
}

static void on_queue_stopping(void *dev, vu_vq *vq, uint32_t reason)
{
    check(vu_vq_index(vq) == 0 && reason >= VU_STOP_RECALL && reason <= VU_STOP_BROKEN);
    call_everything(dev, QUEUE_STOPPING);
}

static void on_queue_stopped(void *dev, uint32_t index)
{
    check(index == 0);
    call_everything(dev, QUEUE_STOPPED);
}

static void on_connected(void *dev)
{
    call_everything(dev, CONNECTED);
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    check(error == 0 && reason != NULL);
    call_everything(dev, DISCONNECTED);
    ok(vu_server_request_stop(((struct device *)dev)->rig.server));
}

static void on_features_acked(void *dev, uint64_t features, uint64_t protocol_features)
{
    (void)features;
    (void)protocol_features;
    call_everything(dev, FEATURES_ACKED);
}

static void on_reset(void *dev)
{
    call_everything(dev, RESET);
}

static void on_stopped(void *dev)
{
    call_everything(dev, STOPPED);
    vu_ctx_quit(((struct device *)dev)->rig.ctx);
}

int main(void)
{
    const vu_device_ops ops = {
        VU_DEVICE_OPS_INIT,
        .kick = on_kick,
        .queue_started = on_queue_started,
        .queue_stopping = on_queue_stopping,
        .queue_stopped = on_queue_stopped,
        .connected = on_connected,
        .disconnected = on_disconnected,
        .features_acked = on_features_acked,
        .reset = on_reset,
        .stopped = on_stopped,
    };
    const vu_server_config config = test_config();
    static struct device device;
    uint32_t written;
    pthread_t thread;
    vu_ctx *ctx;

    watchdog(50);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&device.rig, &config, &ops, &device, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    ok(fe_start(&device.rig.fe));
    rig_submit(&device.rig, 0, 16, 16);
    ok(fe_wait_used(&device.rig.fe, 0, &written));
    ok(fe_stop_queue(&device.rig.fe, 0));
    ok(fe_set(&device.rig.fe, FE_RESET_OWNER, NULL, 0, NULL, 0));
    fe_disconnect(&device.rig.fe);
    pthread_join(thread, NULL);
    for (int i = 0; i < CALLBACKS; i++)
        check(device.seen[i] >= 1);
    ok(vu_server_free(device.rig.server));
    ok(vu_ctx_free(ctx));
    fe_destroy(&device.rig.fe);
    return 0;
}

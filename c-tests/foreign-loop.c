/* A loop over poll(2) drives a device; watches come, go, and may fire late. */
#define _GNU_SOURCE
#include "echo-device.h"
#include "poll-loop.h"

static void *front_end(void *data)
{
    struct rig *rig = data;
    uint32_t written;

    ok(fe_start(&rig->fe));
    for (int i = 0; i < 100; i++) {
        rig->fe.mem_used = 64 << 10;
        rig_submit(rig, i % 2, 32, 32);
        ok(fe_wait_used(&rig->fe, i % 2, &written));
        check(written == 32);
    }
    ok(fe_stop(&rig->fe));
    return NULL;
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    (void)error;
    (void)reason;
    *(bool *)dev = true;
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = echo_kick,
                               .disconnected = on_disconnected};
    struct poll_loop loop = {.thread = pthread_self()};
    vu_server_config config = test_config();
    bool disconnected = false;
    struct rig rig;
    pthread_t thread;
    vu_ctx *ctx;

    watchdog(50);
    config.num_queues = 2;
    ok(vu_ctx_new(&poll_loop_ops, &loop, &ctx, NULL));
    check(loop.count == 1); /* the doorbell */
    rig_make(&rig, &config, &ops, &disconnected, ctx);
    check(pthread_create(&thread, NULL, front_end, &rig) == 0);
    while (!disconnected)
        ok(poll_loop_iterate(&loop, 1000));
    pthread_join(thread, NULL);
    check(loop.most == 3 && loop.count == 1);
    /* Late by far. */
    check(vu_watch_poll(loop.removed.data) == 0);
    loop.removed.fn(loop.removed.data, POLLIN);

    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    check(loop.count == 0 && loop.destroyed == 1);
    fe_destroy(&rig.fe);
    return 0;
}

/* A thread that polls: no descriptor is touched, every request is answered. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <sched.h>
#include <stdatomic.h>

static atomic_bool done;

static void *front_end(void *data)
{
    struct rig *rig = data;
    uint32_t written;
    int kicks = 0;

    ok(fe_start(&rig->fe));
    for (int i = 0; i < 200; i++) {
        struct fe_buf bufs[2];

        rig->fe.mem_used = 64 << 10;
        bufs[0] = (struct fe_buf){fe_alloc(&rig->fe, 8), 8, false};
        bufs[1] = (struct fe_buf){fe_alloc(&rig->fe, 8), 8, true};
        ok(fe_add(&rig->fe, 0, bufs, 2));
        kicks += ok(fe_kick(&rig->fe, 0));
        ok(fe_wait_used(&rig->fe, 0, &written));
        check(written == 8);
    }
    /* Notifications are off: at most while the queue started was one wanted. */
    check(kicks <= 1);
    ok(fe_stop(&rig->fe));
    return NULL;
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    (void)dev;
    (void)error;
    (void)reason;
    atomic_store(&done, true);
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = echo_kick,
                               .disconnected = on_disconnected};
    const vu_server_config config = test_config();
    struct rig rig;
    pthread_t thread;
    vu_ctx *ctx;

    watchdog(50);
    ok(vu_ctx_new_polled(&ctx, NULL));
    rig_make(&rig, &config, &ops, NULL, ctx);
    check(pthread_create(&thread, NULL, front_end, &rig) == 0);
    while (!atomic_load(&done))
        if (ok(vu_ctx_poll(ctx)) == 0)
            sched_yield();
    pthread_join(thread, NULL);
    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    fe_destroy(&rig.fe);
    return 0;
}

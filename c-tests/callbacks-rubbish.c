/* Callbacks that return what they must not are reported, and the device goes on. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <limits.h>
#include <stdatomic.h>

static const int rubbish[] = {-1, 2, 42, INT_MAX, INT_MIN};
#define ROUNDS (sizeof(rubbish) / sizeof(rubbish[0]))

static atomic_uint complaints;
static unsigned kicks;
static int set_watch_answer;

static int on_kick(void *dev, vu_vq *vq)
{
    ok(echo_kick(dev, vq));
    return rubbish[kicks++ % ROUNDS];
}

static void on_log(void *opaque, int level, const char *message)
{
    (void)opaque;
    check(level <= VU_LOG_WARNING && strstr(message, "kick returned") != NULL);
    atomic_fetch_add(&complaints, 1);
}

static int on_set_watch(void *loop, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    (void)loop;
    (void)fd;
    (void)events;
    (void)fn;
    (void)data;
    return set_watch_answer;
}

static void on_remove_watch(void *loop, int fd)
{
    (void)loop;
    (void)fd;
}

static void loops(void)
{
    const vu_ctx_ops ops = {VU_CTX_OPS_INIT, .set_watch = on_set_watch,
                            .remove_watch = on_remove_watch};
    vu_ctx *ctx;

    set_watch_answer = -ENOSPC;
    err(vu_ctx_new(&ops, NULL, &ctx, NULL), -ENOSPC);
    set_watch_answer = INT_MIN;
    err(vu_ctx_new(&ops, NULL, &ctx, NULL), -EIO);
    check(ctx == NULL);
    set_watch_answer = 7;
    ok(vu_ctx_new(&ops, NULL, &ctx, NULL));
    ok(vu_ctx_free(ctx));
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = on_kick};
    vu_server_config config = test_config();
    uint32_t written;
    struct rig rig;
    pthread_t thread;
    vu_ctx *ctx;

    watchdog(50);
    loops();
    config.log = on_log;
    config.log_level = VU_LOG_WARNING;
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&rig, &config, &ops, NULL, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    ok(fe_start(&rig.fe));
    for (unsigned i = 0; i < 2 * ROUNDS; i++) {
        rig_submit(&rig, 0, 16, 16);
        ok(fe_wait_used(&rig.fe, 0, &written));
        check(written == 16);
    }
    ok(fe_stop(&rig.fe));
    ok(vu_server_stop(rig.server));
    check(atomic_load(&complaints) == kicks);
    ok(vu_server_free(rig.server));
    vu_ctx_quit(ctx);
    pthread_join(thread, NULL);
    ok(vu_ctx_free(ctx));
    fe_destroy(&rig.fe);
    return 0;
}

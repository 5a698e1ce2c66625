/* destroy is called exactly once for what was handed over, also on failure. */
#include "fixture.h"

static int set_watch(void *loop, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    (void)loop;
    (void)fd;
    (void)events;
    (void)fn;
    (void)data;
    return 0;
}

static int set_watch_fails(void *loop, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    set_watch(loop, fd, events, fn, data);
    return -ENOSPC;
}

static void remove_watch(void *loop, int fd)
{
    (void)loop;
    (void)fd;
}

static void count(void *counter)
{
    ++*(int *)counter;
}

static void devices(void)
{
    vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = null_kick, .destroy = count};
    vu_server_config config = test_config();
    vu_server *server;
    int destroyed = 0;

    ok(vu_server_new(&config, &ops, &destroyed, &server, NULL));
    check(destroyed == 0);
    ok(vu_server_free(server));
    check(destroyed == 1);

    err(vu_server_new(NULL, &ops, &destroyed, &server, NULL), -EINVAL);
    check(destroyed == 2);
    err(vu_server_new(&config, &ops, &destroyed, NULL, NULL), -EINVAL);
    check(destroyed == 3);
    config.num_queues = 0;
    err(vu_server_new(&config, &ops, &destroyed, &server, NULL), -EINVAL);
    check(destroyed == 4);
    config = test_config();
    ops.kick = NULL;
    err(vu_server_new(&config, &ops, &destroyed, &server, NULL), -EINVAL);
    check(destroyed == 5);
    /* What cannot be read cannot be called. */
    ops.struct_size = 1;
    err(vu_server_new(&config, &ops, &destroyed, &server, NULL), -EINVAL);
    check(destroyed == 5);
}

static void loops(void)
{
    vu_ctx_ops ops = {VU_CTX_OPS_INIT, .set_watch = set_watch,
                      .remove_watch = remove_watch, .destroy = count};
    int destroyed = 0;
    vu_ctx *ctx;

    ok(vu_ctx_new(&ops, &destroyed, &ctx, NULL));
    check(destroyed == 0);
    ok(vu_ctx_free(ctx));
    check(destroyed == 1);

    ops.set_watch = set_watch_fails;
    err(vu_ctx_new(&ops, &destroyed, &ctx, NULL), -ENOSPC);
    check(destroyed == 2);
    ops.set_watch = NULL;
    err(vu_ctx_new(&ops, &destroyed, &ctx, NULL), -EINVAL);
    check(destroyed == 3);
    ops.set_watch = set_watch;
    ops.remove_watch = NULL;
    err(vu_ctx_new(&ops, &destroyed, &ctx, NULL), -EINVAL);
    check(destroyed == 4);
}

int main(void)
{
    devices();
    loops();
    return 0;
}

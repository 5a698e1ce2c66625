/* What each kind of context can do, and what is -ENOTSUP. */
#include "fixture.h"

#include <poll.h>

static int set_watch(void *loop, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    (void)loop;
    check(fd >= 0 && events == POLLIN && fn != NULL && data != NULL);
    check(vu_watch_poll(data) == 0);
    return 0;
}

static void remove_watch(void *loop, int fd)
{
    (void)loop;
    check(fd >= 0);
}

static void on_ready(void *data, uint32_t revents)
{
    (void)data;
    (void)revents;
}

static void epoll_context(void)
{
    vu_ctx *ctx;

    ok(vu_ctx_new_epoll(&ctx, NULL));
    check(vu_ctx_fd(ctx) >= 0);
    check(vu_ctx_dispatch(ctx, 0) == 0);
    err(vu_ctx_poll(ctx), -ENOTSUP);
    ok(vu_ctx_set_busy_poll(ctx, 1000));
    check(vu_ctx_dispatch(ctx, 0) == 0);
    ok(vu_ctx_flush(ctx));
    ok(vu_ctx_adopt(ctx));
    ok(vu_ctx_free(ctx));
}

static void others(vu_ctx *ctx)
{
    err(vu_ctx_fd(ctx), -ENOTSUP);
    err(vu_ctx_dispatch(ctx, 0), -ENOTSUP);
    err(vu_ctx_run(ctx), -ENOTSUP);
    err(vu_ctx_set_busy_poll(ctx, 1000), -ENOTSUP);
    err(vu_ctx_watch(ctx, 0, POLLIN, on_ready, NULL), -ENOTSUP);
    ok(vu_ctx_flush(ctx));
    ok(vu_ctx_adopt(ctx));
    ok(vu_ctx_free(ctx));
}

int main(void)
{
    const vu_ctx_ops ops = {VU_CTX_OPS_INIT, .set_watch = set_watch,
                            .remove_watch = remove_watch};
    vu_ctx *ctx;

    watchdog(50);
    epoll_context();
    ok(vu_ctx_new_polled(&ctx, NULL));
    check(vu_ctx_poll(ctx) == 0);
    others(ctx);
    ok(vu_ctx_new(&ops, NULL, &ctx, NULL));
    err(vu_ctx_poll(ctx), -ENOTSUP);
    others(ctx);
    return 0;
}

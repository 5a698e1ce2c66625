/* A context has one owner: whoever dispatched it last, and nobody beside a dispatch. */
#define _GNU_SOURCE
#include "fixture.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

static vu_ctx *ctx;

/* While the main thread is in a callback. */
static void *intrude(void *data)
{
    (void)data;
    err(vu_ctx_dispatch(ctx, 0), -EBUSY);
    err(vu_ctx_run(ctx), -EBUSY);
    err(vu_ctx_adopt(ctx), -EBUSY);
    err(vu_ctx_flush(ctx), -EXDEV);
    err(vu_ctx_free(ctx), -EBUSY);
    return NULL;
}

/* While nobody dispatches. */
static void *take_over(void *data)
{
    (void)data;
    err(vu_ctx_flush(ctx), -EXDEV);
    ok(vu_ctx_adopt(ctx));
    ok(vu_ctx_flush(ctx));
    return NULL;
}

static void on_thread(void *(*body)(void *))
{
    pthread_t thread;

    check(pthread_create(&thread, NULL, body, NULL) == 0);
    check(pthread_join(thread, NULL) == 0);
}

static void on_ready(void *data, uint32_t revents)
{
    (void)data;
    (void)revents;
    on_thread(intrude);
    err(vu_ctx_free(ctx), -EBUSY);
    ok(vu_ctx_adopt(ctx));
    ok(vu_ctx_flush(ctx));
}

int main(void)
{
    int fd = ok(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));

    watchdog(50);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    ok(vu_ctx_watch(ctx, fd, POLLIN, on_ready, NULL));
    check(ok(vu_ctx_dispatch(ctx, -1)) == 1);
    ok(vu_ctx_unwatch(ctx, fd));
    on_thread(take_over);
    err(vu_ctx_flush(ctx), -EXDEV);
    ok(vu_ctx_dispatch(ctx, 0));
    ok(vu_ctx_flush(ctx));
    ok(vu_ctx_free(ctx));
    close(fd);
    return 0;
}

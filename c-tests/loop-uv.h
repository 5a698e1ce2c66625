/* A loop of libuv's. */
#ifndef TEST_LOOP_UV_H
#define TEST_LOOP_UV_H

#include "loop.h"
#include "util.h"

#include <vu_server/uv.h>

struct uv_call {
    uv_timer_t timer;
    struct call call;
};

static inline int uv_new_ctx(void *loop, vu_ctx **ctx)
{
    return vu_ctx_new_uv(loop, ctx, NULL);
}

static inline void *uv_wrap(void *loop)
{
    return vu_uv_loop_new_(loop);
}

static inline void uv_run_until(void *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
}

static inline void uv_quit(void *loop)
{
    uv_stop(loop);
}

static inline void uv_turn(void *loop)
{
    uv_run(loop, UV_RUN_NOWAIT);
}

static inline void uv_call_closed(uv_handle_t *timer)
{
    free(timer->data);
}

static inline void uv_call_now(uv_timer_t *timer)
{
    struct uv_call *later = timer->data;

    later->call.fn(later->call.arg);
    uv_close((uv_handle_t *)timer, uv_call_closed);
}

static inline void uv_later(void *loop, void (*fn)(void *), void *arg)
{
    struct uv_call *later = calloc(1, sizeof(*later));

    check(later != NULL);
    later->call = (struct call){fn, arg};
    ok(uv_timer_init(loop, &later->timer));
    later->timer.data = later;
    ok(uv_timer_start(&later->timer, uv_call_now, 0, 0));
}

static inline void uv_count_active(uv_handle_t *handle, void *count)
{
    *(int *)count += uv_is_active(handle) != 0;
}

static inline int uv_watches(void *loop)
{
    int count = 0;

    uv_walk(loop, uv_count_active, &count);
    return count;
}

static inline struct loop uv_loop(uv_loop_t *uv)
{
    return (struct loop){.loop = uv, .new_ctx = uv_new_ctx, .ops = vu_uv_ops_(), .wrap = uv_wrap,
                         .run = uv_run_until, .quit = uv_quit, .turn = uv_turn, .later = uv_later,
                         .watches = uv_watches, .whole = true};
}

#endif

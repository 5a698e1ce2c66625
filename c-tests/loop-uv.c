/* <vu_server/uv.h>: the default loop, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-scenario.h"

#include <vu_server/uv.h>

/* A call of later() to come. */
struct call {
    uv_timer_t timer;
    void (*fn)(void *);
    void *arg;
};

static int new_ctx(void *loop, vu_ctx **ctx)
{
    return vu_ctx_new_uv(loop, ctx, NULL);
}

static void *wrap(void *loop)
{
    return vu_uv_loop_new_(loop);
}

static void run(void *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
}

static void quit(void *loop)
{
    uv_stop(loop);
}

static void turn(void *loop)
{
    uv_run(loop, UV_RUN_NOWAIT);
}

static void call_closed(uv_handle_t *timer)
{
    free(timer->data);
}

static void call_now(uv_timer_t *timer)
{
    struct call *call = timer->data;

    call->fn(call->arg);
    uv_close((uv_handle_t *)timer, call_closed);
}

static void later(void *loop, void (*fn)(void *), void *arg)
{
    struct call *call = calloc(1, sizeof(*call));

    check(call != NULL);
    call->fn = fn;
    call->arg = arg;
    ok(uv_timer_init(loop, &call->timer));
    call->timer.data = call;
    ok(uv_timer_start(&call->timer, call_now, 0, 0));
}

static void count_active(uv_handle_t *handle, void *count)
{
    *(int *)count += uv_is_active(handle) != 0;
}

static int watches(void *loop)
{
    int count = 0;

    uv_walk(loop, count_active, &count);
    return count;
}

static void *scenario(void *uv)
{
    const struct loop loop = {.loop = uv, .new_ctx = new_ctx, .ops = vu_uv_ops_(), .wrap = wrap,
                              .run = run, .quit = quit, .turn = turn, .later = later,
                              .watches = watches};

    loop_scenario(&loop);
    /* Nothing keeps it alive, and all handles are closed. */
    check(uv_run(uv, UV_RUN_DEFAULT) == 0);
    ok(uv_loop_close(uv));
    return NULL;
}

int main(void)
{
    uv_loop_t loop;
    pthread_t thread;

    watchdog(50);
    scenario(uv_default_loop());

    ok(uv_loop_init(&loop));
    check(pthread_create(&thread, NULL, scenario, &loop) == 0);
    pthread_join(thread, NULL);
    return 0;
}

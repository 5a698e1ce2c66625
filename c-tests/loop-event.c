/* <vu_server/event.h>: an event base, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-scenario.h"

#include <vu_server/event.h>

/* A call of later() to come. */
struct call {
    void (*fn)(void *);
    void *arg;
};

static int new_ctx(void *base, vu_ctx **ctx)
{
    return vu_ctx_new_event(base, ctx, NULL);
}

static void *wrap(void *base)
{
    return vu_event_loop_new_(base);
}

static void run(void *base)
{
    check(event_base_dispatch(base) == 0);
}

static void quit(void *base)
{
    check(event_base_loopbreak(base) == 0);
}

static void turn(void *base)
{
    check(event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK) >= 0);
}

static void call_now(evutil_socket_t fd, short events, void *data)
{
    struct call call = *(struct call *)data;

    (void)fd;
    (void)events;
    free(data);
    call.fn(call.arg);
}

static void later(void *base, void (*fn)(void *), void *arg)
{
    const struct timeval now = {0, 0};
    struct call *call = malloc(sizeof(*call));

    check(call != NULL);
    *call = (struct call){fn, arg};
    check(event_base_once(base, -1, EV_TIMEOUT, call_now, call, &now) == 0);
}

static int watches(void *base)
{
    return event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED);
}

static void *scenario(void *data)
{
    struct event_base *base = event_base_new();
    const struct loop loop = {.loop = base, .new_ctx = new_ctx, .ops = vu_event_ops_(),
                              .wrap = wrap, .run = run, .quit = quit, .turn = turn,
                              .later = later, .watches = watches};

    (void)data;
    check(base != NULL);
    loop_scenario(&loop);
    /* Nothing keeps it alive. */
    check(event_base_dispatch(base) == 1);
    event_base_free(base);
    return NULL;
}

int main(void)
{
    pthread_t thread;

    watchdog(50);
    scenario(NULL);

    check(pthread_create(&thread, NULL, scenario, NULL) == 0);
    pthread_join(thread, NULL);
    libevent_global_shutdown();
    return 0;
}

/* An event base of libevent's. */
#ifndef TEST_LOOP_EVENT_H
#define TEST_LOOP_EVENT_H

#include "loop.h"
#include "util.h"

#include <vu_server/event.h>

static inline int event_new_ctx(void *base, vu_ctx **ctx)
{
    return vu_ctx_new_event(base, ctx, NULL);
}

static inline void *event_wrap(void *base)
{
    return vu_event_loop_new_(base);
}

static inline void event_run(void *base)
{
    check(event_base_dispatch(base) == 0);
}

static inline void event_quit(void *base)
{
    check(event_base_loopbreak(base) == 0);
}

static inline void event_turn(void *base)
{
    check(event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK) >= 0);
}

static inline void event_call_now(evutil_socket_t fd, short events, void *data)
{
    struct call call = *(struct call *)data;

    (void)fd;
    (void)events;
    free(data);
    call.fn(call.arg);
}

static inline void event_later(void *base, void (*fn)(void *), void *arg)
{
    const struct timeval now = {0, 0};
    struct call *call = malloc(sizeof(*call));

    check(call != NULL);
    *call = (struct call){fn, arg};
    check(event_base_once(base, -1, EV_TIMEOUT, event_call_now, call, &now) == 0);
}

static inline int event_watches(void *base)
{
    return event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED);
}

static inline struct loop event_loop(struct event_base *base)
{
    return (struct loop){.loop = base, .new_ctx = event_new_ctx, .ops = vu_event_ops_(),
                         .wrap = event_wrap, .run = event_run, .quit = event_quit,
                         .turn = event_turn, .later = event_later, .watches = event_watches,
                         .whole = true};
}

#endif

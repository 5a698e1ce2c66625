/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/**
 * @file
 * vu-server in a libevent loop: a struct event_base as a vu_ctx.
 *
 * Static functions only; link the program with libevent (2.1 or newer).
 *
 * The events of a context are pending ones: event_base_dispatch() does not
 * return by itself before vu_ctx_free(), but after event_base_loopexit() or
 * event_base_loopbreak(). The base must not have been made with
 * EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST, which forbids descriptors that another
 * process has as well, as all kick descriptors are.
 *
 * Loops of one base cannot be nested. So vu_server_stop() works on the loop's
 * thread while no loop runs, and must not be called inside a callback of an
 * event: vu_server_request_stop() is for there.
 */
#ifndef VU_SERVER_EVENT_H
#define VU_SERVER_EVENT_H

#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <vu_server.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names with a `_` at the end are not for programs. */

struct vu_event_watch_ {
    struct event *event;
    struct vu_event_watch_ *next;
    int fd;
    vu_ctx_watch_fn fn;
    void *data;
};

struct vu_event_loop_ {
    struct event_base *base;
    struct event *timer; /* pending inside vu_event_poll_() only */
    struct vu_event_watch_ *watches;
};

static inline void vu_event_ready_(evutil_socket_t fd, short events, void *data)
{
    const struct vu_event_watch_ *watch = (const struct vu_event_watch_ *)data;

    (void)fd;
    /* It may free the watch. */
    watch->fn(watch->data,
              (uint32_t)((events & EV_READ ? POLLIN : 0) | (events & EV_WRITE ? POLLOUT : 0)));
}

static inline struct vu_event_watch_ **vu_event_find_(struct vu_event_loop_ *loop, int fd)
{
    struct vu_event_watch_ **at = &loop->watches;

    while (*at && (*at)->fd != fd)
        at = &(*at)->next;
    return at;
}

static inline void vu_event_free_watch_(struct vu_event_watch_ *watch)
{
    if (watch->event)
        event_free(watch->event);
    free(watch);
}

static inline void vu_event_remove_watch_(void *data, int fd)
{
    struct vu_event_watch_ **at = vu_event_find_((struct vu_event_loop_ *)data, fd);
    struct vu_event_watch_ *watch = *at;

    if (!watch)
        return;
    *at = watch->next;
    vu_event_free_watch_(watch);
}

static inline int vu_event_start_(struct vu_event_loop_ *loop, struct vu_event_watch_ *watch,
                                  short events)
{
    watch->event = event_new(loop->base, watch->fd, events, vu_event_ready_, watch);
    if (!watch->event)
        return -ENOMEM;
    errno = 0;
    if (event_add(watch->event, NULL) != 0)
        return errno ? -errno : -EIO;
    return 0;
}

static inline int vu_event_set_watch_(void *data, int fd, uint32_t events, vu_ctx_watch_fn fn,
                                      void *fn_data)
{
    struct vu_event_loop_ *loop = (struct vu_event_loop_ *)data;
    const short wanted = (short)(EV_PERSIST | (events & POLLIN ? EV_READ : 0) |
                                 (events & POLLOUT ? EV_WRITE : 0));
    struct vu_event_watch_ *watch;
    int rc;

    if (events & POLLPRI)
        return -ENOTSUP;
    watch = (struct vu_event_watch_ *)calloc(1, sizeof *watch);
    if (!watch)
        return -ENOMEM;
    watch->fd = fd;
    watch->fn = fn;
    watch->data = fn_data;
    vu_event_remove_watch_(loop, fd);
    rc = vu_event_start_(loop, watch, wanted);
    if (rc < 0) {
        vu_event_free_watch_(watch);
        return rc;
    }
    watch->next = loop->watches;
    loop->watches = watch;
    return 0;
}

static inline void vu_event_time_is_up_(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    (void)data;
}

static inline int vu_event_poll_(void *data, int timeout_ms)
{
    struct vu_event_loop_ *loop = (struct vu_event_loop_ *)data;
    struct timeval timeout;
    int rc;

    if (timeout_ms > 0) {
        timeout.tv_sec = timeout_ms / 1000;
        timeout.tv_usec = timeout_ms % 1000 * 1000;
        if (event_add(loop->timer, &timeout) != 0)
            return -ENOMEM;
    }
    rc = event_base_loop(loop->base, EVLOOP_ONCE | (timeout_ms == 0 ? EVLOOP_NONBLOCK : 0));
    event_del(loop->timer);
    /* A loop of this base is running already, and libevent has said so in its log. */
    return rc < 0 ? -EBUSY : 0;
}

static inline void vu_event_destroy_(void *data)
{
    struct vu_event_loop_ *loop = (struct vu_event_loop_ *)data;

    while (loop->watches)
        vu_event_remove_watch_(loop, loop->watches->fd);
    event_free(loop->timer);
    free(loop);
}

static inline struct vu_event_loop_ *vu_event_loop_new_(struct event_base *base)
{
    struct vu_event_loop_ *loop = (struct vu_event_loop_ *)calloc(1, sizeof *loop);

    if (!loop)
        return NULL;
    loop->base = base;
    loop->timer = evtimer_new(base, vu_event_time_is_up_, NULL);
    if (!loop->timer) {
        free(loop);
        return NULL;
    }
    return loop;
}

static inline vu_ctx_ops vu_event_ops_(void)
{
    vu_ctx_ops ops;

    memset(&ops, 0, sizeof ops);
    ops.struct_size = sizeof ops;
    ops.set_watch = vu_event_set_watch_;
    ops.remove_watch = vu_event_remove_watch_;
    ops.poll = vu_event_poll_;
    ops.destroy = vu_event_destroy_;
    return ops;
}

/**
 * Wraps an event base of libevent's. On the thread that runs it, which becomes
 * the owner, or while it is not running.
 *
 * @param base borrowed; must live until vu_ctx_free()
 * @return as vu_ctx_new(); -ENOMEM, without a vu_error
 */
VU_MUST_USE
static inline int vu_ctx_new_event(struct event_base *base, vu_ctx **ctx, vu_error **err)
{
    const vu_ctx_ops ops = vu_event_ops_();
    struct vu_event_loop_ *loop = vu_event_loop_new_(base);

    if (!loop) {
        if (ctx)
            *ctx = NULL;
        if (err)
            *err = NULL;
        return -ENOMEM;
    }
    return vu_ctx_new(&ops, loop, ctx, err);
}

#ifdef __cplusplus
}
#endif

#endif

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/**
 * @file
 * vu-server in a libuv loop: a uv_loop_t as a vu_ctx.
 *
 * Static functions only; link the program with libuv (1.14 or newer).
 *
 * The handles of a context are active: uv_run() does not return by itself
 * before vu_ctx_free(), but after uv_stop(). As always with libuv, handles are
 * closed by the loop: after vu_ctx_free(), run it once more before
 * uv_loop_close().
 *
 * uv_run() cannot be nested. So vu_server_stop() works on the loop's thread
 * while uv_run() does not run, and must not be called inside a callback of the
 * loop's: vu_server_request_stop() is for there.
 *
 * libuv makes the descriptors that it watches non-blocking, which the ones of
 * this library may be.
 */
#ifndef VU_SERVER_UV_H
#define VU_SERVER_UV_H

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>
#include <vu_server.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names with a `_` at the end are not for programs. */

struct vu_uv_watch_ {
    uv_poll_t handle;
    struct vu_uv_watch_ *next;
    int fd;
    int events; /* of libuv's */
    vu_ctx_watch_fn fn;
    void *data;
};

struct vu_uv_loop_ {
    uv_timer_t timer; /* runs inside vu_uv_poll_() only */
    uv_loop_t *loop;
    struct vu_uv_watch_ *watches;
};

static inline int vu_uv_events_(uint32_t events)
{
    return (events & POLLIN ? UV_READABLE : 0) | (events & POLLOUT ? UV_WRITABLE : 0) |
           (events & POLLPRI ? UV_PRIORITIZED : 0);
}

static inline uint32_t vu_uv_revents_(int events)
{
    return (uint32_t)((events & UV_READABLE ? POLLIN : 0) | (events & UV_WRITABLE ? POLLOUT : 0) |
                      (events & UV_PRIORITIZED ? POLLPRI : 0));
}

static inline void vu_uv_ready_(uv_poll_t *handle, int status, int events)
{
    const struct vu_uv_watch_ *watch = (const struct vu_uv_watch_ *)handle->data;

    watch->fn(watch->data, status < 0 ? (uint32_t)POLLERR : vu_uv_revents_(events));
    /* An error has stopped the handle, and what was to blame may be gone by now. */
    if (status < 0 && !uv_is_closing((uv_handle_t *)handle) && !uv_is_active((uv_handle_t *)handle))
        uv_poll_start(handle, watch->events, vu_uv_ready_);
}

static inline void vu_uv_watch_closed_(uv_handle_t *handle)
{
    free(handle->data);
}

static inline struct vu_uv_watch_ **vu_uv_find_(struct vu_uv_loop_ *loop, int fd)
{
    struct vu_uv_watch_ **at = &loop->watches;

    while (*at && (*at)->fd != fd)
        at = &(*at)->next;
    return at;
}

static inline void vu_uv_remove_watch_(void *data, int fd)
{
    struct vu_uv_watch_ **at = vu_uv_find_((struct vu_uv_loop_ *)data, fd);
    struct vu_uv_watch_ *watch = *at;

    if (!watch)
        return;
    *at = watch->next;
    /* Stops at once, so that `fd` may be closed; the memory is the loop's until it has closed it. */
    uv_close((uv_handle_t *)&watch->handle, vu_uv_watch_closed_);
}

static inline int vu_uv_add_watch_(struct vu_uv_loop_ *loop, int fd)
{
    struct vu_uv_watch_ *watch = (struct vu_uv_watch_ *)calloc(1, sizeof *watch);
    int rc;

    if (!watch)
        return -ENOMEM;
    rc = uv_poll_init(loop->loop, &watch->handle, fd);
    if (rc < 0) {
        free(watch);
        return rc;
    }
    watch->handle.data = watch;
    watch->fd = fd;
    watch->next = loop->watches;
    loop->watches = watch;
    return 0;
}

static inline int vu_uv_set_watch_(void *data, int fd, uint32_t events, vu_ctx_watch_fn fn,
                                   void *fn_data)
{
    struct vu_uv_loop_ *loop = (struct vu_uv_loop_ *)data;
    struct vu_uv_watch_ *watch;
    int rc = 0;

    if (!*vu_uv_find_(loop, fd))
        rc = vu_uv_add_watch_(loop, fd);
    if (rc < 0)
        return rc;
    watch = *vu_uv_find_(loop, fd);
    watch->events = vu_uv_events_(events);
    watch->fn = fn;
    watch->data = fn_data;
    rc = uv_poll_start(&watch->handle, watch->events, vu_uv_ready_);
    if (rc < 0)
        vu_uv_remove_watch_(loop, fd);
    return rc;
}

static inline void vu_uv_time_is_up_(uv_timer_t *timer)
{
    (void)timer;
}

static inline int vu_uv_poll_(void *data, int timeout_ms)
{
    struct vu_uv_loop_ *loop = (struct vu_uv_loop_ *)data;

    if (timeout_ms > 0) {
        /* The loop's idea of the time is as old as its last iteration. */
        uv_update_time(loop->loop);
        uv_timer_start(&loop->timer, vu_uv_time_is_up_, (uint64_t)timeout_ms, 0);
    }
    uv_run(loop->loop, timeout_ms == 0 ? UV_RUN_NOWAIT : UV_RUN_ONCE);
    uv_timer_stop(&loop->timer);
    return 0;
}

static inline void vu_uv_loop_closed_(uv_handle_t *timer)
{
    free(timer->data);
}

static inline void vu_uv_destroy_(void *data)
{
    struct vu_uv_loop_ *loop = (struct vu_uv_loop_ *)data;

    while (loop->watches)
        vu_uv_remove_watch_(loop, loop->watches->fd);
    uv_close((uv_handle_t *)&loop->timer, vu_uv_loop_closed_);
}

static inline struct vu_uv_loop_ *vu_uv_loop_new_(uv_loop_t *uv)
{
    struct vu_uv_loop_ *loop = (struct vu_uv_loop_ *)calloc(1, sizeof *loop);

    if (!loop)
        return NULL;
    loop->loop = uv;
    uv_timer_init(uv, &loop->timer);
    loop->timer.data = loop;
    return loop;
}

static inline vu_ctx_ops vu_uv_ops_(void)
{
    vu_ctx_ops ops;

    memset(&ops, 0, sizeof ops);
    ops.struct_size = sizeof ops;
    ops.set_watch = vu_uv_set_watch_;
    ops.remove_watch = vu_uv_remove_watch_;
    ops.poll = vu_uv_poll_;
    ops.destroy = vu_uv_destroy_;
    return ops;
}

/**
 * Wraps a loop of libuv's. On the thread that runs it, which becomes the owner,
 * or while it is not running.
 *
 * @param loop borrowed; must live until it has closed the handles of the
 *        context, after vu_ctx_free()
 * @return as vu_ctx_new(); -ENOMEM, without a vu_error
 */
VU_MUST_USE
static inline int vu_ctx_new_uv(uv_loop_t *loop, vu_ctx **ctx, vu_error **err)
{
    const vu_ctx_ops ops = vu_uv_ops_();
    struct vu_uv_loop_ *wrapped = vu_uv_loop_new_(loop);

    if (!wrapped) {
        if (ctx)
            *ctx = NULL;
        if (err)
            *err = NULL;
        return -ENOMEM;
    }
    return vu_ctx_new(&ops, wrapped, ctx, err);
}

#ifdef __cplusplus
}
#endif

#endif

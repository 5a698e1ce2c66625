/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/**
 * @file
 * vu-server in a GLib main loop: a GMainContext as a vu_ctx.
 *
 * Static functions only; link the program with glib-2.0 (2.58 or newer).
 *
 * vu_server_stop() works on the thread of the main loop, also inside callbacks
 * of other sources of the same GMainContext.
 */
#ifndef VU_SERVER_GLIB_H
#define VU_SERVER_GLIB_H

#include <errno.h>
#include <glib-unix.h>
#include <glib.h>
#include <string.h>
#include <vu_server.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names with a `_` at the end are not for programs. */

struct vu_glib_loop_ {
    GMainContext *context;
    GHashTable *sources; /* by descriptor, each owned */
};

struct vu_glib_watch_ {
    vu_ctx_watch_fn fn;
    void *data;
};

static inline gboolean vu_glib_ready_(gint fd, GIOCondition condition, gpointer data)
{
    /* GLib holds on to this while it calls us, whatever becomes of the source. */
    const struct vu_glib_watch_ *watch = (const struct vu_glib_watch_ *)data;

    (void)fd;
    watch->fn(watch->data, (uint32_t)condition);
    return G_SOURCE_CONTINUE;
}

static inline void vu_glib_end_source_(gpointer data)
{
    GSource *source = (GSource *)data;

    g_source_destroy(source);
    g_source_unref(source);
}

static inline int vu_glib_set_watch_(void *data, int fd, uint32_t events, vu_ctx_watch_fn fn,
                                     void *fn_data)
{
    struct vu_glib_loop_ *loop = (struct vu_glib_loop_ *)data;
    struct vu_glib_watch_ *watch = g_new(struct vu_glib_watch_, 1);
    /* A GIOCondition has the values of poll(2). */
    GSource *source = g_unix_fd_source_new(fd, (GIOCondition)events);

    watch->fn = fn;
    watch->data = fn_data;
    g_source_set_callback(source, G_SOURCE_FUNC(vu_glib_ready_), watch, g_free);
    /* A callback of the device's may run the loop, in which the others are still served. */
    g_source_set_can_recurse(source, TRUE);
    g_source_attach(source, loop->context);
    g_hash_table_replace(loop->sources, GINT_TO_POINTER(fd), source);
    return 0;
}

static inline void vu_glib_remove_watch_(void *data, int fd)
{
    struct vu_glib_loop_ *loop = (struct vu_glib_loop_ *)data;

    g_hash_table_remove(loop->sources, GINT_TO_POINTER(fd));
}

static inline gboolean vu_glib_time_is_up_(gpointer data)
{
    (void)data;
    return G_SOURCE_REMOVE;
}

static inline int vu_glib_poll_(void *data, int timeout_ms)
{
    struct vu_glib_loop_ *loop = (struct vu_glib_loop_ *)data;
    GSource *timer = NULL;

    /* Another thread runs it: GLib would wait for that one to end. */
    if (!g_main_context_acquire(loop->context))
        return -EBUSY;
    if (timeout_ms > 0) {
        timer = g_timeout_source_new((guint)timeout_ms);
        g_source_set_callback(timer, vu_glib_time_is_up_, NULL, NULL);
        g_source_attach(timer, loop->context);
    }
    g_main_context_iteration(loop->context, timeout_ms != 0);
    if (timer)
        vu_glib_end_source_(timer);
    g_main_context_release(loop->context);
    return 0;
}

static inline void vu_glib_destroy_(void *data)
{
    struct vu_glib_loop_ *loop = (struct vu_glib_loop_ *)data;

    g_hash_table_destroy(loop->sources);
    g_main_context_unref(loop->context);
    g_free(loop);
}

static inline struct vu_glib_loop_ *vu_glib_loop_new_(GMainContext *context)
{
    struct vu_glib_loop_ *loop = g_new(struct vu_glib_loop_, 1);

    loop->context = g_main_context_ref(context ? context : g_main_context_default());
    loop->sources = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, vu_glib_end_source_);
    return loop;
}

static inline vu_ctx_ops vu_glib_ops_(void)
{
    vu_ctx_ops ops;

    memset(&ops, 0, sizeof ops);
    ops.struct_size = sizeof ops;
    ops.set_watch = vu_glib_set_watch_;
    ops.remove_watch = vu_glib_remove_watch_;
    ops.poll = vu_glib_poll_;
    ops.destroy = vu_glib_destroy_;
    return ops;
}

/**
 * Wraps a main context of GLib's. On the thread that runs it, which becomes the
 * owner, or while it is not running. Each descriptor is a source of
 * G_PRIORITY_DEFAULT.
 *
 * @param context a reference is taken until vu_ctx_free(); NULL: the default
 *        one
 * @return as vu_ctx_new()
 */
VU_MUST_USE
static inline int vu_ctx_new_glib(GMainContext *context, vu_ctx **ctx, vu_error **err)
{
    const vu_ctx_ops ops = vu_glib_ops_();

    return vu_ctx_new(&ops, vu_glib_loop_new_(context), ctx, err);
}

#ifdef __cplusplus
}
#endif

#endif

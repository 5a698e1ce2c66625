/* A main context of GLib's. */
#ifndef TEST_LOOP_GLIB_H
#define TEST_LOOP_GLIB_H

#include "loop.h"
#include "util.h"

#include <vu_server/glib.h>

struct glib_loop {
    GMainContext *context;
    GMainContext *given; /* NULL for the default one */
    GMainLoop *loop;
};

static inline int glib_new_ctx(void *data, vu_ctx **ctx)
{
    return vu_ctx_new_glib(((struct glib_loop *)data)->given, ctx, NULL);
}

static inline void *glib_wrap(void *data)
{
    return vu_glib_loop_new_(((struct glib_loop *)data)->given);
}

static inline void glib_run(void *data)
{
    g_main_loop_run(((struct glib_loop *)data)->loop);
}

static inline void glib_quit(void *data)
{
    g_main_loop_quit(((struct glib_loop *)data)->loop);
}

static inline void glib_turn(void *data)
{
    g_main_context_iteration(((struct glib_loop *)data)->context, FALSE);
}

static inline gboolean glib_call_now(gpointer data)
{
    const struct call *call = data;

    call->fn(call->arg);
    return G_SOURCE_REMOVE;
}

static inline void glib_later(void *data, void (*fn)(void *), void *arg)
{
    struct call *call = g_new(struct call, 1);
    GSource *source = g_idle_source_new();

    *call = (struct call){fn, arg};
    g_source_set_callback(source, glib_call_now, call, g_free);
    g_source_attach(source, ((struct glib_loop *)data)->context);
    g_source_unref(source);
}

static inline int glib_watches(void *data)
{
    GMainContext *context = ((struct glib_loop *)data)->context;
    gint priority, timeout, count;

    check(g_main_context_acquire(context));
    g_main_context_prepare(context, &priority);
    count = g_main_context_query(context, G_MAXINT, &timeout, NULL, 0);
    g_main_context_release(context);
    return count;
}

static inline bool glib_inside(void *data)
{
    GMainContext *context = ((struct glib_loop *)data)->context;

    return g_main_context_is_owner(context) &&
           (context == g_main_context_default() ||
            !g_main_context_is_owner(g_main_context_default()));
}

static inline void glib_make(struct glib_loop *glib, GMainContext *given)
{
    glib->context = given ? given : g_main_context_default();
    glib->given = given;
    glib->loop = g_main_loop_new(given, FALSE);
}

static inline struct loop glib_loop(struct glib_loop *glib)
{
    return (struct loop){.loop = glib, .new_ctx = glib_new_ctx, .ops = vu_glib_ops_(),
                         .wrap = glib_wrap, .run = glib_run, .quit = glib_quit,
                         .turn = glib_turn, .later = glib_later, .watches = glib_watches,
                         .inside = glib_inside, .nests = true, .whole = true};
}

#endif

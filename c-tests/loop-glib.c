/* <vu_server/glib.h>: the default main context, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-scenario.h"

#include <vu_server/glib.h>

/* A call of later() to come. */
struct call {
    void (*fn)(void *);
    void *arg;
};

struct main_loop {
    GMainContext *context;
    GMainContext *given; /* NULL for the default one */
    GMainLoop *loop;
};

static int new_ctx(void *data, vu_ctx **ctx)
{
    return vu_ctx_new_glib(((struct main_loop *)data)->given, ctx, NULL);
}

static void *wrap(void *data)
{
    return vu_glib_loop_new_(((struct main_loop *)data)->given);
}

static void run(void *data)
{
    g_main_loop_run(((struct main_loop *)data)->loop);
}

static void quit(void *data)
{
    g_main_loop_quit(((struct main_loop *)data)->loop);
}

static void turn(void *data)
{
    g_main_context_iteration(((struct main_loop *)data)->context, FALSE);
}

static gboolean call_now(gpointer data)
{
    const struct call *call = data;

    call->fn(call->arg);
    return G_SOURCE_REMOVE;
}

static void later(void *data, void (*fn)(void *), void *arg)
{
    struct call *call = g_new(struct call, 1);
    GSource *source = g_idle_source_new();

    *call = (struct call){fn, arg};
    g_source_set_callback(source, call_now, call, g_free);
    g_source_attach(source, ((struct main_loop *)data)->context);
    g_source_unref(source);
}

static int watches(void *data)
{
    GMainContext *context = ((struct main_loop *)data)->context;
    gint priority, timeout, count;

    check(g_main_context_acquire(context));
    g_main_context_prepare(context, &priority);
    count = g_main_context_query(context, G_MAXINT, &timeout, NULL, 0);
    g_main_context_release(context);
    return count;
}

static void scenario(GMainContext *given)
{
    struct main_loop main_loop = {given ? given : g_main_context_default(), given,
                                  g_main_loop_new(given, FALSE)};
    const struct loop loop = {.loop = &main_loop, .new_ctx = new_ctx, .ops = vu_glib_ops_(),
                              .wrap = wrap, .run = run, .quit = quit, .turn = turn,
                              .later = later, .watches = watches, .nests = true};

    loop_scenario(&loop);
    g_main_loop_unref(main_loop.loop);
}

static void *thread_body(void *data)
{
    GMainContext *context = data;

    g_main_context_push_thread_default(context);
    scenario(context);
    g_main_context_pop_thread_default(context);
    return NULL;
}

int main(void)
{
    GMainContext *context;
    pthread_t thread;

    watchdog(50);
    scenario(NULL);

    context = g_main_context_new();
    check(pthread_create(&thread, NULL, thread_body, context) == 0);
    pthread_join(thread, NULL);
    g_main_context_unref(context);
    return 0;
}

/* <vu_server/glib.h>: the default main context, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-glib.h"
#include "loop-scenario.h"

static void with_loop(GMainContext *given, void (*test)(const struct loop *loop))
{
    struct glib_loop glib;
    struct loop loop;

    glib_make(&glib, given);
    loop = glib_loop(&glib);
    test(&loop);
    g_main_loop_unref(glib.loop);
}

static void *thread_body(void *data)
{
    GMainContext *context = data;

    g_main_context_push_thread_default(context);
    with_loop(context, loop_scenario);
    g_main_context_pop_thread_default(context);
    return NULL;
}

int main(void)
{
    GMainContext *context;
    pthread_t thread;

    watchdog(50);
    with_loop(NULL, loop_scenario);

    context = g_main_context_new();
    check(pthread_create(&thread, NULL, thread_body, context) == 0);
    pthread_join(thread, NULL);
    with_loop(context, loop_in_other_thread);
    g_main_context_unref(context);
    return 0;
}

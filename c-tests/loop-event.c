/* <vu_server/event.h>: an event base, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-event.h"
#include "loop-scenario.h"

static void hear_log(int severity, const char *message)
{
    (void)severity;
    (void)message;
}

static void poll_inside(void *data)
{
    vu_ctx_ops ops = vu_event_ops_();

    err(ops.poll(data, 0), -EBUSY);
    err(ops.poll(data, 100), -EBUSY);
}

/* Loops of a base do not nest, and the one that runs is none the worse for it. */
static void inside_of_a_callback(void)
{
    struct event_base *base = event_base_new();
    struct vu_event_loop_ *wrapped = vu_event_loop_new_(base);

    /* libevent says so. */
    event_set_log_callback(hear_log);
    event_later(base, poll_inside, wrapped);
    check(event_base_dispatch(base) == 1);
    event_set_log_callback(NULL);
    ok(vu_event_ops_().poll(wrapped, 0));
    vu_event_ops_().destroy(wrapped);
    event_base_free(base);
}

static void *scenario(void *data)
{
    struct event_base *base = event_base_new();
    struct loop loop;

    (void)data;
    check(base != NULL);
    loop = event_loop(base);
    loop_scenario(&loop);
    loop_in_other_thread(&loop);
    /* Nothing keeps it alive. */
    check(event_base_dispatch(base) == 1);
    event_base_free(base);
    return NULL;
}

int main(void)
{
    pthread_t thread;

    watchdog(50);
    inside_of_a_callback();
    scenario(NULL);

    check(pthread_create(&thread, NULL, scenario, NULL) == 0);
    pthread_join(thread, NULL);
    libevent_global_shutdown();
    return 0;
}

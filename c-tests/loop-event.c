/* <vu_server/event.h>: an event base, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-event.h"
#include "loop-scenario.h"

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
    scenario(NULL);

    check(pthread_create(&thread, NULL, scenario, NULL) == 0);
    pthread_join(thread, NULL);
    libevent_global_shutdown();
    return 0;
}

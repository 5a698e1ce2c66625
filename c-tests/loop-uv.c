/* <vu_server/uv.h>: the default loop, and another one in a thread of its own. */
#define _GNU_SOURCE
#include "loop-uv.h"
#include "loop-scenario.h"

static void *scenario(void *uv)
{
    const struct loop loop = uv_loop(uv);

    loop_scenario(&loop);
    loop_in_other_thread(&loop);
    /* Nothing keeps it alive, and all handles are closed. */
    check(uv_run(uv, UV_RUN_DEFAULT) == 0);
    ok(uv_loop_close(uv));
    return NULL;
}

int main(void)
{
    uv_loop_t loop;
    pthread_t thread;

    watchdog(50);
    scenario(uv_default_loop());

    ok(uv_loop_init(&loop));
    check(pthread_create(&thread, NULL, scenario, &loop) == 0);
    pthread_join(thread, NULL);
    return 0;
}

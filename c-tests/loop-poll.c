/* A loop of the program's own over poll(2), around vu_ctx_fd() and vu_ctx_dispatch(). */
#define _GNU_SOURCE
#include "loop-poll.h"
#include "loop-scenario.h"

int main(void)
{
    struct poll_loop own;
    const struct loop loop = poll_loop(&own);

    watchdog(50);
    poll_make(&own, false);
    loop_scenario(&loop);
    loop_in_other_thread(&loop);
    poll_end(&own);
    return 0;
}

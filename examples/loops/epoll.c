/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A device in a loop over epoll(7). Usage: epoll ADDRESS */
#include "echo.h"
#include "signals.h"

#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct epoll_event event = {.events = EPOLLIN};
    int epoll, signals;
    vu_server *server;
    bool end = false;
    vu_ctx *ctx;

    if (argc != 2)
        return 2;
    epoll = ok(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    signals = ok(open_signals(), "signalfd");
    ok(vu_ctx_new_epoll(&ctx, NULL), "vu_ctx_new_epoll");
    event.data.ptr = ctx;
    ok(epoll_ctl(epoll, EPOLL_CTL_ADD, vu_ctx_fd(ctx), &event), "epoll_ctl");
    event.data.ptr = NULL;
    ok(epoll_ctl(epoll, EPOLL_CTL_ADD, signals, &event), "epoll_ctl");
    server = echo_start(argv[1], ctx);
    while (!end) {
        if (epoll_wait(epoll, &event, 1, -1) < 1)
            continue;
        if (event.data.ptr)
            ok(vu_ctx_dispatch(event.data.ptr, 0), "vu_ctx_dispatch");
        else
            end = true;
    }
    epoll_ctl(epoll, EPOLL_CTL_DEL, vu_ctx_fd(ctx), NULL);
    echo_end(server, ctx);
    close(signals);
    close(epoll);
    return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A device in a loop over poll(2). Usage: poll ADDRESS */
#include "echo.h"
#include "signals.h"

#include <poll.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct pollfd fds[2];
    vu_server *server;
    vu_ctx *ctx;

    if (argc != 2)
        return 2;
    ok(vu_ctx_new_epoll(&ctx, NULL), "vu_ctx_new_epoll");
    fds[0] = (struct pollfd){.fd = vu_ctx_fd(ctx), .events = POLLIN};
    fds[1] = (struct pollfd){.fd = ok(open_signals(), "signalfd"), .events = POLLIN};
    server = echo_start(argv[1], ctx);
    while (!fds[1].revents) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents)
            ok(vu_ctx_dispatch(ctx, 0), "vu_ctx_dispatch");
    }
    echo_end(server, ctx);
    close(fds[1].fd);
    return 0;
}

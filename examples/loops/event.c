/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A device in an event loop of libevent's. Usage: event ADDRESS */
#include "echo.h"

#include <signal.h>
#include <vu_server/event.h>

static void on_signal(evutil_socket_t number, short events, void *base)
{
    (void)number;
    (void)events;
    event_base_loopbreak(base);
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    struct event *signals[2];
    vu_server *server;
    vu_ctx *ctx;

    if (argc != 2 || !base)
        return 2;
    for (int i = 0; i < 2; i++) {
        signals[i] = evsignal_new(base, i ? SIGTERM : SIGINT, on_signal, base);
        event_add(signals[i], NULL);
    }
    ok(vu_ctx_new_event(base, &ctx, NULL), "vu_ctx_new_event");
    server = echo_start(argv[1], ctx);
    event_base_dispatch(base);
    echo_end(server, ctx);
    for (int i = 0; i < 2; i++)
        event_free(signals[i]);
    event_base_free(base);
    return 0;
}

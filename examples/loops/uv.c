/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A device in a loop of libuv's. Usage: uv ADDRESS */
#include "echo.h"

#include <vu_server/uv.h>

static void on_signal(uv_signal_t *signal, int number)
{
    (void)number;
    uv_stop(signal->loop);
}

int main(int argc, char **argv)
{
    uv_loop_t *loop = uv_default_loop();
    uv_signal_t signals[2];
    vu_server *server;
    vu_ctx *ctx;

    if (argc != 2)
        return 2;
    for (int i = 0; i < 2; i++) {
        ok(uv_signal_init(loop, &signals[i]), "uv_signal_init");
        ok(uv_signal_start(&signals[i], on_signal, i ? SIGTERM : SIGINT), "uv_signal_start");
    }
    ok(vu_ctx_new_uv(loop, &ctx, NULL), "vu_ctx_new_uv");
    server = echo_start(argv[1], ctx);
    uv_run(loop, UV_RUN_DEFAULT);
    echo_end(server, ctx);
    for (int i = 0; i < 2; i++)
        uv_close((uv_handle_t *)&signals[i], NULL);
    /* Closes the handles of the context, too. */
    uv_run(loop, UV_RUN_DEFAULT);
    return uv_loop_close(loop) == 0 ? 0 : 1;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A device in a main loop of GLib's. Usage: glib ADDRESS */
#include "echo.h"

#include <signal.h>
#include <vu_server/glib.h>

static gboolean on_signal(gpointer loop)
{
    g_main_loop_quit(loop);
    return G_SOURCE_CONTINUE;
}

int main(int argc, char **argv)
{
    GMainLoop *loop = g_main_loop_new(NULL, FALSE);
    vu_server *server;
    vu_ctx *ctx;

    if (argc != 2)
        return 2;
    g_unix_signal_add(SIGINT, on_signal, loop);
    g_unix_signal_add(SIGTERM, on_signal, loop);
    ok(vu_ctx_new_glib(NULL, &ctx, NULL), "vu_ctx_new_glib");
    server = echo_start(argv[1], ctx);
    g_main_loop_run(loop);
    echo_end(server, ctx);
    g_main_loop_unref(loop);
    return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A device in a loop over io_uring. Usage: uring ADDRESS */
#include "echo.h"
#include "signals.h"

#include <unistd.h>
#include <vu_server/uring.h>

/* The only request of our own, the poll request of the signals, is done. */
static void on_signal(void *end, uint64_t user_data, int32_t res, uint32_t flags)
{
    (void)user_data;
    (void)res;
    (void)flags;
    *(bool *)end = true;
}

int main(int argc, char **argv)
{
    struct io_uring_sqe *sqe;
    struct io_uring ring;
    vu_server *server;
    bool end = false;
    vu_uring loop;
    vu_ctx *ctx;
    int signals;

    if (argc != 2)
        return 2;
    signals = ok(open_signals(), "signalfd");
    ok(io_uring_queue_init(64, &ring, 0), "io_uring_queue_init");
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_poll_add(sqe, signals, POLLIN);
    io_uring_sqe_set_data(sqe, &end);
    vu_uring_init(&loop, &ring, VU_URING_TAG, on_signal, &end);
    ok(vu_ctx_new_uring(&loop, &ctx, NULL), "vu_ctx_new_uring");
    server = echo_start(argv[1], ctx);
    while (!end)
        ok(vu_uring_iterate(&loop, -1), "vu_uring_iterate");
    echo_end(server, ctx);
    io_uring_queue_exit(&ring);
    close(signals);
    return 0;
}

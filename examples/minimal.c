/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The smallest useful device: a virtio entropy source. It has one queue and no configuration,
 * and each request is a buffer that wants random bytes.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <vu_server.h>

#define BATCH 16

static vu_ctx *loop;

/* 256 bytes at most, which getrandom() gives at once and whole; the driver asks again for more. */
static uint32_t fill(vu_elem *elem)
{
    char bytes[256];
    size_t wanted = elem->in_len < sizeof bytes ? elem->in_len : sizeof bytes;

    if (getrandom(bytes, wanted, 0) != (ssize_t)wanted)
        return 0;
    return (uint32_t)vu_elem_write(elem, 0, bytes, wanted);
}

/* There may be requests. One batch, then whatever else the loop serves has its turn. */
static int on_kick(void *dev, vu_vq *vq)
{
    vu_elem *elems[BATCH];
    int num = vu_vq_pop(vq, elems, BATCH);

    (void)dev;
    for (int i = 0; i < num; i++)
        vu_vq_stage(vq, elems[i], fill(elems[i])); /* goes to the driver with the batch */
    return num > 0 ? VU_AGAIN : 0;
}

static void on_log(void *opaque, int level, const char *message)
{
    (void)opaque;
    (void)level;
    fprintf(stderr, "minimal: %s\n", message);
}

static void on_signal(int number)
{
    (void)number;
    vu_ctx_quit(loop);
}

int main(int argc, char **argv)
{
    static const vu_device_ops ops = { VU_DEVICE_OPS_INIT, .kick = on_kick };
    vu_server_config config = VU_SERVER_CONFIG_INIT;
    vu_server *server = NULL;
    vu_error *err = NULL;

    if (argc != 2) {
        fprintf(stderr, "Usage: %s SOCKET-PATH\n", argv[0]);
        return 2;
    }
    config.name = "rng";
    config.num_queues = 1;
    config.log = on_log;
    config.log_level = VU_LOG_INFO;
    int error = vu_ctx_new_epoll(&loop, &err);
    if (error >= 0)
        error = vu_server_new(&config, &ops, NULL, &server, &err);
    if (error >= 0) {
        signal(SIGINT, on_signal);
        signal(SIGTERM, on_signal);
        error = vu_server_start(server, argv[1], loop, &err);
    }
    if (error >= 0) {
        fprintf(stderr, "minimal: listening on %s\n", argv[1]);
        error = vu_ctx_run(loop); /* until a signal comes */
    }
    if (error < 0)
        fprintf(stderr, "minimal: %s\n", err ? vu_error_message(err) : strerror(-error));
    vu_error_free(err);
    vu_server_stop(server);
    vu_server_free(server);
    vu_ctx_free(loop);
    return error < 0;
}

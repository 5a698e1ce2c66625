/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The device of the programs here: it sends back what it is sent. */
#ifndef LOOPS_ECHO_H
#define LOOPS_ECHO_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vu_server.h>

/* Ends the program if `rc` is -errno. */
static inline int ok(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-rc));
        exit(1);
    }
    return rc;
}

static inline int echo_kick(void *dev, vu_vq *vq)
{
    vu_elem *elem;

    (void)dev;
    while (vu_vq_pop(vq, &elem, 1) > 0) {
        char bytes[512];
        size_t len = vu_elem_read(elem, 0, bytes, sizeof(bytes));

        len = vu_elem_write(elem, 0, bytes, len);
        vu_vq_stage(vq, elem, (uint32_t)len);
    }
    return 0;
}

static inline vu_server *echo_start(const char *address, vu_ctx *ctx)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = echo_kick};
    vu_server_config config = VU_SERVER_CONFIG_INIT;
    vu_server *server = NULL;

    config.name = "echo";
    config.num_queues = 1;
    ok(vu_server_new(&config, &ops, NULL, &server, NULL), "vu_server_new");
    ok(vu_server_start(server, address, ctx, NULL), address);
    return server;
}

/* On the loop's thread, when the loop does not run any more. */
static inline void echo_end(vu_server *server, vu_ctx *ctx)
{
    ok(vu_server_stop(server), "vu_server_stop");
    ok(vu_server_free(server), "vu_server_free");
    ok(vu_ctx_free(ctx), "vu_ctx_free");
}

#endif

/*
 * A device that sends back what it is sent, and a front-end that is connected
 * to a server over a socket pair.
 */
#ifndef TEST_ECHO_DEVICE_H
#define TEST_ECHO_DEVICE_H

#include <pthread.h>
#include <sys/socket.h>

#include "fixture.h"
#include "frontend.h"

struct rig {
    struct fe fe;
    vu_server *server;
    vu_ctx *ctx;
};

/* Pops everything, writes back what was read. */
static inline int echo_kick(void *dev, vu_vq *vq)
{
    vu_elem *elem;

    (void)dev;
    while (vu_vq_pop(vq, &elem, 1) == 1) {
        char bytes[256];
        size_t n = vu_elem_read(elem, 0, bytes, sizeof(bytes));

        n = vu_elem_write(elem, 0, bytes, n);
        ok(vu_vq_stage(vq, elem, (uint32_t)n));
    }
    return 0;
}

/* A thread's body: runs the context until vu_ctx_quit(). */
static inline void *run_ctx(void *ctx)
{
    ok(vu_ctx_run(ctx));
    return NULL;
}

/* Server and front-end over a socket pair; the front-end is connected and has not said anything. */
static inline void rig_make(struct rig *rig, const vu_server_config *config,
                            const vu_device_ops *ops, void *dev, vu_ctx *ctx)
{
    char address[32];
    int pair[2];

    memset(rig, 0, sizeof(*rig));
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    sprintf(address, "fd:%d", pair[0]);
    rig->ctx = ctx;
    ok(fe_init(&rig->fe, 1 << 20, config->num_queues, 64));
    fe_adopt(&rig->fe, pair[1]);
    ok(vu_server_new(config, ops, dev, &rig->server, NULL));
    ok(vu_server_start(rig->server, address, ctx, NULL));
}

/* A request of `out` bytes of 'x' and room for `in` bytes; its head. */
static inline int rig_submit(struct rig *rig, unsigned queue, uint32_t out, uint32_t in)
{
    struct fe_buf bufs[2] = {
        {.ptr = fe_alloc(&rig->fe, out), .len = out},
        {.ptr = fe_alloc(&rig->fe, in), .len = in, .writable = true},
    };

    check(bufs[0].ptr && bufs[1].ptr);
    memset(bufs[0].ptr, 'x', out);
    return ok(fe_submit(&rig->fe, queue, bufs, 2));
}

#endif

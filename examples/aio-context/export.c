/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * vu-server in QEMU's AioContext: which function of QEMU's stands for which of the library's.
 * docs/integrating.md goes through it.
 */
#include "export.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <vu_server.h>

/* --- an AioContext as a vu_ctx --------------------------------------------------------------- */

typedef struct VuAioWatch {
    struct VuAioWatch *next;
    int fd;
    vu_ctx_watch_fn fn;
    void *data;
} VuAioWatch;

typedef struct VuAioLoop {
    AioContext *aio;
    VuAioWatch *watches;
} VuAioLoop;

static void watch_read(void *opaque)
{
    const VuAioWatch *watch = opaque;

    /* It may remove the watch, and then it is the last that happens here. */
    watch->fn(watch->data, POLLIN);
}

static void watch_write(void *opaque)
{
    const VuAioWatch *watch = opaque;

    watch->fn(watch->data, POLLOUT);
}

static bool watch_poll(void *opaque)
{
    const VuAioWatch *watch = opaque;

    return vu_watch_poll(watch->data) == 1;
}

static VuAioWatch **find_watch(VuAioLoop *loop, int fd)
{
    VuAioWatch **at = &loop->watches;

    while (*at && (*at)->fd != fd)
        at = &(*at)->next;
    return at;
}

static int loop_set_watch(void *opaque, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    VuAioLoop *loop = opaque;
    VuAioWatch **at = find_watch(loop, fd);

    if (!*at)
        *at = calloc(1, sizeof(**at));
    if (!*at)
        return -ENOMEM;
    (*at)->fd = fd;
    (*at)->fn = fn;
    (*at)->data = data;
    aio_set_fd_handler(loop->aio, fd, events & POLLIN ? watch_read : NULL,
                       events & POLLOUT ? watch_write : NULL, events & POLLIN ? watch_poll : NULL,
                       events & POLLIN ? watch_read : NULL, *at);
    return 0;
}

static void loop_remove_watch(void *opaque, int fd)
{
    VuAioLoop *loop = opaque;
    VuAioWatch **at = find_watch(loop, fd);
    VuAioWatch *watch = *at;

    if (!watch)
        return;
    *at = watch->next;
    aio_set_fd_handler(loop->aio, fd, NULL, NULL, NULL, NULL, NULL);
    free(watch);
}

static void loop_destroy(void *opaque)
{
    free(opaque);
}

/*
 * No `poll`: a thread of QEMU's never blocks in vu_server_stop(), it requests the stop and waits with
 * AIO_WAIT_WHILE(), which runs the main loop.
 */
static const vu_ctx_ops loop_ops = {
    VU_CTX_OPS_INIT,
    .set_watch = loop_set_watch,
    .remove_watch = loop_remove_watch,
    .destroy = loop_destroy,
};

/* --- the export ------------------------------------------------------------------------------ */

struct VuExport {
    BlockBackend *blk;
    AioContext *aio;
    vu_server *server;
    vu_ctx *ctx; /* of `aio`; NULL if there is none */
};

/* Both in the thread of the AioContext, where handlers of the context may be running otherwise. */
static void new_ctx_bh(void *opaque)
{
    VuExport *exp = opaque;
    VuAioLoop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return;
    loop->aio = exp->aio;
    /* On failure it has destroyed the loop and there is no context: the export stays detached. */
    if (vu_ctx_new(&loop_ops, loop, &exp->ctx, NULL) < 0)
        exp->ctx = NULL;
}

static void free_ctx_bh(void *opaque)
{
    VuExport *exp = opaque;

    /* Nothing is attached to it: the section is drained, or the server is stopped. */
    vu_ctx_free(exp->ctx);
    exp->ctx = NULL;
}

static void enter_aio_context(VuExport *exp, AioContext *aio)
{
    exp->aio = aio;
    aio_wait_bh_oneshot(aio, new_ctx_bh, exp);
}

static void leave_aio_context(VuExport *exp)
{
    if (exp->ctx)
        aio_wait_bh_oneshot(exp->aio, free_ctx_bh, exp);
}

/* BlockDevOps: a drained section. */
static void export_drained_begin(void *opaque)
{
    VuExport *exp = opaque;

    vu_server_request_detach(exp->server);
}

static bool export_drained_poll(void *opaque)
{
    const VuExport *exp = opaque;

    return !vu_server_is_quiesced(exp->server) || vu_server_has_inflight(exp->server);
}

static void export_drained_end(void *opaque)
{
    VuExport *exp = opaque;

    if (exp->ctx)
        vu_server_attach_ctx(exp->server, exp->ctx);
}

static const BlockDevOps export_dev_ops = {
    .drained_begin = export_drained_begin,
    .drained_poll = export_drained_poll,
    .drained_end = export_drained_end,
};

/* The backend moves, inside a drained section. */
static void export_detach_aio_context(void *opaque)
{
    leave_aio_context(opaque);
}

static void export_attached_aio_context(AioContext *aio, void *opaque)
{
    enter_aio_context(opaque, aio);
}

/* vu_server_config.wake, from any thread. */
static void export_wake(void *opaque)
{
    (void)opaque;
    aio_wait_kick();
}

/* The device, as far as it goes here: it flushes, and sends back what it was sent. */
static void request_done(void *opaque, int ret)
{
    vu_elem *elem = opaque;
    char bytes[512];
    size_t len = ret < 0 ? 0 : vu_elem_read(elem, 0, bytes, sizeof(bytes));

    len = vu_elem_write(elem, 0, bytes, len);
    vu_elem_complete(elem, (uint32_t)len);
}

static int export_kick(void *dev, vu_vq *vq)
{
    VuExport *exp = dev;
    vu_elem *elem;

    while (vu_vq_pop(vq, &elem, 1) > 0)
        blk_aio_flush(exp->blk, request_done, elem);
    return 0;
}

static const vu_device_ops export_ops = {VU_DEVICE_OPS_INIT, .kick = export_kick};

int vu_export_new(BlockBackend *blk, const char *address, VuExport **result)
{
    vu_server_config config = VU_SERVER_CONFIG_INIT;
    VuExport *exp = calloc(1, sizeof(*exp));
    int rc;

    if (!exp)
        return -ENOMEM;
    exp->blk = blk;
    config.num_queues = 1;
    config.wake = export_wake;
    rc = vu_server_new(&config, &export_ops, exp, &exp->server, NULL);
    if (rc < 0) {
        free(exp);
        return rc;
    }
    enter_aio_context(exp, blk_get_aio_context(blk));
    blk_set_dev_ops(blk, &export_dev_ops, exp);
    blk_add_aio_context_notifier(blk, export_attached_aio_context, export_detach_aio_context, exp);
    rc = exp->ctx ? vu_server_start(exp->server, address, exp->ctx, NULL) : -ENOMEM;
    if (rc < 0) {
        vu_export_delete(exp);
        return rc;
    }
    *result = exp;
    return 0;
}

void vu_export_delete(VuExport *exp)
{
    vu_server_request_stop(exp->server);
    /* The backend's requests go on meanwhile; `wake` tells of the end. */
    AIO_WAIT_WHILE_UNLOCKED(exp->aio, !vu_server_is_stopped(exp->server));
    blk_set_dev_ops(exp->blk, NULL, NULL);
    blk_add_aio_context_notifier(exp->blk, NULL, NULL, NULL);
    vu_server_free(exp->server);
    leave_aio_context(exp);
    free(exp);
}

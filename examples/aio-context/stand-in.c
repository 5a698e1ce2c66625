/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "stand-in.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_HANDLERS 64

struct handler {
    struct handler *next;
    int fd;
    IOHandler *io_read, *io_write, *io_poll_ready;
    AioPollFn *io_poll;
    void *opaque;
    bool deleted;
};

struct bh {
    struct bh *next;
    QEMUBHFunc *cb;
    void *opaque;
};

struct AioContext {
    int notifier;
    int walking; /* aio_poll()s on the stack; handlers are freed outside of all */
    struct handler *handlers;
    pthread_mutex_t bh_lock;
    struct bh *first_bh, **last_bh;
};

static void *allocate(size_t size)
{
    void *memory = calloc(1, size);

    if (!memory)
        abort();
    return memory;
}

/* --- the loop ------------------------------------------------------------------------------- */

AioContext *aio_context_new(void)
{
    AioContext *ctx = allocate(sizeof(*ctx));

    ctx->notifier = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ctx->notifier < 0)
        abort();
    pthread_mutex_init(&ctx->bh_lock, NULL);
    ctx->last_bh = &ctx->first_bh;
    return ctx;
}

static void free_deleted(AioContext *ctx)
{
    struct handler **at = &ctx->handlers;

    while (*at) {
        struct handler *handler = *at;

        if (!handler->deleted) {
            at = &handler->next;
            continue;
        }
        *at = handler->next;
        free(handler);
    }
}

void aio_context_unref(AioContext *ctx)
{
    free_deleted(ctx);
    /* Whoever set a handler removes it, and what was scheduled has run. */
    if (ctx->handlers || ctx->first_bh)
        abort();
    close(ctx->notifier);
    pthread_mutex_destroy(&ctx->bh_lock);
    free(ctx);
}

static void aio_notify(AioContext *ctx)
{
    eventfd_write(ctx->notifier, 1);
}

void aio_set_fd_handler(AioContext *ctx, int fd, IOHandler *io_read, IOHandler *io_write,
                        AioPollFn *io_poll, IOHandler *io_poll_ready, void *opaque)
{
    struct handler *handler;

    for (handler = ctx->handlers; handler; handler = handler->next)
        if (handler->fd == fd)
            handler->deleted = true;
    if (io_read || io_write) {
        handler = allocate(sizeof(*handler));
        *handler = (struct handler){ctx->handlers, fd, io_read, io_write, io_poll_ready,
                                    io_poll, opaque, false};
        ctx->handlers = handler;
    }
    if (ctx->walking == 0)
        free_deleted(ctx);
    aio_notify(ctx);
}

void aio_bh_schedule_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    struct bh *bh = allocate(sizeof(*bh));

    *bh = (struct bh){NULL, cb, opaque};
    pthread_mutex_lock(&ctx->bh_lock);
    *ctx->last_bh = bh;
    ctx->last_bh = &bh->next;
    pthread_mutex_unlock(&ctx->bh_lock);
    aio_notify(ctx);
}

/* Those that are there now. */
static bool run_bhs(AioContext *ctx)
{
    struct bh *bh;
    bool progress;

    pthread_mutex_lock(&ctx->bh_lock);
    bh = ctx->first_bh;
    ctx->first_bh = NULL;
    ctx->last_bh = &ctx->first_bh;
    pthread_mutex_unlock(&ctx->bh_lock);
    progress = bh != NULL;
    while (bh) {
        struct bh *next = bh->next;

        bh->cb(bh->opaque);
        free(bh);
        bh = next;
    }
    return progress;
}

/* Asks the handlers that can tell without a system call. */
static bool run_polled(AioContext *ctx)
{
    bool progress = false;

    for (struct handler *handler = ctx->handlers; handler; handler = handler->next) {
        if (!handler->deleted && handler->io_poll && handler->io_poll(handler->opaque)) {
            handler->io_poll_ready(handler->opaque);
            progress = true;
        }
    }
    return progress;
}

static bool run_ready(AioContext *ctx, bool blocking)
{
    struct pollfd fds[MAX_HANDLERS + 1] = {{.fd = ctx->notifier, .events = POLLIN}};
    struct handler *handlers[MAX_HANDLERS + 1];
    bool progress = false;
    eventfd_t count;
    nfds_t n = 1;

    for (struct handler *handler = ctx->handlers; handler; handler = handler->next) {
        if (handler->deleted)
            continue;
        if (n > MAX_HANDLERS)
            abort();
        fds[n].fd = handler->fd;
        fds[n].events =
            (short)((handler->io_read ? POLLIN : 0) | (handler->io_write ? POLLOUT : 0));
        handlers[n++] = handler;
    }
    if (poll(fds, n, blocking ? -1 : 0) < 0 && errno != EINTR)
        abort();
    if (fds[0].revents)
        eventfd_read(ctx->notifier, &count);
    for (nfds_t i = 1; i < n; i++) {
        const short revents = fds[i].revents;

        if (!handlers[i]->deleted && handlers[i]->io_read && revents & ~POLLOUT)
            handlers[i]->io_read(handlers[i]->opaque);
        if (!handlers[i]->deleted && handlers[i]->io_write && revents & ~POLLIN)
            handlers[i]->io_write(handlers[i]->opaque);
        progress |= revents != 0;
    }
    return progress;
}

bool aio_poll(AioContext *ctx, bool blocking)
{
    bool progress;

    ctx->walking++;
    progress = run_bhs(ctx);
    progress |= run_polled(ctx);
    progress |= run_ready(ctx, blocking && !progress);
    progress |= run_bhs(ctx);
    if (--ctx->walking == 0)
        free_deleted(ctx);
    return progress;
}

/* --- the main loop, and threads ------------------------------------------------------------- */

static AioContext *main_context;
static pthread_once_t main_context_once = PTHREAD_ONCE_INIT;

static void make_main_context(void)
{
    main_context = aio_context_new();
}

AioContext *qemu_get_aio_context(void)
{
    pthread_once(&main_context_once, make_main_context);
    return main_context;
}

void aio_wait_kick(void)
{
    aio_notify(qemu_get_aio_context());
}

struct wait_bh {
    QEMUBHFunc *cb;
    void *opaque;
    atomic_bool done;
};

static void run_wait_bh(void *opaque)
{
    struct wait_bh *wait = opaque;

    wait->cb(wait->opaque);
    atomic_store(&wait->done, true);
    aio_wait_kick();
}

void aio_wait_bh_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    struct wait_bh wait = {.cb = cb, .opaque = opaque};

    aio_bh_schedule_oneshot(ctx, run_wait_bh, &wait);
    AIO_WAIT_WHILE_UNLOCKED(ctx, !atomic_load(&wait.done));
}

struct IOThread {
    AioContext *ctx;
    pthread_t thread;
    bool stopping; /* on its own thread */
};

static void *iothread_run(void *opaque)
{
    IOThread *iothread = opaque;

    while (!iothread->stopping)
        aio_poll(iothread->ctx, true);
    return NULL;
}

static void iothread_stop_bh(void *opaque)
{
    ((IOThread *)opaque)->stopping = true;
}

IOThread *iothread_create(void)
{
    IOThread *iothread = allocate(sizeof(*iothread));

    iothread->ctx = aio_context_new();
    if (pthread_create(&iothread->thread, NULL, iothread_run, iothread) != 0)
        abort();
    return iothread;
}

AioContext *iothread_get_aio_context(IOThread *iothread)
{
    return iothread->ctx;
}

void iothread_destroy(IOThread *iothread)
{
    aio_bh_schedule_oneshot(iothread->ctx, iothread_stop_bh, iothread);
    pthread_join(iothread->thread, NULL);
    aio_context_unref(iothread->ctx);
    free(iothread);
}

/* --- the block backend ---------------------------------------------------------------------- */

struct BlockBackend {
    AioContext *ctx;
    atomic_int in_flight;
    int quiesce_counter;
    atomic_bool drained;
    BlockDevOps dev_ops;
    void *dev_opaque;
    void (*attached)(AioContext *ctx, void *opaque);
    void (*detach)(void *opaque);
    void *notifier_opaque;
};

BlockBackend *blk_new(AioContext *ctx)
{
    BlockBackend *blk = allocate(sizeof(*blk));

    blk->ctx = ctx;
    return blk;
}

void blk_unref(BlockBackend *blk)
{
    free(blk);
}

BlockDriverState *blk_bs(BlockBackend *blk)
{
    return blk;
}

AioContext *blk_get_aio_context(BlockBackend *blk)
{
    return blk->ctx;
}

void blk_set_dev_ops(BlockBackend *blk, const BlockDevOps *ops, void *opaque)
{
    blk->dev_ops = ops ? *ops : (BlockDevOps){0};
    blk->dev_opaque = opaque;
}

void blk_add_aio_context_notifier(BlockBackend *blk,
                                  void (*attached_aio_context)(AioContext *ctx, void *opaque),
                                  void (*detach_aio_context)(void *opaque), void *opaque)
{
    blk->attached = attached_aio_context;
    blk->detach = detach_aio_context;
    blk->notifier_opaque = opaque;
}

int blk_set_aio_context(BlockBackend *blk, AioContext *ctx)
{
    bdrv_drained_begin(blk_bs(blk));
    if (blk->detach)
        blk->detach(blk->notifier_opaque);
    blk->ctx = ctx;
    if (blk->attached)
        blk->attached(ctx, blk->notifier_opaque);
    bdrv_drained_end(blk_bs(blk));
    return 0;
}

struct flush {
    BlockBackend *blk;
    BlockCompletionFunc *cb;
    void *opaque;
    int turns; /* of the loop that it takes yet */
};

static void flush_bh(void *opaque)
{
    struct flush *flush = opaque;

    if (--flush->turns > 0) {
        aio_bh_schedule_oneshot(flush->blk->ctx, flush_bh, flush);
        return;
    }
    flush->cb(flush->opaque, 0);
    atomic_fetch_sub(&flush->blk->in_flight, 1);
    aio_wait_kick();
    free(flush);
}

void blk_aio_flush(BlockBackend *blk, BlockCompletionFunc *cb, void *opaque)
{
    struct flush *flush = allocate(sizeof(*flush));

    /* A drained backend gets no requests. */
    if (atomic_load(&blk->drained))
        abort();
    atomic_fetch_add(&blk->in_flight, 1);
    *flush = (struct flush){blk, cb, opaque, 3};
    aio_bh_schedule_oneshot(blk->ctx, flush_bh, flush);
}

static bool is_busy(BlockBackend *blk)
{
    return atomic_load(&blk->in_flight) > 0 ||
           (blk->dev_ops.drained_poll && blk->dev_ops.drained_poll(blk->dev_opaque));
}

void bdrv_drained_begin(BlockDriverState *bs)
{
    if (++bs->quiesce_counter == 1 && bs->dev_ops.drained_begin)
        bs->dev_ops.drained_begin(bs->dev_opaque);
    AIO_WAIT_WHILE_UNLOCKED(bs->ctx, is_busy(bs));
    atomic_store(&bs->drained, true);
}

void bdrv_drained_end(BlockDriverState *bs)
{
    if (--bs->quiesce_counter > 0)
        return;
    atomic_store(&bs->drained, false);
    if (bs->dev_ops.drained_end)
        bs->dev_ops.drained_end(bs->dev_opaque);
}

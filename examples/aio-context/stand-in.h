/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * As much of an event loop and of a block backend as the mapping in export.c needs, under the names that
 * QEMU has for it. In QEMU, export.c includes block/aio.h, block/aio-wait.h and
 * system/block-backend.h instead, and this file and stand-in.c go.
 */
#ifndef AIO_STAND_IN_H
#define AIO_STAND_IN_H

#include <stdbool.h>

/* --- block/aio.h ---------------------------------------------------------------------------- */

typedef struct AioContext AioContext;
typedef void IOHandler(void *opaque);
typedef bool AioPollFn(void *opaque);
typedef void QEMUBHFunc(void *opaque);

AioContext *aio_context_new(void);
void aio_context_unref(AioContext *ctx);
/* Replaces the handlers of `fd`; all NULL: removes them. Here only on the context's own thread. */
void aio_set_fd_handler(AioContext *ctx, int fd, IOHandler *io_read, IOHandler *io_write,
                        AioPollFn *io_poll, IOHandler *io_poll_ready, void *opaque);
/* One iteration; may be nested. */
bool aio_poll(AioContext *ctx, bool blocking);
/* Any thread: calls it once, from aio_poll(). */
void aio_bh_schedule_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque);

/* --- block/aio-wait.h, main loop, I/O threads ----------------------------------------------- */

AioContext *qemu_get_aio_context(void);
/* Any thread: lets an AIO_WAIT_WHILE_UNLOCKED() look again. */
void aio_wait_kick(void);
/* On the main thread. */
void aio_wait_bh_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque);

/* On the main thread, and not inside a handler that the condition waits for. */
#define AIO_WAIT_WHILE_UNLOCKED(ctx, cond)                                                         \
    do {                                                                                           \
        (void)(ctx);                                                                               \
        while (cond)                                                                               \
            aio_poll(qemu_get_aio_context(), true);                                                \
    } while (0)

typedef struct IOThread IOThread;

IOThread *iothread_create(void);
AioContext *iothread_get_aio_context(IOThread *iothread);
void iothread_destroy(IOThread *iothread);

/* --- system/block-backend.h ----------------------------------------------------------------- */

/* One structure stands for the backend and for the node below it. */
typedef struct BlockBackend BlockBackend;
typedef BlockBackend BlockDriverState;

typedef struct BlockDevOps {
    void (*drained_begin)(void *opaque);
    bool (*drained_poll)(void *opaque);
    void (*drained_end)(void *opaque);
} BlockDevOps;

typedef void BlockCompletionFunc(void *opaque, int ret);

BlockBackend *blk_new(AioContext *ctx);
void blk_unref(BlockBackend *blk);
BlockDriverState *blk_bs(BlockBackend *blk);
AioContext *blk_get_aio_context(BlockBackend *blk);
void blk_set_dev_ops(BlockBackend *blk, const BlockDevOps *ops, void *opaque);
void blk_add_aio_context_notifier(BlockBackend *blk,
                                  void (*attached_aio_context)(AioContext *ctx, void *opaque),
                                  void (*detach_aio_context)(void *opaque), void *opaque);
/* Moves the backend, in a drained section of its own. */
int blk_set_aio_context(BlockBackend *blk, AioContext *ctx);
/* Some I/O, completed in the backend's context. */
void blk_aio_flush(BlockBackend *blk, BlockCompletionFunc *cb, void *opaque);

/* On the main thread; they nest. */
void bdrv_drained_begin(BlockDriverState *bs);
void bdrv_drained_end(BlockDriverState *bs);

#endif

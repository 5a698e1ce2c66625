/* A loop over io_uring. */
#ifndef TEST_LOOP_URING_H
#define TEST_LOOP_URING_H

#include "loop.h"
#include "util.h"

#include <vu_server/uring.h>

struct uring_loop {
    struct io_uring ring;
    vu_uring uring;
    bool quit;
};

static inline int uring_new_ctx(void *data, vu_ctx **ctx)
{
    return vu_ctx_new_uring(&((struct uring_loop *)data)->uring, ctx, NULL);
}

static inline void *uring_wrap(void *data)
{
    return &((struct uring_loop *)data)->uring;
}

static inline void uring_run(void *data)
{
    struct uring_loop *loop = data;

    while (!loop->quit)
        ok(vu_uring_iterate(&loop->uring, -1));
    loop->quit = false;
}

static inline void uring_quit(void *data)
{
    ((struct uring_loop *)data)->quit = true;
}

static inline void uring_turn(void *data)
{
    ok(vu_uring_iterate(&((struct uring_loop *)data)->uring, 0));
}

/* The requests of our own are all of later(). */
static inline void uring_call_now(void *opaque, uint64_t user_data, int32_t res, uint32_t flags)
{
    struct call *data = (struct call *)(uintptr_t)user_data;
    struct call call = *data;

    (void)opaque;
    (void)flags;
    ok(res);
    free(data);
    call.fn(call.arg);
}

static inline void uring_later(void *data, void (*fn)(void *), void *arg)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&((struct uring_loop *)data)->ring);
    struct call *call = malloc(sizeof(*call));

    check(sqe != NULL && call != NULL);
    *call = (struct call){fn, arg};
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, call);
}

static inline int uring_watches(void *data)
{
    const vu_uring *uring = &((struct uring_loop *)data)->uring;
    int count = 0;

    for (uint32_t i = 0; i < uring->count_; i++)
        count += uring->watches_[i].fd >= 0;
    return count;
}

static inline void uring_make(struct uring_loop *loop, unsigned entries)
{
    ok(io_uring_queue_init(entries, &loop->ring, 0));
    vu_uring_init(&loop->uring, &loop->ring, VU_URING_TAG, uring_call_now, loop);
    loop->quit = false;
}

static inline struct loop uring_loop(struct uring_loop *uring)
{
    return (struct loop){.loop = uring, .new_ctx = uring_new_ctx, .ops = vu_uring_ops_(),
                         .wrap = uring_wrap, .run = uring_run, .quit = uring_quit,
                         .turn = uring_turn, .later = uring_later, .watches = uring_watches,
                         .nests = true, .whole = true};
}

#endif

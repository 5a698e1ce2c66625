/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/**
 * @file
 * vu-server in a loop over io_uring: a struct io_uring as a vu_ctx.
 *
 * Static functions only; link the program with liburing (2.2 or newer). Each
 * watch is one IORING_OP_POLL_ADD request at a time, so the ring must not have
 * been made with IORING_SETUP_IOPOLL.
 *
 * The program's own requests share the ring. Completions of the context's have
 * the tag in the upper 16 bits of their user_data: vu_uring_iterate() tells
 * them apart, or vu_uring_complete() in a loop of the program's own. Such a
 * loop must submit before it waits, as io_uring_submit_and_wait() does.
 *
 * vu_server_stop() works on the loop's thread, also inside the completion of a
 * request of the program's.
 */
#ifndef VU_SERVER_URING_H
#define VU_SERVER_URING_H

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <vu_server.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A tag that no pointer into this process has. */
#define VU_URING_TAG 0x7675

/**
 * Gets the completion of a request that is not the context's; it has been taken
 * out of the ring.
 */
typedef void (*vu_uring_other_fn)(void *opaque, uint64_t user_data, int32_t res, uint32_t flags);

/* Names with a `_` at the end are not for programs. */

struct vu_uring_watch_ {
    int fd; /* -1: free */
    uint32_t events;
    uint32_t request; /* the one that is on its way; 0: none */
    vu_ctx_watch_fn fn;
    void *data;
};

/**
 * A ring as the loop of one context. The program's, from vu_uring_init() on; its
 * members are not.
 */
typedef struct vu_uring {
    struct io_uring *ring_;
    vu_uring_other_fn other_;
    void *opaque_;
    struct vu_uring_watch_ *watches_;
    uint32_t count_;   /* of `watches_`, free ones included */
    uint32_t request_; /* the last one's number */
    uint32_t unarmed_; /* watches that found no room for their request */
    uint16_t tag_;
} vu_uring;

/* No watch's number: of completions of the requests that cancel. */
#define VU_URING_NONE_ 0xffffU

/*
 * Each request has a number of its own. So a completion that comes late, for a watch that has been
 * removed or replaced or is of a context that was freed, is of no watch.
 */
static inline uint64_t vu_uring_user_data_(const vu_uring *loop, uint32_t request, uint32_t index)
{
    return (uint64_t)loop->tag_ << 48 | (uint64_t)request << 16 | index;
}

static inline struct io_uring_sqe *vu_uring_sqe_(vu_uring *loop)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(loop->ring_);

    if (!sqe && io_uring_submit(loop->ring_) >= 0)
        sqe = io_uring_get_sqe(loop->ring_);
    return sqe;
}

static inline bool vu_uring_arm_(vu_uring *loop, uint32_t index)
{
    struct vu_uring_watch_ *watch = &loop->watches_[index];
    struct io_uring_sqe *sqe = vu_uring_sqe_(loop);

    watch->request = 0;
    if (!sqe)
        return false;
    if (++loop->request_ == 0)
        ++loop->request_;
    watch->request = loop->request_;
    io_uring_prep_poll_add(sqe, watch->fd, watch->events);
    io_uring_sqe_set_data64(sqe, vu_uring_user_data_(loop, watch->request, index));
    return true;
}

/* Tries again for the watches that found no room. */
static inline void vu_uring_arm_rest_(vu_uring *loop)
{
    for (uint32_t i = 0; loop->unarmed_ > 0 && i < loop->count_; i++) {
        if (loop->watches_[i].fd < 0 || loop->watches_[i].request != 0)
            continue;
        if (!vu_uring_arm_(loop, i))
            return;
        loop->unarmed_--;
    }
}

static inline void vu_uring_disarm_(vu_uring *loop, uint32_t index)
{
    struct vu_uring_watch_ *watch = &loop->watches_[index];
    struct io_uring_sqe *sqe;

    if (watch->request == 0) {
        loop->unarmed_--;
        return;
    }
    /* Without room the request stays until the descriptor is ready; nobody hears of it then. */
    sqe = vu_uring_sqe_(loop);
    if (sqe) {
        io_uring_prep_poll_remove(sqe, vu_uring_user_data_(loop, watch->request, index));
        io_uring_sqe_set_data64(sqe, vu_uring_user_data_(loop, 0, VU_URING_NONE_));
    }
    watch->request = 0;
}

/* The watch of `fd`, -1 for a free one; VU_URING_NONE_ if there is none. */
static inline uint32_t vu_uring_find_(const vu_uring *loop, int fd)
{
    for (uint32_t i = 0; i < loop->count_; i++)
        if (loop->watches_[i].fd == fd)
            return i;
    return VU_URING_NONE_;
}

static inline uint32_t vu_uring_grow_(vu_uring *loop)
{
    const uint32_t old = loop->count_, count = old ? 2 * old : 8;
    struct vu_uring_watch_ *watches;

    if (count > VU_URING_NONE_)
        return VU_URING_NONE_;
    watches = (struct vu_uring_watch_ *)realloc(loop->watches_, count * sizeof *watches);
    if (!watches)
        return VU_URING_NONE_;
    memset(watches + old, 0, (count - old) * sizeof *watches);
    for (uint32_t i = old; i < count; i++)
        watches[i].fd = -1;
    loop->watches_ = watches;
    loop->count_ = count;
    return old;
}

static inline void vu_uring_remove_watch_(void *data, int fd)
{
    vu_uring *loop = (vu_uring *)data;
    const uint32_t index = vu_uring_find_(loop, fd);

    if (index == VU_URING_NONE_)
        return;
    vu_uring_disarm_(loop, index);
    loop->watches_[index].fd = -1;
    /* Now, since a request holds on to what `fd` is; what this cannot submit the loop will. */
    io_uring_submit(loop->ring_);
}

static inline int vu_uring_set_watch_(void *data, int fd, uint32_t events, vu_ctx_watch_fn fn,
                                      void *fn_data)
{
    vu_uring *loop = (vu_uring *)data;
    struct vu_uring_watch_ *watch;
    uint32_t index;

    if (fd < 0)
        return -EBADF;
    vu_uring_remove_watch_(loop, fd);
    index = vu_uring_find_(loop, -1);
    if (index == VU_URING_NONE_)
        index = vu_uring_grow_(loop);
    if (index == VU_URING_NONE_)
        return -ENOMEM;
    watch = &loop->watches_[index];
    watch->fd = fd;
    watch->events = events;
    watch->fn = fn;
    watch->data = fn_data;
    if (!vu_uring_arm_(loop, index)) {
        watch->fd = -1;
        return -EBUSY;
    }
    /* As above. */
    io_uring_submit(loop->ring_);
    return 0;
}

/**
 * Takes note of a completion, which must have been taken out of the ring before
 * (io_uring_cqe_seen()): a callback of the device's may run the loop. On the
 * loop's thread; for each completion, also after vu_ctx_free().
 *
 * @return whether the request was the context's; else it is the program's
 */
static inline bool vu_uring_complete(vu_uring *loop, uint64_t user_data, int32_t res)
{
    const uint32_t index = (uint32_t)(user_data & 0xffff);
    struct vu_uring_watch_ watch;

    vu_uring_arm_rest_(loop);
    if (user_data >> 48 != loop->tag_)
        return false;
    if (index >= loop->count_ || loop->watches_[index].request != (uint32_t)(user_data >> 16) ||
        loop->watches_[index].request == 0)
        return true;
    watch = loop->watches_[index];
    /*
     * Level-triggered: the next request finds what is still ready. It is there before the call, in
     * which the loop may run, and submitted after it, when the descriptor has been read.
     */
    if (!vu_uring_arm_(loop, index))
        loop->unarmed_++;
    watch.fn(watch.data, res < 0 ? (uint32_t)POLLERR : (uint32_t)res);
    return true;
}

/**
 * Runs one iteration: submits, waits for a completion and gives all that there
 * are to whom they belong. On the loop's thread; may be nested.
 *
 * @param timeout_ms how long to wait; -1: for ever, 0: not at all
 * @return 0; -errno of io_uring_submit_and_wait_timeout()
 */
static inline int vu_uring_iterate(vu_uring *loop, int timeout_ms)
{
    struct __kernel_timespec timeout;
    struct io_uring_cqe *cqe = NULL;
    int rc;

    vu_uring_arm_rest_(loop);
    timeout.tv_sec = timeout_ms / 1000;
    timeout.tv_nsec = timeout_ms % 1000 * 1000000LL;
    rc = io_uring_submit_and_wait_timeout(loop->ring_, &cqe, 1, timeout_ms < 0 ? NULL : &timeout,
                                          NULL);
    /* Time is up, a signal came, or completions must be taken before more can be submitted. */
    if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EBUSY && rc != -EAGAIN)
        return rc;
    /* Not those that come meanwhile; a nested iteration may leave fewer. */
    for (unsigned left = io_uring_cq_ready(loop->ring_); left > 0; left--) {
        uint64_t user_data;
        uint32_t flags;
        int32_t res;

        if (io_uring_peek_cqe(loop->ring_, &cqe) != 0)
            break;
        user_data = io_uring_cqe_get_data64(cqe);
        res = cqe->res;
        flags = cqe->flags;
        io_uring_cqe_seen(loop->ring_, cqe);
        if (!vu_uring_complete(loop, user_data, res) && loop->other_)
            loop->other_(loop->opaque_, user_data, res, flags);
    }
    return 0;
}

static inline int vu_uring_poll_(void *data, int timeout_ms)
{
    return vu_uring_iterate((vu_uring *)data, timeout_ms);
}

static inline void vu_uring_destroy_(void *data)
{
    vu_uring *loop = (vu_uring *)data;

    for (uint32_t i = 0; i < loop->count_; i++)
        if (loop->watches_[i].fd >= 0)
            vu_uring_remove_watch_(loop, loop->watches_[i].fd);
    free(loop->watches_);
    loop->watches_ = NULL;
    loop->count_ = 0;
}

static inline vu_ctx_ops vu_uring_ops_(void)
{
    vu_ctx_ops ops;

    memset(&ops, 0, sizeof ops);
    ops.struct_size = sizeof ops;
    ops.set_watch = vu_uring_set_watch_;
    ops.remove_watch = vu_uring_remove_watch_;
    ops.poll = vu_uring_poll_;
    ops.destroy = vu_uring_destroy_;
    return ops;
}

/**
 * Prepares a ring for vu_ctx_new_uring().
 *
 * @param ring borrowed; must live until vu_ctx_free()
 * @param tag the upper 16 bits of the context's user_data, not 0 and no other
 *        request's on the ring: VU_URING_TAG where those are pointers
 * @param other gets the completions of the program's requests, also inside a
 *        vu_server_stop() on the loop's thread; NULL: there are none
 * @param opaque passed to `other`
 */
static inline void vu_uring_init(vu_uring *loop, struct io_uring *ring, uint16_t tag,
                                 vu_uring_other_fn other, void *opaque)
{
    memset(loop, 0, sizeof *loop);
    loop->ring_ = ring;
    loop->tag_ = tag;
    loop->other_ = other;
    loop->opaque_ = opaque;
}

/**
 * Wraps a ring of liburing's. On the thread that runs the loop, which becomes
 * the owner, or while it is not running.
 *
 * @param loop from vu_uring_init(); must live until vu_ctx_free(), and for as
 *        long as completions are given to it
 * @return as vu_ctx_new()
 */
VU_MUST_USE
static inline int vu_ctx_new_uring(vu_uring *loop, vu_ctx **ctx, vu_error **err)
{
    const vu_ctx_ops ops = vu_uring_ops_();

    return vu_ctx_new(&ops, loop, ctx, err);
}

#ifdef __cplusplus
}
#endif

#endif

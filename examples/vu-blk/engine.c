/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "engine.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <liburing.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SQ_ENTRIES 256
#define CQ_ENTRIES 1024
#define REAP_BATCH 64

struct engine {
    struct io_uring ring;
    vu_ctx *ctx;
    int fd;       /* the image */
    int event_fd; /* readable when there are completions */
    unsigned in_flight;      /* submissions prepared and not reaped, at most max_in_flight */
    unsigned max_in_flight;  /* the completion queue's size, so that it never overflows */
    struct request *waiting; /* oldest first: what found no room in the ring */
    struct request **waiting_tail;
    engine_failed_fn failed;
    void *failed_data;
};

/* Put the request into the submission queue, if there is room. */
static bool prepare(struct engine *engine, struct request *request)
{
    if (engine->in_flight == engine->max_in_flight) {
        return false;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);
    if (!sqe) {
        return false;
    }
    request_prepare(request, engine->fd, sqe);
    engine->in_flight++;
    return true;
}

void engine_add(struct engine *engine, struct request *request)
{
    /* Behind those that wait already, so that none waits for ever. */
    if (engine->waiting || !prepare(engine, request)) {
        request->next = NULL;
        *engine->waiting_tail = request;
        engine->waiting_tail = &request->next;
    }
}

static void prepare_waiting(struct engine *engine)
{
    while (engine->waiting && prepare(engine, engine->waiting)) {
        engine->waiting = engine->waiting->next;
    }
    if (!engine->waiting) {
        engine->waiting_tail = &engine->waiting;
    }
}

/* False: the kernel takes nothing now. */
static bool submit(struct engine *engine)
{
    while (io_uring_sq_ready(&engine->ring)) {
        int submitted = io_uring_submit(&engine->ring);
        if (submitted > 0 || submitted == -EINTR) {
            continue;
        }
        if (submitted < 0 && submitted != -EAGAIN && submitted != -EBUSY) {
            engine->failed(engine->failed_data, submitted);
        } else if (engine->in_flight == io_uring_sq_ready(&engine->ring)) {
            /* No completion will bring us back here, so come back by ourselves. */
            eventfd_write(engine->event_fd, 1);
        }
        return false;
    }
    return true;
}

static void reap_one(struct engine *engine, const struct io_uring_cqe *cqe)
{
    struct request *request = io_uring_cqe_get_data(cqe);
    int status = request_advance(request, engine->fd, cqe->res);

    engine->in_flight--;
    if (status == REQUEST_PENDING) {
        engine_add(engine, request);
    } else {
        request_finish(request, (uint8_t)status);
    }
}

static unsigned reap(struct engine *engine)
{
    struct io_uring_cqe *cqes[REAP_BATCH];
    unsigned reaped = 0;
    unsigned n;

    while ((n = io_uring_peek_batch_cqe(&engine->ring, cqes, REAP_BATCH)) > 0) {
        for (unsigned i = 0; i < n; i++) {
            reap_one(engine, cqes[i]);
        }
        io_uring_cq_advance(&engine->ring, n);
        reaped += n;
    }
    return reaped;
}

/* Until nothing can go in and nothing comes out. */
static void pump(struct engine *engine)
{
    bool progress;

    do {
        prepare_waiting(engine);
        bool has_room = submit(engine) && engine->in_flight < engine->max_in_flight;
        progress = reap(engine) > 0 || (engine->waiting && has_room);
    } while (progress);
}

void engine_run(struct engine *engine)
{
    /* Cached reads complete while they are submitted; they need no wake-up. */
    io_uring_cq_eventfd_toggle(&engine->ring, false);
    pump(engine);
    io_uring_cq_eventfd_toggle(&engine->ring, true);
    /* Pairs with the kernel's barrier between posting a completion and looking whether the
     * eventfd is wanted: one of the two sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    if (io_uring_cq_ready(&engine->ring)) {
        pump(engine);
    }
    vu_ctx_flush(engine->ctx);
}

static void on_event(void *data, uint32_t revents)
{
    struct engine *engine = data;
    eventfd_t count;

    (void)revents;
    eventfd_read(engine->event_fd, &count);
    engine_run(engine);
}

static int set_up_ring(struct engine *engine)
{
    struct io_uring_params params = { .flags = IORING_SETUP_CQSIZE, .cq_entries = CQ_ENTRIES };

    int error = io_uring_queue_init_params(SQ_ENTRIES, &engine->ring, &params);
    if (error < 0) {
        return error;
    }
    engine->max_in_flight = params.cq_entries;
    error = io_uring_register_eventfd(&engine->ring, engine->event_fd);
    if (error >= 0) {
        error = vu_ctx_watch(engine->ctx, engine->event_fd, POLLIN, on_event, engine);
    }
    if (error < 0) {
        io_uring_queue_exit(&engine->ring);
    }
    return error;
}

int engine_new(vu_ctx *ctx, int fd, engine_failed_fn failed, void *data, struct engine **result)
{
    struct engine *engine = calloc(1, sizeof *engine);

    if (!engine) {
        return -ENOMEM;
    }
    engine->ctx = ctx;
    engine->fd = fd;
    engine->waiting_tail = &engine->waiting;
    engine->failed = failed;
    engine->failed_data = data;
    engine->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = engine->event_fd < 0 ? -errno : set_up_ring(engine);
    if (error < 0) {
        if (engine->event_fd >= 0) {
            close(engine->event_fd);
        }
        free(engine);
        return error;
    }
    *result = engine;
    return 0;
}

void engine_free(struct engine *engine)
{
    if (!engine) {
        return;
    }
    vu_ctx_unwatch(engine->ctx, engine->event_fd);
    io_uring_queue_exit(&engine->ring);
    close(engine->event_fd);
    free(engine);
}

/*
 * What every loop with a header of its own must do: watch, poll, and serve a
 * device through attach, detach and stop on the loop's thread.
 */
#ifndef TEST_LOOP_SCENARIO_H
#define TEST_LOOP_SCENARIO_H

#include <poll.h>
#include <semaphore.h>

#include "echo-device.h"
#include "loop.h"

#define EXCHANGES 100

/* --- the functions for vu_ctx_new() by themselves ------------------------------------------- */

struct seen {
    const struct loop *loop;
    void *wrapped;
    int pipe[2];
    uint32_t revents;
    int calls;
};

static inline void see(void *data, uint32_t revents)
{
    struct seen *seen = data;

    seen->calls++;
    seen->revents |= revents;
}

static inline void see_and_remove(void *data, uint32_t revents)
{
    struct seen *seen = data;

    see(data, revents);
    seen->loop->ops.remove_watch(seen->wrapped, seen->pipe[0]);
    /* As the library may do it. */
    check(close(seen->pipe[0]) == 0);
}

static inline int64_t milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A watch is level-triggered, replaced by another one, and gone when it is removed. */
static inline void check_watches(const struct loop *loop, void *wrapped)
{
    const vu_ctx_ops *ops = &loop->ops;
    struct seen first = {.loop = loop}, second = {.loop = loop, .wrapped = wrapped};
    const int before = loop->watches(loop->loop);
    int write_end;

    check(pipe(second.pipe) == 0);
    write_end = second.pipe[1];
    ok(ops->set_watch(wrapped, second.pipe[0], POLLIN, see, &first));
    ok(ops->set_watch(wrapped, write_end, POLLIN, see, &first));
    check(loop->watches(loop->loop) == before + 2);
    /* The second one at the latest finds nothing, not even what set_watch() has woken up. */
    ok(ops->poll(wrapped, 0));
    ok(ops->poll(wrapped, 0));
    check(first.calls == 0);
    check(write(write_end, "x", 1) == 1);
    for (int calls = 1; calls <= 2; calls++) {
        ok(ops->poll(wrapped, -1));
        check(first.calls == calls && first.revents == POLLIN);
    }

    ok(ops->set_watch(wrapped, write_end, POLLOUT, see, &second));
    ok(ops->set_watch(wrapped, second.pipe[0], POLLIN, see_and_remove, &second));
    check(loop->watches(loop->loop) == before + 2);
    ok(ops->poll(wrapped, -1));
    check(first.calls == 2 && second.calls == 2 && second.revents == (POLLIN | POLLOUT));
    check(loop->watches(loop->loop) == before + 1);
    ops->remove_watch(wrapped, write_end);
    check(close(write_end) == 0);
    ok(ops->poll(wrapped, 0));
    check(second.calls == 2 && loop->watches(loop->loop) == before);
}

/* An error is reported for as long as it lasts, too. */
static inline void check_error(const struct loop *loop, void *wrapped)
{
    struct seen seen = {.loop = loop};

    check(pipe(seen.pipe) == 0);
    check(close(seen.pipe[0]) == 0);
    ok(loop->ops.set_watch(wrapped, seen.pipe[1], POLLIN, see, &seen));
    for (int calls = 1; calls <= 2; calls++) {
        ok(loop->ops.poll(wrapped, -1));
        check(seen.calls == calls && seen.revents != 0);
    }
    loop->ops.remove_watch(wrapped, seen.pipe[1]);
    check(close(seen.pipe[1]) == 0);
}

static inline void see_and_remove_both(void *data, uint32_t revents)
{
    struct seen *seen = data;

    see(data, revents);
    for (int i = 0; i < 2; i++) {
        seen->loop->ops.remove_watch(seen->wrapped, seen->pipe[i]);
        check(close(seen->pipe[i]) == 0);
    }
}

/* Of two that are ready, the one that is called first removes the other. */
static inline void check_removed_by_another(const struct loop *loop, void *wrapped)
{
    struct seen seen = {.loop = loop, .wrapped = wrapped};

    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, seen.pipe) == 0);
    for (int i = 0; i < 2; i++) {
        check(write(seen.pipe[i], "x", 1) == 1);
        ok(loop->ops.set_watch(wrapped, seen.pipe[i], POLLIN, see_and_remove_both, &seen));
    }
    ok(loop->ops.poll(wrapped, -1));
    loop->turn(loop->loop);
    check(seen.calls == 1);
}

static inline void see_and_replace(void *data, uint32_t revents)
{
    struct seen *seen = data;

    see(data, revents);
    ok(seen->loop->ops.set_watch(seen->wrapped, seen->pipe[0], POLLOUT, see, seen));
}

/* A watch that is replaced by its own call. */
static inline void check_replaced_inside(const struct loop *loop, void *wrapped)
{
    struct seen seen = {.loop = loop, .wrapped = wrapped};
    const int before = loop->watches(loop->loop);

    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, seen.pipe) == 0);
    check(write(seen.pipe[1], "x", 1) == 1);
    ok(loop->ops.set_watch(wrapped, seen.pipe[0], POLLIN, see_and_replace, &seen));
    ok(loop->ops.poll(wrapped, -1));
    check(seen.calls == 1 && seen.revents == POLLIN);
    seen.revents = 0;
    while (seen.calls == 1)
        ok(loop->ops.poll(wrapped, -1));
    check(seen.revents == POLLOUT && loop->watches(loop->loop) == before + 1);
    loop->ops.remove_watch(wrapped, seen.pipe[0]);
    check(loop->watches(loop->loop) == before);
    close(seen.pipe[0]);
    close(seen.pipe[1]);
}

static inline void see_and_nest(void *data, uint32_t revents)
{
    struct seen *seen = data;
    char byte;

    check(read(seen->pipe[0], &byte, 1) == 1);
    see(data, revents);
    /* The other end, and this one again, are served by the loop inside of the call. */
    if (seen->calls == 1) {
        check(write(seen->pipe[1], "y", 1) == 1);
        while (seen->calls < 2)
            ok(seen->loop->ops.poll(seen->wrapped, -1));
    }
}

static inline void check_nesting(const struct loop *loop, void *wrapped)
{
    struct seen seen = {.loop = loop, .wrapped = wrapped};

    check(pipe(seen.pipe) == 0);
    check(write(seen.pipe[1], "x", 1) == 1);
    ok(loop->ops.set_watch(wrapped, seen.pipe[0], POLLIN, see_and_nest, &seen));
    ok(loop->ops.poll(wrapped, -1));
    check(seen.calls == 2);
    loop->ops.remove_watch(wrapped, seen.pipe[0]);
    close(seen.pipe[0]);
    close(seen.pipe[1]);
}

/* What cannot be watched is refused or reported, and leaves nothing behind. */
static inline void check_closed_descriptor(const struct loop *loop, void *wrapped)
{
    struct seen seen = {.loop = loop, .wrapped = wrapped};
    const int before = loop->watches(loop->loop);
    int rc;

    check(pipe(seen.pipe) == 0);
    close(seen.pipe[0]);
    close(seen.pipe[1]);
    rc = loop->ops.set_watch(wrapped, seen.pipe[0], POLLIN, see, &seen);
    if (rc == 0) {
        ok(loop->ops.poll(wrapped, -1));
        check(seen.calls >= 1 && !(seen.revents & POLLIN));
        loop->ops.remove_watch(wrapped, seen.pipe[0]);
    }
    check(loop->watches(loop->loop) == before);
    /* Of one that is not watched: nothing. */
    loop->ops.remove_watch(wrapped, seen.pipe[1]);
    loop->turn(loop->loop);
}

/* Freed with watches that are ready, and the loop goes on. */
static inline void check_destroyed_ready(const struct loop *loop)
{
    void *wrapped = loop->wrap(loop->loop);
    struct seen seen = {.loop = loop};

    check(pipe(seen.pipe) == 0);
    check(write(seen.pipe[1], "x", 1) == 1);
    ok(loop->ops.set_watch(wrapped, seen.pipe[0], POLLIN, see, &seen));
    loop->ops.destroy(wrapped);
    close(seen.pipe[0]);
    close(seen.pipe[1]);
    for (int i = 0; i < 3; i++)
        loop->turn(loop->loop);
    check(seen.calls == 0);
}

static inline void check_ops(const struct loop *loop)
{
    void *wrapped = loop->wrap(loop->loop);
    int64_t began;

    check_watches(loop, wrapped);
    check_error(loop, wrapped);
    check_removed_by_another(loop, wrapped);
    check_replaced_inside(loop, wrapped);
    if (loop->nests)
        check_nesting(loop, wrapped);
    check_closed_descriptor(loop, wrapped);
    loop->turn(loop->loop);
    /* Nothing happens, and still it returns: not much before and, by the watchdog, not never. */
    began = milliseconds();
    ok(loop->ops.poll(wrapped, 50));
    check(milliseconds() - began >= 49);
    loop->ops.destroy(wrapped);
    loop->turn(loop->loop);
    check_destroyed_ready(loop);
}

/* --- a device ------------------------------------------------------------------------------- */

static inline void free_ctx(const struct loop *loop, vu_ctx *ctx)
{
    if (loop->free_ctx)
        loop->free_ctx(loop->loop);
    else
        ok(vu_ctx_free(ctx));
}

struct scenario {
    const struct loop *loop;
    struct rig rig;
    pthread_t owner;
    int served, until; /* requests; the loop is ended when so many have been */
    vu_elem *held;     /* the last one, until the server is being stopped */
    int result;        /* of what was called from the loop */
    bool stopped;
    sem_t detached, submitted;
};

static inline int scenario_kick(void *dev, vu_vq *vq)
{
    struct scenario *s = dev;
    vu_elem *elem;

    check(pthread_equal(s->owner, pthread_self()));
    check(!s->loop->inside || s->loop->inside(s->loop->loop));
    while (ok(vu_vq_pop(vq, &elem, 1)) == 1) {
        char bytes[256];
        size_t n = vu_elem_read(elem, 0, bytes, sizeof(bytes));

        n = vu_elem_write(elem, 0, bytes, n);
        if (s->served == EXCHANGES + 2)
            s->held = elem;
        else
            ok(vu_vq_stage(vq, elem, (uint32_t)n));
        if (++s->served == s->until)
            s->loop->quit(s->loop->loop);
    }
    return 0;
}

static inline void scenario_orphaned(void *dev, uint32_t index)
{
    (void)dev;
    (void)index;
    check(!"orphaned");
}

static inline void scenario_stopped(void *dev)
{
    struct scenario *s = dev;

    s->stopped = true;
    s->loop->quit(s->loop->loop);
}

static inline void exchange(struct fe *fe, unsigned queue)
{
    uint32_t written;

    ok(fe_wait_used(fe, queue, &written));
    check(written == 32);
}

/* The other side, in a thread. */
static inline void *scenario_front_end(void *data)
{
    struct scenario *s = data;
    struct fe *fe = &s->rig.fe;

    ok(fe_start(fe));
    for (int i = 0; i < EXCHANGES; i++) {
        fe->mem_used = 64 << 10;
        rig_submit(&s->rig, i % 2, 32, 32);
        exchange(fe, i % 2);
    }
    sem_wait(&s->detached);
    for (unsigned queue = 0; queue < 2; queue++)
        rig_submit(&s->rig, queue, 32, 32);
    sem_post(&s->submitted);
    for (unsigned queue = 0; queue < 2; queue++)
        exchange(fe, queue);
    /* This one is in flight when the server is stopped. */
    rig_submit(&s->rig, 0, 32, 32);
    ok(fe_wait_closed(fe));
    return NULL;
}

static inline void run_until(struct scenario *s, int served)
{
    s->until = served;
    s->loop->run(s->loop->loop);
    check(s->served >= served);
}

static inline void detach_here(void *data)
{
    struct scenario *s = data;

    s->result = vu_server_detach_ctx(s->rig.server);
    s->loop->quit(s->loop->loop);
}

static inline void attach_here(void *data)
{
    struct scenario *s = data;

    s->result = vu_server_attach_ctx(s->rig.server, s->rig.ctx);
}

static inline void stop_here(void *data)
{
    struct scenario *s = data;

    s->result = vu_server_stop(s->rig.server);
    s->loop->quit(s->loop->loop);
}

static inline void request_stop_here(void *data)
{
    struct scenario *s = data;

    s->result = vu_server_request_stop(s->rig.server);
}

static inline void complete_held(void *data)
{
    struct scenario *s = data;

    ok(vu_elem_complete(s->held, 32));
    s->held = NULL;
}

/* Detached, nothing is served and nothing lost. */
static inline void detach_and_attach(struct scenario *s, int doorbells)
{
    const struct loop *loop = s->loop;

    s->result = -EINPROGRESS;
    loop->later(loop->loop, detach_here, s);
    loop->run(loop->loop);
    ok(s->result);
    check(vu_server_is_quiesced(s->rig.server) == 1);
    check(loop->watches(loop->loop) == doorbells);
    sem_post(&s->detached);
    sem_wait(&s->submitted);
    for (int i = 0; i < 10; i++)
        loop->turn(loop->loop);
    check(s->served == EXCHANGES);

    loop->later(loop->loop, attach_here, s);
    run_until(s, EXCHANGES + 2);
    ok(s->result);
}

/* The request in flight is completed by the loop that the stop must run. */
static inline void stop_with_one_held(struct scenario *s)
{
    const struct loop *loop = s->loop;

    s->result = -EINPROGRESS;
    if (loop->nests)
        loop->later(loop->loop, stop_here, s);
    loop->later(loop->loop, complete_held, s);
    if (loop->nests)
        loop->run(loop->loop);
    else
        s->result = vu_server_stop(s->rig.server);
    ok(s->result);
    check(!s->stopped);
}

/* The same, while the loop goes on. */
static inline void request_stop_with_one_held(struct scenario *s)
{
    const struct loop *loop = s->loop;

    loop->later(loop->loop, request_stop_here, s);
    loop->later(loop->loop, complete_held, s);
    loop->run(loop->loop);
    ok(s->result);
    check(s->stopped);
    /* The internal thread is waited for. */
    ok(vu_server_stop(s->rig.server));
}

/* Two devices in one context: each has its requests answered, and ends by itself. */
static inline void *two_front_ends(void *data)
{
    struct scenario *pair = data;

    for (int i = 0; i < 2; i++)
        ok(fe_start(&pair[i].rig.fe));
    for (int i = 0; i < EXCHANGES; i++) {
        struct scenario *s = &pair[i % 2];

        s->rig.fe.mem_used = 64 << 10;
        rig_submit(&s->rig, 0, 32, 32);
        exchange(&s->rig.fe, 0);
    }
    /* Wakes the loop up at the end. */
    rig_submit(&pair[0].rig, 0, 32, 32);
    exchange(&pair[0].rig.fe, 0);
    return NULL;
}

static inline void two_servers(const struct loop *loop, vu_ctx *ctx)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = scenario_kick};
    struct scenario pair[2];
    const vu_server_config config = test_config();
    const int before = loop->watches(loop->loop);
    pthread_t thread;

    for (int i = 0; i < 2; i++) {
        pair[i] = (struct scenario){.loop = loop, .owner = pthread_self()};
        rig_make(&pair[i].rig, &config, &ops, &pair[i], ctx);
    }
    check(pthread_create(&thread, NULL, two_front_ends, pair) == 0);
    run_until(&pair[0], EXCHANGES / 2 + 1);
    pthread_join(thread, NULL);
    check(pair[1].served == EXCHANGES / 2);
    check(loop->watches(loop->loop) == before + 2);
    /* One goes, the other stays. */
    ok(vu_server_stop(pair[0].rig.server));
    check(loop->watches(loop->loop) == before + 1);
    err(vu_ctx_free(ctx), -EBUSY);
    for (int i = 1; i >= 0; i--) {
        ok(vu_server_stop(pair[i].rig.server));
        ok(vu_server_free(pair[i].rig.server));
        fe_destroy(&pair[i].rig.fe);
    }
    check(loop->watches(loop->loop) == before);
}

static inline void check_device(const struct loop *loop, bool blocking)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = scenario_kick,
                               .orphaned = scenario_orphaned, .stopped = scenario_stopped};
    struct scenario s = {.loop = loop, .owner = pthread_self()};
    vu_server_config config = test_config();
    const int before = loop->watches(loop->loop);
    pthread_t thread;
    vu_ctx *ctx;

    check(sem_init(&s.detached, 0, 0) == 0 && sem_init(&s.submitted, 0, 0) == 0);
    config.num_queues = 2;
    config.drain_timeout_ms = UINT32_MAX;
    ok(loop->new_ctx(loop->loop, &ctx));
    check(loop->watches(loop->loop) == before + 1);
    rig_make(&s.rig, &config, &ops, &s, ctx);
    check(pthread_create(&thread, NULL, scenario_front_end, &s) == 0);
    run_until(&s, EXCHANGES);
    check(loop->watches(loop->loop) == before + 3);
    detach_and_attach(&s, before + 1);
    if (!s.held)
        run_until(&s, EXCHANGES + 3);
    check(s.held != NULL);
    check(vu_server_has_inflight(s.rig.server) == 1);
    if (blocking)
        stop_with_one_held(&s);
    else
        request_stop_with_one_held(&s);
    check(s.held == NULL);
    check(vu_server_is_stopped(s.rig.server) == 1);
    pthread_join(thread, NULL);
    ok(vu_server_free(s.rig.server));
    check(loop->watches(loop->loop) == before + 1);
    if (!blocking)
        two_servers(loop, ctx);
    free_ctx(loop, ctx);
    check(loop->watches(loop->loop) == before);
    loop->turn(loop->loop);
    fe_destroy(&s.rig.fe);
    sem_destroy(&s.detached);
    sem_destroy(&s.submitted);
}

/* --- a loop that another thread runs ---------------------------------------------------------- */

static inline void other_disconnected(void *dev, int error, const char *reason)
{
    struct scenario *s = dev;

    (void)error;
    (void)reason;
    check(pthread_equal(s->owner, pthread_self()));
    s->loop->quit(s->loop->loop);
}

static inline void *run_loop(void *data)
{
    struct scenario *s = data;

    s->owner = pthread_self();
    s->loop->run(s->loop->loop);
    return NULL;
}

/* Made, stopped and freed here, and run by a thread; the front-end is here as well. */
static inline void loop_in_other_thread(const struct loop *loop)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = scenario_kick,
                               .disconnected = other_disconnected};
    const vu_server_config config = test_config();
    struct scenario s = {.loop = loop};
    pthread_t thread;
    vu_ctx *ctx;

    ok(loop->new_ctx(loop->loop, &ctx));
    rig_make(&s.rig, &config, &ops, &s, ctx);
    check(pthread_create(&thread, NULL, run_loop, &s) == 0);
    ok(fe_start(&s.rig.fe));
    for (int i = 0; i < EXCHANGES; i++) {
        s.rig.fe.mem_used = 64 << 10;
        rig_submit(&s.rig, 0, 32, 32);
        exchange(&s.rig.fe, 0);
    }
    ok(vu_server_stop(s.rig.server));
    pthread_join(thread, NULL);
    ok(vu_server_free(s.rig.server));
    free_ctx(loop, ctx);
    loop->turn(loop->loop);
    fe_destroy(&s.rig.fe);
}

/* Nothing is left of a context that was freed. */
static inline void loop_scenario(const struct loop *loop)
{
    int descriptors;

    loop->turn(loop->loop);
    descriptors = open_fds();
    if (loop->wrap)
        check_ops(loop);
    for (int i = 0; i < 3; i++) {
        check_device(loop, loop->whole && i > 0);
        check(open_fds() == descriptors);
    }
}

#endif

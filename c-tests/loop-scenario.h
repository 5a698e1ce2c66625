/*
 * What every loop with a header of its own must do: watch, poll, and serve a
 * device through attach, detach and stop on the loop's thread.
 */
#ifndef TEST_LOOP_SCENARIO_H
#define TEST_LOOP_SCENARIO_H

#include <poll.h>
#include <semaphore.h>

#include "echo-device.h"

#define EXCHANGES 100

/* How the loop's own library does it. Everything is called on the loop's thread. */
struct loop {
    void *loop;
    int (*new_ctx)(void *loop, vu_ctx **ctx);
    /* What the header makes of it for vu_ctx_new(), its functions and their argument. */
    vu_ctx_ops ops;
    void *(*wrap)(void *loop);
    /* Until quit(), which is called inside of it. */
    void (*run)(void *loop);
    void (*quit)(void *loop);
    /* One iteration, without waiting. */
    void (*turn)(void *loop);
    /* Calls it once, from the loop. */
    void (*later)(void *loop, void (*fn)(void *), void *arg);
    /* How many descriptors it watches. */
    int (*watches)(void *loop);
    /* Whether the loop may be run inside a callback of its own. */
    bool nests;
};

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

static inline void check_ops(const struct loop *loop)
{
    void *wrapped = loop->wrap(loop->loop);
    int64_t began;

    check_watches(loop, wrapped);
    check_error(loop, wrapped);
    loop->turn(loop->loop);
    /* Nothing happens, and still it returns: not much before and, by the watchdog, not never. */
    began = milliseconds();
    ok(loop->ops.poll(wrapped, 50));
    check(milliseconds() - began >= 49);
    loop->ops.destroy(wrapped);
    loop->turn(loop->loop);
}

/* --- a device ------------------------------------------------------------------------------- */

struct scenario {
    const struct loop *loop;
    struct rig rig;
    pthread_t owner;
    int served, until; /* requests; the loop is ended when so many have been */
    vu_elem *held;     /* the last one, until the server is being stopped */
    int result;        /* of what was called from the loop */
    sem_t detached, submitted;
};

static inline int scenario_kick(void *dev, vu_vq *vq)
{
    struct scenario *s = dev;
    vu_elem *elem;

    check(pthread_equal(s->owner, pthread_self()));
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
    check(s->held == NULL);
    check(vu_server_is_stopped(s->rig.server) == 1);
}

static inline void check_device(const struct loop *loop)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = scenario_kick,
                               .orphaned = scenario_orphaned};
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
    stop_with_one_held(&s);
    pthread_join(thread, NULL);
    ok(vu_server_free(s.rig.server));
    check(loop->watches(loop->loop) == before + 1);
    ok(vu_ctx_free(ctx));
    check(loop->watches(loop->loop) == before);
    loop->turn(loop->loop);
    fe_destroy(&s.rig.fe);
    sem_destroy(&s.detached);
    sem_destroy(&s.submitted);
}

/* Nothing is left of a context that was freed. */
static inline void loop_scenario(const struct loop *loop)
{
    int descriptors;

    loop->turn(loop->loop);
    descriptors = open_fds();
    check_ops(loop);
    for (int i = 0; i < 3; i++) {
        check_device(loop);
        check(open_fds() == descriptors);
    }
}

#endif

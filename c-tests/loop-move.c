/*
 * A queue goes around loops of six kinds, each in a thread of its own, and through the detached state,
 * with requests under way: each is answered once, by the loop that has the queue.
 */
#define _GNU_SOURCE
#include "loop-event.h"
#include "loop-glib.h"
#include "loop-poll.h"
#include "loop-uring.h"
#include "loop-uv.h"

#include "echo-device.h"

#include <stdatomic.h>

#define KINDS 6
#define ROUNDS 25
#define DEPTH 8
#define LENGTH 64

struct home {
    struct loop loop;
    vu_ctx *ctx;
    pthread_t thread;
    atomic_int started, kicked;
};

struct circle {
    struct home homes[KINDS];
    _Atomic(struct home *) has; /* the queue */
    atomic_bool ending;
    struct rig rig;
    uint8_t *out[DEPTH], *in[DEPTH];
    int slot_of[FE_MAX_SIZE]; /* by head; -1: not out */
};

static _Thread_local struct home *here;

static void on_started(void *dev, vu_vq *vq)
{
    struct circle *circle = dev;

    (void)vq;
    check(here != NULL && atomic_exchange(&circle->has, here) == NULL);
    atomic_fetch_add(&here->started, 1);
}

static void on_stopping(void *dev, vu_vq *vq, uint32_t reason)
{
    struct circle *circle = dev;

    (void)vq;
    check(reason == VU_STOP_MOVE || reason == VU_STOP_DETACH);
    check(atomic_exchange(&circle->has, NULL) == here);
    if (atomic_load(&circle->ending))
        here->loop.quit(here->loop.loop);
}

static int on_kick(void *dev, vu_vq *vq)
{
    struct circle *circle = dev;

    check(here != NULL && atomic_load(&circle->has) == here);
    atomic_fetch_add(&here->kicked, 1);
    return echo_kick(dev, vq);
}

static void *run_home(void *data)
{
    here = data;
    here->loop.run(here->loop.loop);
    return NULL;
}

static void home_start(struct home *home, struct loop loop)
{
    home->loop = loop;
    ok(loop.new_ctx(loop.loop, &home->ctx));
    check(pthread_create(&home->thread, NULL, run_home, home) == 0);
}

/* After its loop has ended. */
static void home_end(struct home *home)
{
    check(atomic_load(&home->started) >= ROUNDS / 2 && atomic_load(&home->kicked) > 0);
    if (home->loop.free_ctx)
        home->loop.free_ctx(home->loop.loop);
    else
        ok(vu_ctx_free(home->ctx));
    home->loop.turn(home->loop.loop);
}

static void submit(struct circle *circle, int slot, uint8_t seed)
{
    struct fe_buf bufs[2] = {{circle->out[slot], LENGTH, false}, {circle->in[slot], LENGTH, true}};
    int head;

    for (int i = 0; i < LENGTH; i++)
        circle->out[slot][i] = (uint8_t)(seed + i);
    memset(circle->in[slot], 0, LENGTH);
    head = ok(fe_submit(&circle->rig.fe, 0, bufs, 2));
    check(circle->slot_of[head] < 0);
    circle->slot_of[head] = slot;
}

static void take_answer(struct circle *circle)
{
    uint32_t written;
    int head = ok(fe_wait_used(&circle->rig.fe, 0, &written));
    int slot = circle->slot_of[head];

    check(slot >= 0 && written == LENGTH);
    check(memcmp(circle->out[slot], circle->in[slot], LENGTH) == 0);
    circle->slot_of[head] = -1;
}

static void move_to(struct circle *circle, struct home *home)
{
    ok(vu_server_attach_vq_ctx(circle->rig.server, 0, home ? home->ctx : NULL));
}

/* Requests before, between and after two moves. */
static void round_of_moves(struct circle *circle, int round)
{
    for (int i = 0; i < KINDS; i++) {
        const int slots = 1 + (round + i) % DEPTH;

        for (int slot = 0; slot < slots; slot++) {
            submit(circle, slot, (uint8_t)(round * KINDS + i + slot));
            if (slot == slots / 2)
                move_to(circle, (round + i) % 3 == 0 ? NULL : &circle->homes[(i + 3) % KINDS]);
        }
        move_to(circle, &circle->homes[i]);
        for (int slot = 0; slot < slots; slot++)
            take_answer(circle);
        eventually(atomic_load(&circle->has) == &circle->homes[i]);
    }
}

static void go_around(struct circle *circle)
{
    ok(fe_start(&circle->rig.fe));
    for (int slot = 0; slot < DEPTH; slot++) {
        circle->out[slot] = fe_alloc(&circle->rig.fe, LENGTH);
        circle->in[slot] = fe_alloc(&circle->rig.fe, LENGTH);
    }
    memset(circle->slot_of, 0xff, sizeof(circle->slot_of));
    for (int round = 0; round < ROUNDS; round++)
        round_of_moves(circle, round);

    /* Each loop ends when the queue has left it. */
    move_to(circle, NULL);
    eventually(atomic_load(&circle->has) == NULL);
    atomic_store(&circle->ending, true);
    for (int i = 0; i < KINDS; i++) {
        move_to(circle, &circle->homes[i]);
        eventually(atomic_load(&circle->has) == &circle->homes[i]);
    }
    move_to(circle, NULL);
    ok(fe_stop(&circle->rig.fe));
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = on_kick, .queue_started = on_started,
                               .queue_stopping = on_stopping};
    const vu_server_config config = test_config();
    struct event_base *base = event_base_new();
    GMainContext *context = g_main_context_new();
    struct poll_loop over_poll, over_epoll;
    static struct circle circle;
    struct uring_loop uring;
    struct glib_loop glib;
    pthread_t events;
    uv_loop_t uv;
    vu_ctx *ctx;

    watchdog(50);
    /* The device's events have a loop of their own. */
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&circle.rig, &config, &ops, &circle, ctx);
    move_to(&circle, NULL);
    check(pthread_create(&events, NULL, run_ctx, ctx) == 0);

    glib_make(&glib, context);
    ok(uv_loop_init(&uv));
    uring_make(&uring, 8);
    poll_make(&over_poll, false);
    poll_make(&over_epoll, true);
    home_start(&circle.homes[0], glib_loop(&glib));
    home_start(&circle.homes[1], uv_loop(&uv));
    home_start(&circle.homes[2], event_loop(base));
    home_start(&circle.homes[3], uring_loop(&uring));
    home_start(&circle.homes[4], poll_loop(&over_poll));
    home_start(&circle.homes[5], poll_loop(&over_epoll));
    go_around(&circle);
    for (int i = 0; i < KINDS; i++)
        pthread_join(circle.homes[i].thread, NULL);

    vu_ctx_quit(ctx);
    pthread_join(events, NULL);
    ok(vu_ctx_adopt(ctx));
    ok(vu_server_stop(circle.rig.server));
    ok(vu_server_free(circle.rig.server));
    for (int i = 0; i < KINDS; i++)
        home_end(&circle.homes[i]);
    ok(vu_ctx_free(ctx));
    fe_destroy(&circle.rig.fe);
    poll_end(&over_epoll);
    poll_end(&over_poll);
    io_uring_queue_exit(&uring.ring);
    event_base_free(base);
    ok(uv_loop_close(&uv));
    g_main_loop_unref(glib.loop);
    g_main_context_unref(context);
    return 0;
}

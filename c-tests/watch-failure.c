/* A loop that refuses a watch: no context comes of it, or that ring breaks, says why, and can be started again. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <poll.h>
#include <stdatomic.h>

#define MAX_WATCHES 8

struct loop {
    struct watch {
        int fd;
        vu_ctx_watch_fn fn;
        void *data;
    } watches[MAX_WATCHES];
    int count;
    int until_refusal; /* watches; 0: none is refused any more */
    int refused, destroyed;
};

static int set_watch(void *data, int fd, uint32_t events, vu_ctx_watch_fn fn, void *fn_data)
{
    struct loop *loop = data;

    check(events == POLLIN && loop->count < MAX_WATCHES);
    if (loop->until_refusal > 0 && --loop->until_refusal == 0) {
        loop->refused++;
        return -ENOMEM;
    }
    loop->watches[loop->count++] = (struct watch){fd, fn, fn_data};
    return 0;
}

static void remove_watch(void *data, int fd)
{
    struct loop *loop = data;
    int at = 0;

    while (at < loop->count && loop->watches[at].fd != fd)
        at++;
    /* Never of one that was refused. */
    check(at < loop->count);
    loop->watches[at] = loop->watches[--loop->count];
}

static int iterate(void *data, int timeout_ms)
{
    struct loop *loop = data;
    struct watch watches[MAX_WATCHES];
    struct pollfd fds[MAX_WATCHES];
    const int count = loop->count;

    for (int i = 0; i < count; i++) {
        watches[i] = loop->watches[i];
        fds[i] = (struct pollfd){.fd = watches[i].fd, .events = POLLIN};
    }
    check(poll(fds, (nfds_t)count, timeout_ms) >= 0);
    for (int i = 0; i < count; i++)
        if (fds[i].revents)
            watches[i].fn(watches[i].data, (uint32_t)fds[i].revents);
    return 0;
}

static void destroy(void *data)
{
    ((struct loop *)data)->destroyed++;
}

static const vu_ctx_ops loop_ops = {VU_CTX_OPS_INIT, .set_watch = set_watch,
                                    .remove_watch = remove_watch, .poll = iterate,
                                    .destroy = destroy};

static void doorbell_refused(void)
{
    struct loop loop = {.until_refusal = 1};
    vu_ctx *ctx = (vu_ctx *)&loop;
    const int descriptors = open_fds();
    vu_error *error;

    err(vu_ctx_new(&loop_ops, &loop, &ctx, &error), -ENOMEM);
    check(ctx == NULL && loop.count == 0 && loop.destroyed == 1);
    check(vu_error_code(error) == -ENOMEM && strstr(vu_error_message(error), "set_watch"));
    vu_error_free(error);
    check(open_fds() == descriptors);
}

struct device {
    atomic_int broken, started[2];
    bool disconnected;
};

static void on_ring_broken(void *dev, uint32_t index, int error, const char *reason)
{
    struct device *device = dev;

    check(index == 1 && error == -ENOMEM && strstr(reason, "set_watch"));
    atomic_fetch_add(&device->broken, 1);
}

static void on_queue_started(void *dev, vu_vq *vq)
{
    atomic_fetch_add(&((struct device *)dev)->started[vu_vq_index(vq)], 1);
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    (void)error;
    (void)reason;
    ((struct device *)dev)->disconnected = true;
}

struct front_end {
    struct rig rig;
    struct device device;
};

static void exchange(struct rig *rig, unsigned queue)
{
    uint32_t written;

    rig_submit(rig, queue, 32, 32);
    ok(fe_wait_used(&rig->fe, queue, &written));
    check(written == 32);
}

static void *front_end(void *data)
{
    struct front_end *end = data;
    struct rig *rig = &end->rig;

    ok(fe_start(&rig->fe));
    eventually(atomic_load(&end->device.broken) == 1);
    exchange(rig, 0);
    check(atomic_load(&end->device.started[0]) == 1 && atomic_load(&end->device.started[1]) == 0);
    ok(fe_stop_queue(&rig->fe, 1));
    ok(fe_start_queue(&rig->fe, 1));
    exchange(rig, 1);
    exchange(rig, 0);
    check(atomic_load(&end->device.started[1]) == 1);
    ok(fe_stop(&rig->fe));
    return NULL;
}

static void kick_refused(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = echo_kick,
                               .queue_started = on_queue_started, .ring_broken = on_ring_broken,
                               .disconnected = on_disconnected};
    vu_server_config config = test_config();
    /* The doorbell, queue 0, queue 1. */
    struct loop loop = {.until_refusal = 3};
    static struct front_end end;
    pthread_t thread;
    vu_ctx *ctx;

    config.num_queues = 2;
    ok(vu_ctx_new(&loop_ops, &loop, &ctx, NULL));
    rig_make(&end.rig, &config, &ops, &end.device, ctx);
    check(pthread_create(&thread, NULL, front_end, &end) == 0);
    while (!end.device.disconnected)
        ok(iterate(&loop, 1000));
    pthread_join(thread, NULL);
    check(loop.refused == 1 && loop.count == 1);
    ok(vu_server_stop(end.rig.server));
    ok(vu_server_free(end.rig.server));
    ok(vu_ctx_free(ctx));
    check(loop.count == 0 && loop.destroyed == 1);
    fe_destroy(&end.rig.fe);
}

int main(void)
{
    watchdog(50);
    doorbell_refused();
    kick_refused();
    return 0;
}

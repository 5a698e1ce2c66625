/* A loop over poll(2) drives a device; watches come, go, and may fire late. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <poll.h>

#define MAX_WATCHES 16

struct watch {
    int fd;
    uint32_t events;
    vu_ctx_watch_fn fn;
    void *data;
};

struct loop {
    pthread_t thread; /* the only one that may come in */
    struct watch watches[MAX_WATCHES];
    int count, most;
    struct watch removed; /* the last one */
    int destroyed;
};

static int find(const struct loop *loop, int fd)
{
    for (int i = 0; i < loop->count; i++)
        if (loop->watches[i].fd == fd)
            return i;
    return -1;
}

static int set_watch(void *data, int fd, uint32_t events, vu_ctx_watch_fn fn, void *fn_data)
{
    struct loop *loop = data;
    int at = find(loop, fd);

    check(pthread_equal(loop->thread, pthread_self()));
    if (at < 0) {
        check(loop->count < MAX_WATCHES);
        at = loop->count++;
    }
    if (loop->count > loop->most)
        loop->most = loop->count;
    loop->watches[at] = (struct watch){fd, events, fn, fn_data};
    return 0;
}

static void remove_watch(void *data, int fd)
{
    struct loop *loop = data;
    int at = find(loop, fd);

    check(pthread_equal(loop->thread, pthread_self()));
    /* Only what is watched, and always before it is closed. */
    check(at >= 0);
    check(write(fd, "", 0) == 0 || errno != EBADF);
    loop->removed = loop->watches[at];
    loop->watches[at] = loop->watches[--loop->count];
}

static int iterate(void *data, int timeout_ms)
{
    struct loop *loop = data;
    struct pollfd fds[MAX_WATCHES];
    struct watch watches[MAX_WATCHES];
    int count = loop->count;

    check(pthread_equal(loop->thread, pthread_self()));
    for (int i = 0; i < count; i++) {
        watches[i] = loop->watches[i];
        fds[i] = (struct pollfd){.fd = watches[i].fd, .events = (short)watches[i].events};
    }
    if (poll(fds, (nfds_t)count, timeout_ms) < 0)
        return -errno;
    /* A descriptor that was kicked is work; the first watch, the doorbell, may ring for nothing. */
    for (int i = 0; i < count; i++)
        check(vu_watch_poll(watches[i].data) == 1 || i == 0 || !fds[i].revents);
    /* From a copy: a watch that one of these calls removes is called nevertheless. */
    for (int i = 0; i < count; i++)
        if (fds[i].revents)
            watches[i].fn(watches[i].data, (uint32_t)fds[i].revents);
    return 0;
}

static void destroy(void *data)
{
    ((struct loop *)data)->destroyed++;
}

static void *front_end(void *data)
{
    struct rig *rig = data;
    uint32_t written;

    ok(fe_start(&rig->fe));
    for (int i = 0; i < 100; i++) {
        rig->fe.mem_used = 64 << 10;
        rig_submit(rig, i % 2, 32, 32);
        ok(fe_wait_used(&rig->fe, i % 2, &written));
        check(written == 32);
    }
    ok(fe_stop(&rig->fe));
    return NULL;
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    (void)error;
    (void)reason;
    *(bool *)dev = true;
}

int main(void)
{
    const vu_ctx_ops loop_ops = {VU_CTX_OPS_INIT, .set_watch = set_watch,
                                 .remove_watch = remove_watch, .poll = iterate,
                                 .destroy = destroy};
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = echo_kick,
                               .disconnected = on_disconnected};
    struct loop loop = {.thread = pthread_self()};
    vu_server_config config = test_config();
    bool disconnected = false;
    struct rig rig;
    pthread_t thread;
    vu_ctx *ctx;

    watchdog(50);
    config.num_queues = 2;
    ok(vu_ctx_new(&loop_ops, &loop, &ctx, NULL));
    check(loop.count == 1); /* the doorbell */
    rig_make(&rig, &config, &ops, &disconnected, ctx);
    check(pthread_create(&thread, NULL, front_end, &rig) == 0);
    while (!disconnected)
        ok(iterate(&loop, 1000));
    pthread_join(thread, NULL);
    check(loop.most == 3 && loop.count == 1);
    /* Late by far. */
    check(vu_watch_poll(loop.removed.data) == 0);
    loop.removed.fn(loop.removed.data, POLLIN);

    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    check(loop.count == 0 && loop.destroyed == 1);
    fe_destroy(&rig.fe);
    return 0;
}

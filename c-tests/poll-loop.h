/* A loop over poll(2) that checks what the library asks of it. */
#ifndef TEST_POLL_LOOP_H
#define TEST_POLL_LOOP_H

#include <poll.h>
#include <pthread.h>
#include <vu_server.h>

#include "util.h"

#define POLL_LOOP_WATCHES 16

struct poll_watch {
    int fd;
    uint32_t events;
    vu_ctx_watch_fn fn;
    void *data;
};

struct poll_loop {
    pthread_t thread; /* the only one that may come in */
    struct poll_watch watches[POLL_LOOP_WATCHES];
    int count, most;
    struct poll_watch removed; /* the last one */
    int destroyed;
};

static inline int poll_loop_find(const struct poll_loop *loop, int fd)
{
    for (int i = 0; i < loop->count; i++)
        if (loop->watches[i].fd == fd)
            return i;
    return -1;
}

static inline int poll_loop_set_watch(void *data, int fd, uint32_t events,
                                      vu_ctx_watch_fn fn, void *fn_data)
{
    struct poll_loop *loop = data;
    int at = poll_loop_find(loop, fd);

    check(pthread_equal(loop->thread, pthread_self()));
    if (at < 0) {
        check(loop->count < POLL_LOOP_WATCHES);
        at = loop->count++;
    }
    if (loop->count > loop->most)
        loop->most = loop->count;
    loop->watches[at] = (struct poll_watch){fd, events, fn, fn_data};
    return 0;
}

static inline void poll_loop_remove_watch(void *data, int fd)
{
    struct poll_loop *loop = data;
    int at = poll_loop_find(loop, fd);

    check(pthread_equal(loop->thread, pthread_self()));
    /* Only what is watched, and always before it is closed. */
    check(at >= 0);
    check(write(fd, "", 0) == 0 || errno != EBADF);
    loop->removed = loop->watches[at];
    loop->watches[at] = loop->watches[--loop->count];
}

static inline int poll_loop_iterate(void *data, int timeout_ms)
{
    struct poll_loop *loop = data;
    struct pollfd fds[POLL_LOOP_WATCHES];
    struct poll_watch watches[POLL_LOOP_WATCHES];
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

static inline void poll_loop_destroy(void *data)
{
    ((struct poll_loop *)data)->destroyed++;
}

static const vu_ctx_ops poll_loop_ops = {VU_CTX_OPS_INIT, .set_watch = poll_loop_set_watch,
                                         .remove_watch = poll_loop_remove_watch,
                                         .poll = poll_loop_iterate,
                                         .destroy = poll_loop_destroy};

#endif

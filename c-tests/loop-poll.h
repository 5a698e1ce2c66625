/*
 * Loops of a program's own, over poll(2) and over epoll(7), around an epoll context: the loop watches
 * vu_ctx_fd() beside a descriptor of its own and calls vu_ctx_dispatch().
 */
#ifndef TEST_LOOP_POLL_H
#define TEST_LOOP_POLL_H

#include "loop.h"
#include "util.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define MAX_CALLS 8

struct poll_loop {
    int epoll; /* -1: poll(2) */
    int calls_fd; /* ready when there are calls */
    struct call calls[MAX_CALLS];
    int call_count;
    vu_ctx *ctx; /* or NULL */
    bool quit;
};

static inline void poll_watch(struct poll_loop *loop, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    if (loop->epoll >= 0)
        check(epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static inline int poll_new_ctx(void *data, vu_ctx **ctx)
{
    struct poll_loop *loop = data;
    int rc = vu_ctx_new_epoll(ctx, NULL);

    if (rc < 0)
        return rc;
    loop->ctx = *ctx;
    poll_watch(loop, vu_ctx_fd(*ctx));
    return 0;
}

static inline void poll_calls(struct poll_loop *loop)
{
    eventfd_t count;
    int n = loop->call_count;

    check(eventfd_read(loop->calls_fd, &count) == 0);
    for (int i = 0; i < n; i++)
        loop->calls[i].fn(loop->calls[i].arg);
    loop->call_count -= n;
    memmove(loop->calls, loop->calls + n, sizeof(loop->calls[0]) * (size_t)loop->call_count);
}

static inline void poll_ready(struct poll_loop *loop, int fd)
{
    if (fd == loop->calls_fd)
        poll_calls(loop);
    else
        ok(vu_ctx_dispatch(loop->ctx, 0));
}

static inline void poll_once(struct poll_loop *loop, int timeout_ms)
{
    struct pollfd fds[2] = {{.fd = loop->calls_fd, .events = POLLIN},
                            {.fd = loop->ctx ? vu_ctx_fd(loop->ctx) : -1, .events = POLLIN}};

    check(poll(fds, 2, timeout_ms) >= 0);
    for (int i = 0; i < 2; i++)
        if (fds[i].revents)
            poll_ready(loop, fds[i].fd);
}

static inline void epoll_once(struct poll_loop *loop, int timeout_ms)
{
    struct epoll_event events[2];
    int count = epoll_wait(loop->epoll, events, 2, timeout_ms);

    check(count >= 0);
    for (int i = 0; i < count; i++)
        poll_ready(loop, events[i].data.fd);
}

static inline void poll_iterate(struct poll_loop *loop, int timeout_ms)
{
    if (loop->epoll >= 0)
        epoll_once(loop, timeout_ms);
    else
        poll_once(loop, timeout_ms);
}

static inline void poll_run(void *data)
{
    struct poll_loop *loop = data;

    while (!loop->quit)
        poll_iterate(loop, -1);
    loop->quit = false;
}

static inline void poll_quit(void *data)
{
    ((struct poll_loop *)data)->quit = true;
}

static inline void poll_turn(void *data)
{
    poll_iterate(data, 0);
}

static inline void poll_later(void *data, void (*fn)(void *), void *arg)
{
    struct poll_loop *loop = data;

    check(loop->call_count < MAX_CALLS);
    loop->calls[loop->call_count++] = (struct call){fn, arg};
    check(eventfd_write(loop->calls_fd, 1) == 0);
}

/* The kernel lists what an epoll descriptor watches. */
static inline int poll_watches(void *data)
{
    const struct poll_loop *loop = data;
    char path[64], line[256];
    int count = 0;
    FILE *info;

    if (!loop->ctx)
        return 0;
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", ok(vu_ctx_fd(loop->ctx)));
    info = fopen(path, "r");
    check(info != NULL);
    while (fgets(line, sizeof(line), info))
        count += strncmp(line, "tfd:", 4) == 0;
    fclose(info);
    return count;
}

static inline void poll_free_ctx(void *data)
{
    struct poll_loop *loop = data;

    if (loop->epoll >= 0)
        check(epoll_ctl(loop->epoll, EPOLL_CTL_DEL, vu_ctx_fd(loop->ctx), NULL) == 0);
    ok(vu_ctx_free(loop->ctx));
    loop->ctx = NULL;
}

static inline void poll_make(struct poll_loop *loop, bool over_epoll)
{
    *loop = (struct poll_loop){.epoll = over_epoll ? ok(epoll_create1(EPOLL_CLOEXEC)) : -1};
    loop->calls_fd = ok(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    poll_watch(loop, loop->calls_fd);
}

static inline void poll_end(struct poll_loop *loop)
{
    close(loop->calls_fd);
    if (loop->epoll >= 0)
        close(loop->epoll);
}

static inline struct loop poll_loop(struct poll_loop *loop)
{
    return (struct loop){.loop = loop, .new_ctx = poll_new_ctx, .free_ctx = poll_free_ctx,
                         .run = poll_run, .quit = poll_quit, .turn = poll_turn,
                         .later = poll_later, .watches = poll_watches};
}

#endif

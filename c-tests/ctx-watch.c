/* The program's own descriptors in an epoll context: added, replaced, removed. */
#define _GNU_SOURCE
#include "fixture.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>

struct watched {
    vu_ctx *ctx;
    vu_server *server;
    int fd;
    int calls;
    uint32_t revents;
    bool unwatch, nest;
};

static void on_ready(void *data, uint32_t revents)
{
    struct watched *watched = data;

    watched->calls++;
    watched->revents = revents;
    err(vu_server_stop(watched->server), -EDEADLK);
    ok(vu_server_request_stop(watched->server));
    if (watched->unwatch)
        ok(vu_ctx_unwatch(watched->ctx, watched->fd));
    if (watched->nest) {
        watched->nest = false;
        /* Level-triggered: the nested round finds it ready again. */
        check(ok(vu_ctx_dispatch(watched->ctx, 0)) >= 1);
    }
}

static void must_not_run(void *data, uint32_t revents)
{
    (void)data;
    (void)revents;
    abort();
}

int main(void)
{
    struct watched watched = {.server = null_server()};
    eventfd_t value;
    int file;

    watchdog(50);
    ok(vu_ctx_new_epoll(&watched.ctx, NULL));
    watched.fd = ok(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    err(vu_ctx_unwatch(watched.ctx, watched.fd), -ENOENT);
    err(vu_ctx_watch(watched.ctx, -1, POLLIN, on_ready, &watched), -EBADF);
    err(vu_ctx_watch(watched.ctx, 4000, POLLIN, on_ready, &watched), -EBADF);
    file = ok(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    err(vu_ctx_watch(watched.ctx, file, POLLIN, on_ready, &watched), -EPERM);

    ok(vu_ctx_watch(watched.ctx, watched.fd, POLLIN, must_not_run, NULL));
    ok(vu_ctx_watch(watched.ctx, watched.fd, POLLIN, on_ready, &watched));
    check(ok(vu_ctx_dispatch(watched.ctx, 0)) == 0 && watched.calls == 0);
    check(eventfd_write(watched.fd, 1) == 0);
    ok(vu_ctx_dispatch(watched.ctx, -1));
    check(watched.calls == 1 && watched.revents == POLLIN);
    watched.nest = true;
    ok(vu_ctx_dispatch(watched.ctx, -1));
    check(watched.calls == 3);

    /* The whole mask is replaced. */
    check(eventfd_read(watched.fd, &value) == 0);
    ok(vu_ctx_watch(watched.ctx, watched.fd, POLLOUT, on_ready, &watched));
    ok(vu_ctx_dispatch(watched.ctx, -1));
    check(watched.calls == 4 && watched.revents == POLLOUT);

    watched.unwatch = true;
    ok(vu_ctx_dispatch(watched.ctx, -1));
    check(watched.calls == 5);
    check(ok(vu_ctx_dispatch(watched.ctx, 0)) == 0 && watched.calls == 5);
    err(vu_ctx_unwatch(watched.ctx, watched.fd), -ENOENT);

    /* Freeing ends what is left. */
    ok(vu_ctx_watch(watched.ctx, watched.fd, POLLIN, must_not_run, NULL));
    ok(vu_ctx_free(watched.ctx));
    ok(vu_server_stop(watched.server));
    ok(vu_server_free(watched.server));
    close(watched.fd);
    close(file);
    return 0;
}

/* vu_ctx_quit(): from a callback, beforehand, from a signal handler, and each ends one run. */
#define _GNU_SOURCE
#include "fixture.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

static vu_ctx *ctx;
static pthread_t main_thread;

static void on_signal(int number)
{
    (void)number;
    vu_ctx_quit(ctx);
}

static void on_ready(void *data, uint32_t revents)
{
    (void)revents;
    ++*(int *)data;
    vu_ctx_quit(ctx);
}

static void *send_signal(void *data)
{
    (void)data;
    check(pthread_kill(main_thread, SIGUSR1) == 0);
    return NULL;
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    int fd = ok(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
    pthread_t thread;
    int calls = 0;

    watchdog(50);
    main_thread = pthread_self();
    ok(vu_ctx_new_epoll(&ctx, NULL));
    vu_ctx_quit(ctx);
    vu_ctx_quit(ctx);
    ok(vu_ctx_run(ctx));

    /* The two above ended one run: this one runs. */
    ok(vu_ctx_watch(ctx, fd, POLLIN, on_ready, &calls));
    ok(vu_ctx_run(ctx));
    check(calls == 1);
    ok(vu_ctx_unwatch(ctx, fd));

    check(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        check(pthread_create(&thread, NULL, send_signal, NULL) == 0);
        ok(vu_ctx_run(ctx));
        pthread_join(thread, NULL);
    }
    ok(vu_ctx_free(ctx));
    close(fd);
    return 0;
}

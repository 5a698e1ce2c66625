/* <vu_server/uring.h>: watches as poll requests, and what comes late or finds no room. */
#define _GNU_SOURCE
#include "loop-uring.h"
#include "loop-scenario.h"

#include <sys/eventfd.h>

static void *scenario(void *data)
{
    struct uring_loop uring;
    const struct loop loop = uring_loop(&uring);

    (void)data;
    uring_make(&uring, 64);
    loop_scenario(&loop);
    loop_in_other_thread(&loop);
    io_uring_queue_exit(&uring.ring);
    return NULL;
}

/* The completion is in the ring when its watch is removed, replaced or freed. */
static void late_completions(void)
{
    struct uring_loop uring;
    struct loop loop = uring_loop(&uring);
    struct seen first = {.loop = &loop}, second = {.loop = &loop};
    int fd = ok(eventfd(1, EFD_CLOEXEC));

    uring_make(&uring, 8);
    ok(loop.ops.set_watch(&uring.uring, fd, POLLIN, see, &first));
    check(io_uring_cq_ready(&uring.ring) == 1);
    ok(loop.ops.set_watch(&uring.uring, fd, POLLOUT, see, &second));
    ok(vu_uring_iterate(&uring.uring, -1));
    check(first.calls == 0 && second.calls == 1 && second.revents == POLLOUT);
    loop.ops.remove_watch(&uring.uring, fd);
    /* In the same place. */
    ok(loop.ops.set_watch(&uring.uring, fd, POLLIN, see, &first));
    check(uring_watches(&uring) == 1);
    loop.ops.destroy(&uring.uring);
    while (io_uring_cq_ready(&uring.ring) > 0)
        ok(vu_uring_iterate(&uring.uring, 0));
    check(first.calls == 0 && second.calls == 1);
    io_uring_queue_exit(&uring.ring);
    close(fd);
}

/* A removed watch does not keep its descriptor's file: the other end of a pipe hears that it is gone. */
static void removed_is_let_go(void)
{
    struct uring_loop uring;
    struct loop loop = uring_loop(&uring);
    struct seen seen = {.loop = &loop};

    uring_make(&uring, 8);
    check(pipe(seen.pipe) == 0);
    ok(loop.ops.set_watch(&uring.uring, seen.pipe[0], POLLIN, see, &seen));
    loop.ops.remove_watch(&uring.uring, seen.pipe[0]);
    close(seen.pipe[0]);
    ok(fe_wait_fd(seen.pipe[1], 0));
    close(seen.pipe[1]);
    loop.ops.destroy(&uring.uring);
    io_uring_queue_exit(&uring.ring);
}

static void nothing(void *data)
{
    ++*(int *)data;
}

/* A submission queue that the program has filled up is submitted to make room. */
static void full_submission_queue(void)
{
    struct uring_loop uring;
    struct loop loop = uring_loop(&uring);
    struct seen seen[20];
    int called = 0, expected = 0;

    uring_make(&uring, 2);
    for (int i = 0; i < 20; i++) {
        seen[i] = (struct seen){.loop = &loop};
        seen[i].pipe[0] = ok(eventfd(1, EFD_CLOEXEC));
        while (io_uring_sq_space_left(&uring.ring) > 0) {
            uring_later(&uring, nothing, &called);
            expected++;
        }
        ok(loop.ops.set_watch(&uring.uring, seen[i].pipe[0], POLLIN, see, &seen[i]));
    }
    check(uring_watches(&uring) == 20);
    /* More completions than the completion queue holds; each watch is called again and again. */
    for (int i = 0; i < 20; i++)
        while (seen[i].calls < 3)
            ok(vu_uring_iterate(&uring.uring, -1));
    while (called < expected)
        ok(vu_uring_iterate(&uring.uring, -1));
    for (int i = 0; i < 20; i++) {
        loop.ops.remove_watch(&uring.uring, seen[i].pipe[0]);
        close(seen[i].pipe[0]);
    }
    check(uring_watches(&uring) == 0 && uring.uring.unarmed_ == 0);
    loop.ops.destroy(&uring.uring);
    io_uring_queue_exit(&uring.ring);
}

/* What belongs to neither a watch nor the program is not taken for either. */
static void foreign_completions(void)
{
    struct uring_loop uring;

    uring_make(&uring, 2);
    check(!vu_uring_complete(&uring.uring, 0, 0));
    check(!vu_uring_complete(&uring.uring, (uint64_t)(uintptr_t)&uring, 0));
    check(vu_uring_complete(&uring.uring, vu_uring_user_data_(&uring.uring, 0, 0), 0));
    check(vu_uring_complete(&uring.uring, vu_uring_user_data_(&uring.uring, 7, 3), POLLIN));
    check(vu_uring_complete(&uring.uring, vu_uring_user_data_(&uring.uring, 0, 0xffff), -ENOENT));
    io_uring_queue_exit(&uring.ring);
}

int main(void)
{
    pthread_t thread;

    watchdog(50);
    foreign_completions();
    late_completions();
    removed_is_let_go();
    full_submission_queue();
    scenario(NULL);

    check(pthread_create(&thread, NULL, scenario, NULL) == 0);
    pthread_join(thread, NULL);
    return 0;
}

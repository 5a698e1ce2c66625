/* A program of examples/loops, whole: it serves a front-end, and SIGTERM ends it in order. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <sys/wait.h>

static void exchanges(struct fe *fe)
{
    uint8_t *out = fe_alloc(fe, 64), *in = fe_alloc(fe, 64);
    uint32_t written;

    for (int i = 0; i < 100; i++) {
        struct fe_buf bufs[2] = {{out, 64, false}, {in, 64, true}};

        memset(out, i, 64);
        ok(fe_submit(fe, 0, bufs, 2));
        ok(fe_wait_used(fe, 0, &written));
        check(written == 64 && memcmp(in, out, 64) == 0);
    }
}

int main(int argc, char **argv)
{
    struct place place;
    struct fe fe;
    pid_t child;
    int status;

    check(argc == 2);
    watchdog(50);
    place_make(&place);
    child = fork();
    check(child >= 0);
    if (child == 0) {
        execl(argv[1], argv[1], place.address, NULL);
        _exit(127);
    }
    ok(fe_init(&fe, 1 << 20, 1, 64));
    for (int round = 0; round < 2; round++) {
        ok(fe_connect(&fe, place.path));
        ok(fe_start(&fe));
        exchanges(&fe);
        /* The second front-end is there when the program is ended. */
        if (round == 0)
            ok(fe_stop(&fe));
    }
    check(kill(child, SIGTERM) == 0);
    check(waitpid(child, &status, 0) == child);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check(!place_has_socket(&place));
    fe_destroy(&fe);
    place_remove(&place);
    return 0;
}

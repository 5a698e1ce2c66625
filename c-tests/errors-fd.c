/* "fd:N" takes ownership on success, and leaves N alone on failure. */
#define _GNU_SOURCE
#include "fixture.h"

#include <fcntl.h>
#include <sys/socket.h>

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void address_of(char *address, int fd)
{
    sprintf(address, "fd:%d", fd);
}

int main(void)
{
    vu_server *server = null_server(), *other = null_server();
    int fds = open_fds(), pair[2], pipes[2];
    char address[32];
    struct place place;

    watchdog(50);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    check(pipe(pipes) == 0);
    place_make(&place);

    address_of(address, pipes[0]);
    err(vu_server_start(server, address, NULL, NULL), -ENOTSOCK);
    check(is_open(pipes[0]));

    /* A server that is running already. */
    ok(vu_server_start(server, place.address, NULL, NULL));
    address_of(address, pair[0]);
    err(vu_server_start(server, address, NULL, NULL), -EBUSY);
    check(is_open(pair[0]));

    ok(vu_server_start(other, address, NULL, NULL));
    ok(vu_server_stop(other));
    check(!is_open(pair[0]));
    /* The connection is really closed. */
    check(read(pair[1], address, 1) == 0);

    ok(vu_server_stop(server));
    ok(vu_server_free(server));
    ok(vu_server_free(other));
    close(pair[1]);
    close(pipes[0]);
    close(pipes[1]);
    place_remove(&place);
    /* The two servers each had a doorbell. */
    check(open_fds() == fds - 2);
    return 0;
}

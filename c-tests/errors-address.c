/* Addresses that are none are refused by name, and nothing of them is left. */
#define _GNU_SOURCE
#include "fixture.h"

#include <fcntl.h>

static void refused(const char *address, int code, const char *text)
{
    vu_server *server = null_server();
    vu_error *error = NULL;

    err(vu_server_start(server, address, NULL, &error), code);
    check(error != NULL);
    err(vu_error_code(error), code);
    if (!strstr(vu_error_message(error), text)) {
        fprintf(stderr, "'%s' does not say '%s'\n", vu_error_message(error), text);
        abort();
    }
    vu_error_free(error);
    check(vu_server_is_stopped(server) == 1);
    ok(vu_server_free(server));
}

int main(void)
{
    int fds = open_fds(), threads = thread_count();
    char path[200] = "unix:/tmp/";
    struct place place;
    FILE *file;

    watchdog(50);
    refused(NULL, -EINVAL, "address");
    refused("", -EINVAL, "empty");
    refused("unix:", -EINVAL, "empty");
    refused("tcp:127.0.0.1:80", -EINVAL, "tcp:127.0.0.1:80");
    refused("unix:\xff", -EINVAL, "UTF-8");
    refused("fd:", -EINVAL, "fd:");
    refused("fd:x", -EINVAL, "fd:x");
    refused("fd:-1", -EINVAL, "fd:-1");
    refused("fd:99999", -EBADF, "99999");
    memset(path + strlen(path), 'x', 150);
    refused(path, -ENAMETOOLONG, "xxx");
    refused("unix:/no/such/directory/sock", -ENOENT, "/no/such/directory");

    /* A file that is no socket is left alone. */
    place_make(&place);
    file = fopen(place.path, "w");
    check(file != NULL && fclose(file) == 0);
    refused(place.address, -ENOTSOCK, place.path);
    check(unlink(place.path) == 0);
    place_remove(&place);

    check(open_fds() == fds);
    check(thread_count() == threads);
    return 0;
}

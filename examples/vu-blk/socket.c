/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "socket.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "log.h"

static void read_path(int fd, char *path, size_t size)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    socklen_t length = sizeof address;

    path[0] = '\0';
    if (getsockname(fd, (struct sockaddr *)&address, &length) == 0 &&
        address.sun_family == AF_UNIX && length > offsetof(struct sockaddr_un, sun_path)) {
        /* A path that fills the field has no terminator. */
        snprintf(path, size, "%.*s", (int)sizeof address.sun_path, address.sun_path);
    }
}

int socket_examine(struct socket_info *info, const struct options *options)
{
    int listening;
    socklen_t size = sizeof listening;

    *info = (struct socket_info){ 0 };
    if (options->socket_path) {
        snprintf(info->path, sizeof info->path, "%s", options->socket_path);
        return 0;
    }
    if (getsockopt(options->socket_fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0) {
        log_error("--fd=%d: %s", options->socket_fd, strerror(errno));
        return -1;
    }
    info->connected = !listening;
    if (listening) {
        read_path(options->socket_fd, info->path, sizeof info->path);
    }
    return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The socket that the options name: where it is, and whether it listens. */
#ifndef VU_BLK_SOCKET_H
#define VU_BLK_SOCKET_H

#include <limits.h>
#include <stdbool.h>

#include "options.h"

struct socket_info {
    bool connected;      /* the inherited socket is a connection, good for one front-end */
    char path[PATH_MAX]; /* the file that it listens on; empty: there is none */
};

/* Before the start, which takes the descriptor over: 0, or -1 after a line on stderr. */
int socket_examine(struct socket_info *info, const struct options *options);

#endif

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "announce.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "log.h"

/* A value in QEMU's command line: a comma is written twice. */
static void escape_commas(const char *text, char *escaped, size_t size)
{
    size_t length = 0;

    for (; *text && length + 2 < size; text++) {
        if (*text == ',') {
            escaped[length++] = ',';
        }
        escaped[length++] = *text;
    }
    escaped[length] = '\0';
}

static void say_what_is_served(const struct options *options, const struct image *image,
                               const char *where)
{
    uint64_t sectors = image_sectors(image);

    log_info("%s: %" PRIu64 " sectors (%" PRIu64 " MiB)%s, %u queue%s, %s",
             options->blk_file ? options->blk_file : "null disk", sectors,
             sectors >> (20 - SECTOR_SHIFT), options->read_only ? ", read-only" : "",
             options->num_queues, options->num_queues == 1 ? "" : "s", where);
}

/* The memory's size is the user's choice, the rest is as it must be. */
static void say_how_to_connect(const struct options *options, const char *path)
{
    char absolute[PATH_MAX];
    char escaped[2 * PATH_MAX];

    escape_commas(realpath(path, absolute) ? absolute : path, escaped, sizeof escaped);
    log_info("QEMU: -object memory-backend-memfd,id=mem,size=1G,share=on"
             " -machine q35,memory-backend=mem -m 1G -chardev socket,id=disk,path=%s"
             " -device vhost-user-blk-pci,chardev=disk,num-queues=%u",
             escaped, options->num_queues);
}

void announce(const struct options *options, const struct image *image,
              const struct socket_info *socket)
{
    char where[PATH_MAX + 64];

    if (options->socket_path) {
        snprintf(where, sizeof where, "listening on %s", options->socket_path);
    } else {
        snprintf(where, sizeof where, "%s fd %d%s%s",
                 socket->connected ? "connected on" : "listening on", options->socket_fd,
                 socket->path[0] ? ", " : "", socket->path);
    }
    say_what_is_served(options, image, where);
    if (socket->path[0]) {
        say_how_to_connect(options, socket->path);
    }
}

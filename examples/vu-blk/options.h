/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The command line of vu-blk. */
#ifndef VU_BLK_OPTIONS_H
#define VU_BLK_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

struct options {
    const char *socket_path; /* NULL: socket_fd is used */
    int socket_fd;           /* -1: socket_path is used */
    const char *blk_file;    /* NULL: a null disk of null_size bytes */
    uint64_t null_size;
    bool read_only;
    bool verbose;
    uint32_t num_queues;
    uint32_t queue_size; /* 0: no limit but the library's */
    uint32_t poll_max_ns; /* how long a context looks at the rings before it sleeps */
    uint32_t iothreads;  /* 0: everything in the main thread */
    const char *serial;
};

enum options_result {
    OPTIONS_RUN,   /* serve a disk */
    OPTIONS_DONE,  /* --help and its like have been answered */
    OPTIONS_WRONG, /* one line about it is on stderr */
};

enum options_result options_parse(struct options *options, int argc, char **argv);

/* "8", "512K", "1G": 0, or -1 if `text` is not such a size or exceeds INT64_MAX. */
int options_parse_size(const char *text, uint64_t *bytes);

#endif

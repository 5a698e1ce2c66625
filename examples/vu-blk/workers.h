/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The contexts that process the queues, each with its engine and perhaps on its own thread. */
#ifndef VU_BLK_WORKERS_H
#define VU_BLK_WORKERS_H

#include <stdint.h>
#include <vu_server.h>

#include "engine.h"

struct workers;

/* What the workers report, on any of their threads: something failed, the program must end. */
struct workers_config {
    vu_ctx *home;        /* processes the queues when there are no iothreads */
    uint32_t iothreads;
    uint32_t poll_max_ns; /* how long each looks at its rings before it sleeps */
    int fd;              /* the image, -1: no engines */
    engine_failed_fn failed;
    void *data;
};

/* 0, or -errno after a line on stderr. The threads run already. */
int workers_new(const struct workers_config *config, struct workers **workers);

/* Tell the queues of a server that is not yet started which engine is theirs. */
void workers_assign(struct workers *workers, vu_server *server, uint32_t num_queues);

/* Move the queues of a started server to their contexts: 0 or -errno. */
int workers_attach(struct workers *workers, vu_server *server, uint32_t num_queues);

/* End the threads. The server has stopped. */
void workers_join(struct workers *workers);

/* After workers_join(), when nothing is attached to the contexts any more. */
void workers_free(struct workers *workers);

#endif

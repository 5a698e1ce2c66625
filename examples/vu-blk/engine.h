/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* One io_uring in one context: what that context's queues ask of the image. */
#ifndef VU_BLK_ENGINE_H
#define VU_BLK_ENGINE_H

#include <vu_server.h>

#include "request.h"

struct engine;

/* Called on the context's thread when the ring is of no more use. */
typedef void (*engine_failed_fn)(void *data, int error);

/* The ring becomes part of `ctx`. 0, or -errno. */
int engine_new(vu_ctx *ctx, int fd, engine_failed_fn failed, void *data, struct engine **engine);

/* On the context's thread, or when it has ended. */
void engine_free(struct engine *engine);

/* Take the request over; it is under way after the next engine_run(). */
void engine_add(struct engine *engine, struct request *request);

/* Submit what there is, in one go, and finish what is finished already. */
void engine_run(struct engine *engine);

#endif

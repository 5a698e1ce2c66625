/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "workers.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

struct worker {
    struct workers *all;
    vu_ctx *ctx;
    struct engine *engine; /* NULL: a null disk */
    pthread_t thread;
    bool has_thread;
};

struct workers {
    struct workers_config config;
    uint32_t num;
    struct worker list[];
};

static void *run(void *data)
{
    struct worker *worker = data;
    struct workers *workers = worker->all;

    int error = vu_ctx_run(worker->ctx);
    if (error < 0) {
        workers->config.failed(workers->config.data, error);
    }
    return NULL;
}

static int start_thread(struct worker *worker, uint32_t index)
{
    char name[16];

    int error = pthread_create(&worker->thread, NULL, run, worker);
    if (error) {
        log_error("cannot create iothread %u: %s", index, strerror(error));
        return -error;
    }
    worker->has_thread = true;
    snprintf(name, sizeof name, "vu-blk-io%u", index % 1000);
    pthread_setname_np(worker->thread, name);
    return 0;
}

static int set_up(struct worker *worker, uint32_t index)
{
    const struct workers_config *config = &worker->all->config;
    int error = 0;

    if (!config->iothreads) {
        worker->ctx = config->home;
    } else if ((error = vu_ctx_new_epoll(&worker->ctx, NULL)) < 0) {
        log_error("cannot create context %u: %s", index, strerror(-error));
        return error;
    }
    vu_ctx_set_busy_poll(worker->ctx, config->poll_max_ns);
    if (config->fd >= 0) {
        error = engine_new(worker->ctx, config->fd, config->failed, config->data, &worker->engine);
        if (error < 0) {
            log_error("cannot set up io_uring: %s", strerror(-error));
            return error;
        }
    }
    return config->iothreads ? start_thread(worker, index) : 0;
}

int workers_new(const struct workers_config *config, struct workers **result)
{
    uint32_t num = config->iothreads ? config->iothreads : 1;
    struct workers *workers = calloc(1, sizeof *workers + num * sizeof workers->list[0]);

    if (!workers) {
        log_error("no memory for %u contexts", num);
        return -ENOMEM;
    }
    workers->config = *config;
    for (uint32_t i = 0; i < num; i++) {
        workers->list[i].all = workers;
        workers->num = i + 1;
        int error = set_up(&workers->list[i], i);
        if (error < 0) {
            workers_join(workers);
            workers_free(workers);
            return error;
        }
    }
    *result = workers;
    return 0;
}

static struct worker *worker_of(struct workers *workers, uint32_t queue)
{
    return &workers->list[queue % workers->num];
}

void workers_assign(struct workers *workers, vu_server *server, uint32_t num_queues)
{
    for (uint32_t i = 0; i < num_queues; i++) {
        vu_vq_set_data(vu_server_vq(server, i), worker_of(workers, i)->engine);
    }
}

int workers_attach(struct workers *workers, vu_server *server, uint32_t num_queues)
{
    int error = 0;

    for (uint32_t i = 0; workers->config.iothreads && i < num_queues && error >= 0; i++) {
        error = vu_server_attach_vq_ctx(server, i, worker_of(workers, i)->ctx);
    }
    return error;
}

void workers_join(struct workers *workers)
{
    for (uint32_t i = 0; i < workers->num; i++) {
        struct worker *worker = &workers->list[i];
        if (worker->has_thread) {
            vu_ctx_quit(worker->ctx);
            pthread_join(worker->thread, NULL);
            worker->has_thread = false;
        }
    }
}

void workers_free(struct workers *workers)
{
    for (uint32_t i = 0; i < workers->num; i++) {
        struct worker *worker = &workers->list[i];
        engine_free(worker->engine);
        if (worker->ctx != workers->config.home) {
            vu_ctx_free(worker->ctx);
        }
    }
    free(workers);
}

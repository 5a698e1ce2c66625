/* How to call each function, one case a row of the header's table. */
#define _GNU_SOURCE
#include "contract.h"

#include <poll.h>

/* The context that the callback, or the server, lives in. */
#define CTX (scene->rig.ctx)
#define SERVER (scene->rig.server)

static long ctx_new(struct scene *scene)
{
    void *watch = NULL;
    vu_ctx *ctx;
    long rc = vu_ctx_new(&still_ops, &watch, &ctx, NULL);

    (void)scene;
    check(watch != NULL);
    ok(vu_ctx_free(ctx));
    return rc;
}

static long ctx_new_epoll(struct scene *scene)
{
    vu_ctx *ctx;
    long rc = vu_ctx_new_epoll(&ctx, NULL);

    (void)scene;
    ok(vu_ctx_free(ctx));
    return rc;
}

static long ctx_new_polled(struct scene *scene)
{
    vu_ctx *ctx;
    long rc = vu_ctx_new_polled(&ctx, NULL);

    (void)scene;
    ok(vu_ctx_free(ctx));
    return rc;
}

/* In a callback it is that context, while detached the one that the server lived in. */
static long ctx_free(struct scene *scene)
{
    bool own = scene->column == CALLBACK || scene->column == DETACHED;
    vu_ctx **ctx = own ? &CTX : &scene->spare_ctx;
    long rc = vu_ctx_free(*ctx);

    if (rc == 0)
        *ctx = NULL;
    return rc;
}

static long ctx_adopt(struct scene *scene)
{
    return vu_ctx_adopt(CTX);
}

static long ctx_fd(struct scene *scene)
{
    return vu_ctx_fd(CTX);
}

static long ctx_dispatch(struct scene *scene)
{
    return vu_ctx_dispatch(CTX, 0);
}

static long ctx_run(struct scene *scene)
{
    vu_ctx_quit(CTX);
    return vu_ctx_run(CTX);
}

static long ctx_quit(struct scene *scene)
{
    vu_ctx_quit(CTX);
    return 0;
}

static long ctx_set_busy_poll(struct scene *scene)
{
    return vu_ctx_set_busy_poll(CTX, 1000);
}

static long ctx_poll(struct scene *scene)
{
    return vu_ctx_poll(scene->polled);
}

static void on_ready(void *data, uint32_t revents)
{
    (void)data;
    (void)revents;
}

static long ctx_watch(struct scene *scene)
{
    long rc = vu_ctx_watch(CTX, scene->fd, POLLIN, on_ready, NULL);

    ok(vu_ctx_unwatch(CTX, scene->fd));
    return rc;
}

static long ctx_unwatch(struct scene *scene)
{
    ok(vu_ctx_watch(CTX, scene->fd, POLLIN, on_ready, NULL));
    return vu_ctx_unwatch(CTX, scene->fd);
}

static long ctx_flush(struct scene *scene)
{
    return vu_ctx_flush(CTX);
}

static long watch_poll(struct scene *scene)
{
    return vu_watch_poll(scene->watch);
}

static long server_new(struct scene *scene)
{
    const vu_server_config config = test_config();
    vu_server *server;
    long rc = vu_server_new(&config, &null_ops, NULL, &server, NULL);

    (void)scene;
    ok(vu_server_free(server));
    return rc;
}

/* A running server is no matter of threads, so it is one that is new. */
static vu_server *startable(struct scene *scene)
{
    return scene->column == CALLBACK ? SERVER : scene->spare;
}

static long server_start(struct scene *scene)
{
    return vu_server_start(startable(scene), scene->spare_address, NULL, NULL);
}

static long server_stop(struct scene *scene)
{
    return vu_server_stop(SERVER);
}

static long server_request_stop(struct scene *scene)
{
    return vu_server_request_stop(SERVER);
}

static long server_is_stopped(struct scene *scene)
{
    return vu_server_is_stopped(SERVER);
}

static long server_free(struct scene *scene)
{
    long rc;

    /* Legal there, and a test of its own. */
    if (scene->column == CALLBACK && vu_server_is_stopped(SERVER))
        return -EDEADLK;
    rc = vu_server_free(startable(scene));
    if (rc == 0)
        scene->spare = NULL;
    return rc;
}

static long server_attach_ctx(struct scene *scene)
{
    if (scene->column != DETACHED) {
        err(vu_server_attach_ctx(SERVER, CTX), -EBUSY);
        ok(vu_server_request_detach(SERVER));
    }
    return vu_server_attach_ctx(SERVER, CTX);
}

static long server_detach_ctx(struct scene *scene)
{
    return vu_server_detach_ctx(SERVER);
}

static long server_request_detach(struct scene *scene)
{
    return vu_server_request_detach(SERVER);
}

static long server_attach_vq_ctx(struct scene *scene)
{
    err(vu_server_attach_vq_ctx(SERVER, 1, CTX), -EINVAL);
    return vu_server_attach_vq_ctx(SERVER, 0, CTX);
}

static long server_is_quiesced(struct scene *scene)
{
    return vu_server_is_quiesced(SERVER);
}

static long server_has_inflight(struct scene *scene)
{
    return vu_server_has_inflight(SERVER);
}

static long server_inflight_inc(struct scene *scene)
{
    long rc = vu_server_inflight_inc(SERVER);

    if (rc == 0)
        ok(vu_server_inflight_dec(SERVER));
    return rc;
}

static long server_inflight_dec(struct scene *scene)
{
    long rc = vu_server_inflight_inc(SERVER);

    err(vu_server_inflight_dec(scene->spare), -EINVAL);
    return rc < 0 ? rc : vu_server_inflight_dec(SERVER);
}

static long server_set_config(struct scene *scene)
{
    return vu_server_set_config(SERVER, 0, "a", 1);
}

static long server_get_config(struct scene *scene)
{
    char byte;

    return vu_server_get_config(SERVER, 0, &byte, 1);
}

/* The front-end of the scene has given no channel, which each of these finds out at once. */
static const uint8_t uuid[16];

static long server_object_add(struct scene *scene)
{
    err(vu_server_object_add(SERVER, uuid, NULL, NULL), -ENOTCONN);
    return 0;
}

static long server_object_remove(struct scene *scene)
{
    err(vu_server_object_remove(SERVER, uuid, NULL, NULL), -ENOTCONN);
    return 0;
}

static void no_answer(void *opaque, int error, int fd)
{
    (void)opaque;
    (void)error;
    (void)fd;
    abort();
}

static long server_object_lookup(struct scene *scene)
{
    err(vu_server_object_lookup(SERVER, uuid, no_answer, NULL), -ENOTCONN);
    return 0;
}

/* Nor has the device a region to map anything in. */
static long server_shmem_map(struct scene *scene)
{
    const vu_shmem_mapping mapping = VU_SHMEM_MAPPING_INIT;

    err(vu_server_shmem_map(SERVER, &mapping, 0, NULL, NULL), -EINVAL);
    return 0;
}

static long server_shmem_unmap(struct scene *scene)
{
    const vu_shmem_mapping mapping = VU_SHMEM_MAPPING_INIT;

    err(vu_server_shmem_unmap(SERVER, &mapping, NULL, NULL), -EINVAL);
    return 0;
}

static long server_host_notifier(struct scene *scene)
{
    err(vu_server_host_notifier(SERVER, 0, -1, 0, 0, NULL, NULL), -ENOTCONN);
    return 0;
}

static long server_features(struct scene *scene)
{
    uint64_t features = vu_server_features(SERVER);

    check(scene->column == CALLBACK || features & FE_F_VERSION_1);
    return 0;
}

static long server_vq(struct scene *scene)
{
    check(vu_server_vq(SERVER, 0) == scene->vq);
    return 0;
}

static long server_get_stats(struct scene *scene)
{
    vu_server_stats stats = VU_SERVER_STATS_INIT;
    long rc = vu_server_get_stats(SERVER, &stats);

    check(stats.connections == 1);
    return rc;
}

static long vq_get_stats(struct scene *scene)
{
    vu_vq_stats stats = VU_VQ_STATS_INIT;

    return vu_vq_get_stats(scene->vq, &stats);
}

static long vq_pop(struct scene *scene)
{
    long rc = vu_vq_pop(scene->vq, &scene->elem, 1);

    check(rc < 0 || rc == 1);
    return rc;
}

static long vq_unpop(struct scene *scene)
{
    long rc = vu_vq_unpop(scene->vq, &scene->elem, 1);

    if (rc == 0)
        scene->elem = NULL;
    return rc;
}

static long vq_stage(struct scene *scene)
{
    long rc = vu_vq_stage(scene->vq, scene->elem, 0);

    if (rc == 0)
        scene->elem = NULL;
    return rc;
}

static long vq_flush(struct scene *scene)
{
    return vu_vq_flush(scene->vq);
}

static long vq_index(struct scene *scene)
{
    return vu_vq_index(scene->vq) == 0 ? 0 : -EINVAL;
}

static long vq_size(struct scene *scene)
{
    uint32_t size = vu_vq_size(scene->vq);

    check(scene->column == CALLBACK || size == 64);
    return size;
}

static long vq_server(struct scene *scene)
{
    check(vu_vq_server(scene->vq) == SERVER);
    return 0;
}

static long vq_big_endian(struct scene *scene)
{
    return vu_vq_big_endian(scene->vq);
}

static long vq_enabled(struct scene *scene)
{
    return vu_vq_enabled(scene->vq);
}

static long vq_set_data(struct scene *scene)
{
    vu_vq_set_data(scene->vq, scene);
    check(vu_vq_data(scene->vq) == scene);
    return 0;
}

static long vq_data(struct scene *scene)
{
    check(vu_vq_data(scene->vq) == NULL);
    return 0;
}

static long vq_inflight_inc(struct scene *scene)
{
    long rc = vu_vq_inflight_inc(scene->vq);

    if (rc == 0)
        ok(vu_vq_inflight_dec(scene->vq));
    return rc;
}

static long vq_inflight_dec(struct scene *scene)
{
    long rc = vu_vq_inflight_inc(scene->vq);

    if (rc < 0)
        return rc;
    rc = vu_vq_inflight_dec(scene->vq);
    err(vu_vq_inflight_dec(scene->vq), -EINVAL);
    return rc;
}

static long elem_complete(struct scene *scene)
{
    long rc;

    err(vu_elem_complete(scene->elem, scene->elem->in_len + 1), -EINVAL);
    rc = vu_elem_complete(scene->elem, 0);
    if (rc == 0)
        scene->elem = NULL;
    return rc;
}

/* The front-end here does not take requests over; that it is asked for is legal. */
static long elem_suspend(struct scene *scene)
{
    err(vu_elem_suspend(scene->elem), -ENOTSUP);
    return 0;
}

static long elem_read(struct scene *scene)
{
    char bytes[32];

    check(vu_elem_read(scene->elem, 0, bytes, sizeof(bytes)) == scene->elem->out_len);
    return 0;
}

static long elem_write(struct scene *scene)
{
    check(vu_elem_write(scene->elem, 8, "12345678901234567890", 20) == scene->elem->in_len - 8);
    return 0;
}

static long elem_iov_slice(struct scene *scene)
{
    struct iovec slice[2];

    return vu_elem_iov_slice(scene->elem->in, scene->elem->in_num, 1, 4, slice, 2);
}

static long elem_mark_dirty(struct scene *scene)
{
    return vu_elem_mark_dirty(scene->elem, 0, 1);
}

static long elem_vq(struct scene *scene)
{
    check(vu_elem_vq(scene->elem) == scene->vq);
    return 0;
}

static vu_error *some_error(struct scene *scene)
{
    vu_error *error = NULL;

    err(vu_server_start(scene->spare, NULL, NULL, &error), -EINVAL);
    check(error != NULL);
    return error;
}

static long error_code(struct scene *scene)
{
    vu_error *error = some_error(scene);

    err(vu_error_code(error), -EINVAL);
    vu_error_free(error);
    return 0;
}

static long error_message(struct scene *scene)
{
    vu_error *error = some_error(scene);

    check(strstr(vu_error_message(error), "address") != NULL);
    vu_error_free(error);
    return 0;
}

static long error_free(struct scene *scene)
{
    vu_error_free(some_error(scene));
    return 0;
}

static long version(struct scene *scene)
{
    (void)scene;
    check(vu_version() == VU_SERVER_VERSION);
    return 0;
}

static long version_string(struct scene *scene)
{
    (void)scene;
    check(strcmp(vu_version_string(), VU_SERVER_VERSION_STRING) == 0);
    return 0;
}

#define CASE(name, flags) {"vu_" #name, name, flags}

const struct contract_case contract_cases[] = {
    CASE(ctx_new, 0),
    CASE(ctx_new_epoll, 0),
    CASE(ctx_new_polled, 0),
    CASE(ctx_free, 0),
    CASE(ctx_adopt, 0),
    CASE(ctx_fd, 0),
    CASE(ctx_dispatch, 0),
    CASE(ctx_run, 0),
    CASE(ctx_quit, 0),
    CASE(ctx_set_busy_poll, 0),
    CASE(ctx_poll, 0),
    CASE(ctx_watch, 0),
    CASE(ctx_unwatch, 0),
    CASE(ctx_flush, 0),
    CASE(watch_poll, 0),
    CASE(server_new, 0),
    CASE(server_start, 0),
    CASE(server_stop, WAITS),
    CASE(server_request_stop, ENDS),
    CASE(server_is_stopped, 0),
    CASE(server_free, 0),
    CASE(server_attach_ctx, RUNS),
    CASE(server_detach_ctx, 0),
    CASE(server_request_detach, ENDS),
    CASE(server_attach_vq_ctx, RUNS),
    CASE(server_is_quiesced, 0),
    CASE(server_has_inflight, 0),
    CASE(server_inflight_inc, DRAINS),
    CASE(server_inflight_dec, DRAINS),
    CASE(server_set_config, 0),
    CASE(server_get_config, 0),
    CASE(server_object_add, 0),
    CASE(server_object_remove, 0),
    CASE(server_object_lookup, 0),
    CASE(server_shmem_map, 0),
    CASE(server_shmem_unmap, 0),
    CASE(server_host_notifier, 0),
    CASE(server_features, 0),
    CASE(server_vq, 0),
    CASE(server_get_stats, 0),
    CASE(vq_get_stats, 0),
    CASE(vq_pop, RING),
    CASE(vq_unpop, ELEM),
    CASE(vq_stage, ELEM),
    CASE(vq_flush, RING),
    CASE(vq_index, 0),
    CASE(vq_size, 0),
    CASE(vq_server, 0),
    CASE(vq_enabled, 0),
    CASE(vq_big_endian, 0),
    CASE(vq_set_data, 0),
    CASE(vq_data, 0),
    CASE(vq_inflight_inc, DRAINS),
    CASE(vq_inflight_dec, DRAINS),
    CASE(elem_complete, ELEM),
    CASE(elem_suspend, ELEM),
    CASE(elem_read, ELEM),
    CASE(elem_write, ELEM),
    CASE(elem_iov_slice, ELEM),
    CASE(elem_mark_dirty, ELEM),
    CASE(elem_vq, ELEM),
    CASE(error_code, 0),
    CASE(error_message, 0),
    CASE(error_free, 0),
    CASE(version, 0),
    CASE(version_string, 0),
    {NULL, NULL, 0},
};

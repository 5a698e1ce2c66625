/* NULL is an answer everywhere. */
#include "fixture.h"

#include <poll.h>

static void servers(void)
{
    const vu_server_config config = test_config();
    vu_server_stats stats = VU_SERVER_STATS_INIT;
    vu_server *server = (vu_server *)&server;
    vu_shmem_mapping mapping = VU_SHMEM_MAPPING_INIT;
    const uint8_t uuid[16] = {0};
    char byte = 0;

    err(vu_server_new(NULL, &null_ops, NULL, &server, NULL), -EINVAL);
    check(server == NULL);
    err(vu_server_new(&config, NULL, NULL, &server, NULL), -EINVAL);
    err(vu_server_new(&config, &null_ops, NULL, NULL, NULL), -EINVAL);
    err(vu_server_start(NULL, "unix:/x", NULL, NULL), -EINVAL);
    err(vu_server_stop(NULL), -EINVAL);
    err(vu_server_request_stop(NULL), -EINVAL);
    err(vu_server_is_stopped(NULL), -EINVAL);
    err(vu_server_attach_ctx(NULL, NULL), -EINVAL);
    err(vu_server_detach_ctx(NULL), -EINVAL);
    err(vu_server_request_detach(NULL), -EINVAL);
    err(vu_server_attach_vq_ctx(NULL, 0, NULL), -EINVAL);
    err(vu_server_is_quiesced(NULL), -EINVAL);
    err(vu_server_has_inflight(NULL), -EINVAL);
    err(vu_server_inflight_inc(NULL), -EINVAL);
    err(vu_server_inflight_dec(NULL), -EINVAL);
    err(vu_server_set_config(NULL, 0, &byte, 1), -EINVAL);
    err(vu_server_get_config(NULL, 0, &byte, 1), -EINVAL);
    err(vu_server_object_add(NULL, uuid, NULL, NULL), -EINVAL);
    err(vu_server_object_remove(NULL, uuid, NULL, NULL), -EINVAL);
    err(vu_server_object_lookup(NULL, uuid, NULL, NULL), -EINVAL);
    err(vu_server_shmem_map(NULL, &mapping, 0, NULL, NULL), -EINVAL);
    err(vu_server_shmem_unmap(NULL, &mapping, NULL, NULL), -EINVAL);
    err(vu_server_host_notifier(NULL, 0, -1, 0, 0, NULL, NULL), -EINVAL);
    err(vu_server_get_stats(NULL, &stats), -EINVAL);
    check(vu_server_features(NULL) == 0);
    check(vu_server_vq(NULL, 0) == NULL);

    server = null_server();
    err(vu_server_start(server, NULL, NULL, NULL), -EINVAL);
    err(vu_server_attach_ctx(server, NULL), -EINVAL);
    err(vu_server_set_config(server, 0, NULL, 1), -EINVAL);
    err(vu_server_get_config(server, 0, NULL, 1), -EINVAL);
    err(vu_server_object_add(server, NULL, NULL, NULL), -EINVAL);
    err(vu_server_object_remove(server, NULL, NULL, NULL), -EINVAL);
    err(vu_server_object_lookup(server, NULL, NULL, NULL), -EINVAL);
    err(vu_server_object_lookup(server, uuid, NULL, NULL), -EINVAL);
    err(vu_server_shmem_map(server, NULL, 0, NULL, NULL), -EINVAL);
    err(vu_server_shmem_unmap(server, NULL, NULL, NULL), -EINVAL);
    err(vu_server_get_stats(server, NULL), -EINVAL);
    ok(vu_server_free(server));
}

static void contexts(void)
{
    const vu_ctx_ops ops = {VU_CTX_OPS_INIT};
    vu_ctx *ctx = (vu_ctx *)&ctx;

    err(vu_ctx_new(NULL, NULL, &ctx, NULL), -EINVAL);
    check(ctx == NULL);
    err(vu_ctx_new(&ops, NULL, NULL, NULL), -EINVAL);
    err(vu_ctx_new_epoll(NULL, NULL), -EINVAL);
    err(vu_ctx_new_polled(NULL, NULL), -EINVAL);
    err(vu_ctx_adopt(NULL), -EINVAL);
    err(vu_ctx_fd(NULL), -EINVAL);
    err(vu_ctx_dispatch(NULL, 0), -EINVAL);
    err(vu_ctx_run(NULL), -EINVAL);
    vu_ctx_quit(NULL);
    err(vu_ctx_set_busy_poll(NULL, 0), -EINVAL);
    err(vu_ctx_poll(NULL), -EINVAL);
    err(vu_ctx_watch(NULL, 0, POLLIN, NULL, NULL), -EINVAL);
    err(vu_ctx_unwatch(NULL, 0), -EINVAL);
    err(vu_ctx_flush(NULL), -EINVAL);
    err(vu_watch_poll(NULL), -EINVAL);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    err(vu_ctx_watch(ctx, 0, POLLIN, NULL, NULL), -EINVAL);
    ok(vu_ctx_free(ctx));
}

static void queues(void)
{
    vu_vq_stats stats = VU_VQ_STATS_INIT;
    vu_server *server = null_server();
    vu_vq *vq = vu_server_vq(server, 0);
    vu_elem *elem;

    err(vu_vq_pop(NULL, &elem, 1), -EINVAL);
    err(vu_vq_pop(vq, NULL, 1), -EINVAL);
    err(vu_vq_unpop(NULL, &elem, 1), -EINVAL);
    err(vu_vq_stage(NULL, NULL, 0), -EINVAL);
    err(vu_vq_stage(vq, NULL, 0), -EINVAL);
    err(vu_vq_flush(NULL), -EINVAL);
    check(vu_vq_index(NULL) == UINT32_MAX);
    check(vu_vq_size(NULL) == 0);
    check(vu_vq_server(NULL) == NULL);
    err(vu_vq_enabled(NULL), -EINVAL);
    err(vu_vq_big_endian(NULL), -EINVAL);
    vu_vq_set_data(NULL, server);
    check(vu_vq_data(NULL) == NULL);
    err(vu_vq_inflight_inc(NULL), -EINVAL);
    err(vu_vq_inflight_dec(NULL), -EINVAL);
    err(vu_vq_get_stats(NULL, &stats), -EINVAL);
    err(vu_vq_get_stats(vq, NULL), -EINVAL);
    ok(vu_server_free(server));
}

static void elements(void)
{
    struct iovec iov;
    char byte = 0;

    err(vu_elem_complete(NULL, 0), -EINVAL);
    check(vu_elem_read(NULL, 0, &byte, 1) == 0);
    check(vu_elem_write(NULL, 0, &byte, 1) == 0);
    err(vu_elem_iov_slice(NULL, 1, 0, 1, &iov, 1), -EINVAL);
    err(vu_elem_iov_slice(&iov, 1, 0, 1, NULL, 1), -EINVAL);
    check(vu_elem_iov_slice(NULL, 0, 0, 0, NULL, 0) == 0);
    err(vu_elem_mark_dirty(NULL, 0, 0), -EINVAL);
    err(vu_elem_suspend(NULL), -EINVAL);
    check(vu_elem_vq(NULL) == NULL);
    err(vu_error_code(NULL), -EINVAL);
    check(vu_error_message(NULL) != NULL);
}

int main(void)
{
    servers();
    contexts();
    queues();
    elements();
    return 0;
}

/*
 * A program of another version: growth.py compiles it against headers in which
 * the structures are shorter or longer than the library's. USE_NEW sets a field
 * that the library does not know.
 */
#include "fixture.h"

#include <stddef.h>

static int set_watch(void *loop, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    (void)loop;
    (void)fd;
    (void)events;
    (void)fn;
    (void)data;
    return 0;
}

static void remove_watch(void *loop, int fd)
{
    (void)loop;
    (void)fd;
}

#ifdef USE_NEW
#define NEW_FIELD .new_2 = 1,
#define RESULT (-E2BIG)
#else
#define NEW_FIELD
#define RESULT 0
#endif

static void contexts(void)
{
    const vu_ctx_ops ops = {VU_CTX_OPS_INIT, .set_watch = set_watch, NEW_FIELD
                            .remove_watch = remove_watch};
    vu_ctx *ctx;

    err(vu_ctx_new(&ops, NULL, &ctx, NULL), RESULT);
    ok(vu_ctx_free(ctx));
}

static void devices(void)
{
    const vu_server_config config = test_config();
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, NEW_FIELD .kick = null_kick};
    vu_server *server;

    err(vu_server_new(&config, &ops, NULL, &server, NULL), RESULT);
    ok(vu_server_free(server));
}

static void configurations(void)
{
    const vu_server_config config = {.struct_size = sizeof(config), NEW_FIELD .num_queues = 1};
    vu_server *server;

    err(vu_server_new(&config, &null_ops, NULL, &server, NULL), RESULT);
    ok(vu_server_free(server));
}

/* There is no region to map anything in, which is found out after the structure has been read. */
static void mappings(void)
{
    const vu_shmem_mapping mapping = {.struct_size = sizeof(mapping), NEW_FIELD .region = 0};
    vu_server *server = null_server();

    err(vu_server_shmem_map(server, &mapping, 0, NULL, NULL), RESULT ? RESULT : -EINVAL);
    ok(vu_server_free(server));
}

/* What is filled in never goes beyond what the program has room for. */
static void statistics(void)
{
    struct {
        vu_server_stats server;
        uint64_t behind_server;
        vu_vq_stats vq;
        uint64_t behind_vq;
    } stats = {VU_SERVER_STATS_INIT, 42, VU_VQ_STATS_INIT, 43};
    vu_server *server = null_server();
    vu_ctx *ctx;
    struct place place;

    place_make(&place);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    ok(vu_server_start(server, place.address, ctx, NULL));
    ok(vu_server_get_stats(server, &stats.server));
    ok(vu_vq_get_stats(vu_server_vq(server, 0), &stats.vq));
    check(stats.server.struct_size == sizeof(vu_server_stats) && stats.behind_server == 42);
    check(stats.vq.struct_size == sizeof(vu_vq_stats) && stats.behind_vq == 43);
    check(stats.server.connections == 0 && stats.vq.pops == 0);
    ok(vu_server_stop(server));
    ok(vu_server_free(server));
    ok(vu_ctx_free(ctx));
    place_remove(&place);
}

int main(void)
{
    watchdog(50);
    contexts();
    devices();
    configurations();
    mappings();
    statistics();
    return 0;
}

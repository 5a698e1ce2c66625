/* A program that was built against a newer header may use only what is known. */
#include "fixture.h"

struct newer_ops {
    vu_device_ops ops;
    void (*unheard_of)(void);
};

struct newer_stats {
    vu_vq_stats stats;
    uint64_t unheard_of[2];
};

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

static void unheard_of(void)
{
}

static void contexts(void)
{
    struct {
        vu_ctx_ops ops;
        void (*unheard_of)(void);
    } newer = {.ops = {sizeof(newer), set_watch, remove_watch, NULL, NULL}};
    vu_ctx *ctx;

    ok(vu_ctx_new(&newer.ops, NULL, &ctx, NULL));
    ok(vu_ctx_free(ctx));
    newer.unheard_of = unheard_of;
    err(vu_ctx_new(&newer.ops, NULL, &ctx, NULL), -E2BIG);
    check(ctx == NULL);
}

int main(void)
{
    struct newer_ops ops = {.ops = null_ops};
    const vu_server_config config = test_config();
    struct newer_stats stats;
    vu_error *error;
    vu_server *server;

    ops.ops.struct_size = sizeof(ops);
    ok(vu_server_new(&config, &ops.ops, NULL, &server, NULL));

    memset(&stats, 0xaa, sizeof(stats));
    stats.stats.struct_size = sizeof(stats);
    ok(vu_vq_get_stats(vu_server_vq(server, 0), &stats.stats));
    check(stats.stats.struct_size == sizeof(stats));
    check(stats.stats.breaks == 0);
    check(stats.unheard_of[0] == 0 && stats.unheard_of[1] == 0);
    stats.stats.struct_size = 1 << 20;
    err(vu_vq_get_stats(vu_server_vq(server, 0), &stats.stats), -E2BIG);
    ok(vu_server_free(server));

    ops.unheard_of = unheard_of;
    err(vu_server_new(&config, &ops.ops, NULL, &server, &error), -E2BIG);
    check(server == NULL);
    err(vu_error_code(error), -E2BIG);
    vu_error_free(error);
    contexts();
    return 0;
}

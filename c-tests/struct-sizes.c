/* Each structure that begins with its size, in every size that a program may say it has. */
#include "fixture.h"

#include <stddef.h>

#define LARGEST 4096

/* The program's structure: the one under test, and what it may not know behind it. */
static union {
    size_t struct_size;
    vu_ctx_ops ctx_ops;
    vu_device_ops device_ops;
    vu_server_config config;
    vu_server_stats server_stats;
    vu_vq_stats vq_stats;
    unsigned char bytes[LARGEST + 16];
} shared;

static vu_server *server;

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

/* Each fills the structure with what is needed, and passes it to the library. */

static int use_ctx_ops(size_t size)
{
    vu_ctx *ctx;

    shared.ctx_ops = (vu_ctx_ops){size, set_watch, remove_watch, NULL, NULL};
    int rc = vu_ctx_new(&shared.ctx_ops, NULL, &ctx, NULL);
    if (rc == 0)
        ok(vu_ctx_free(ctx));
    else
        check(ctx == NULL);
    return rc;
}

static int new_server(const vu_server_config *config, const vu_device_ops *ops)
{
    vu_server *made;
    int rc = vu_server_new(config, ops, NULL, &made, NULL);

    if (rc == 0)
        ok(vu_server_free(made));
    else
        check(made == NULL);
    return rc;
}

static int use_device_ops(size_t size)
{
    const vu_server_config config = test_config();

    shared.device_ops = null_ops;
    shared.struct_size = size;
    return new_server(&config, &shared.device_ops);
}

static int use_config(size_t size)
{
    shared.config = test_config();
    shared.struct_size = size;
    return new_server(&shared.config, &null_ops);
}

/* What the library does not fill in stays, and what it does not know is zero. */
static void check_filled(size_t size, size_t known)
{
    for (size_t at = known; at < size; at++)
        check(shared.bytes[at] == 0);
    for (size_t at = size; at < sizeof(shared); at++)
        check(shared.bytes[at] == 0xaa);
    check(shared.struct_size == size);
}

static int use_server_stats(size_t size)
{
    memset(&shared, 0xaa, sizeof(shared));
    shared.struct_size = size;
    int rc = vu_server_get_stats(server, &shared.server_stats);
    if (rc == 0)
        check_filled(size, sizeof(vu_server_stats));
    return rc;
}

static int use_vq_stats(size_t size)
{
    memset(&shared, 0xaa, sizeof(shared));
    shared.struct_size = size;
    int rc = vu_vq_get_stats(vu_server_vq(server, 0), &shared.vq_stats);
    if (rc == 0)
        check_filled(size, sizeof(vu_vq_stats));
    return rc;
}

static const struct structure {
    const char *name;
    int (*use)(size_t size);
    size_t now;
    size_t enough; /* up to the last field that is required */
    bool input;
} structures[] = {
    {"vu_ctx_ops", use_ctx_ops, sizeof(vu_ctx_ops), offsetof(vu_ctx_ops, poll), true},
    {"vu_device_ops", use_device_ops, sizeof(vu_device_ops),
     offsetof(vu_device_ops, queue_started), true},
    {"vu_server_config", use_config, sizeof(vu_server_config),
     offsetof(vu_server_config, config_space), true},
    {"vu_server_stats", use_server_stats, sizeof(vu_server_stats), sizeof(size_t), false},
    {"vu_vq_stats", use_vq_stats, sizeof(vu_vq_stats), sizeof(size_t), false},
};

static int expected(const struct structure *structure, size_t size)
{
    if (size < sizeof(size_t) || size % sizeof(size_t) || size < structure->enough)
        return -EINVAL;
    return size > LARGEST ? -E2BIG : 0;
}

static void try_sizes(const struct structure *structure)
{
    for (size_t size = 0; size <= LARGEST + 8; size++) {
        memset(&shared, 0, sizeof(shared));
        int got = structure->use(size);
        if (got != expected(structure, size)) {
            fprintf(stderr, "%s of %zu bytes: %d\n", structure->name, size, got);
            abort();
        }
    }
}

/* One byte behind what the library knows is something that it cannot do. */
static void try_tails(const struct structure *structure)
{
    const size_t size = structure->now + 16;

    for (size_t at = structure->now; at < size; at++) {
        memset(&shared, 0, sizeof(shared));
        shared.bytes[at] = 1;
        check(structure->use(size) == -E2BIG);
    }
    /* Behind its end is none of its business. */
    memset(&shared, 0, sizeof(shared));
    shared.bytes[size] = 1;
    check(structure->use(size) == 0);
}

int main(void)
{
    watchdog(50);
    server = null_server();
    for (size_t i = 0; i < sizeof(structures) / sizeof(structures[0]); i++) {
        try_sizes(&structures[i]);
        if (structures[i].input)
            try_tails(&structures[i]);
    }
    ok(vu_server_free(server));
    return 0;
}

/* Requests to the front-end: what it gets, and what their functions hear, once each. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <sys/eventfd.h>

static const uint8_t uuid[16] = "0123456789abcdef";

/* BACKEND_REQ, BACKEND_SEND_FD, HOST_NOTIFIER, SHARED_OBJECT, SHMEM. */
#define FEATURES                                                               \
    (1ULL << 5 | 1ULL << 10 | 1ULL << 11 | 1ULL << 18 | 1ULL << 22 | FE_PF_REPLY_ACK)

struct answer {
    int calls;
    int error;
    int fd;
};

static void done(void *opaque, int error, int fd)
{
    struct answer *answer = opaque;

    answer->error = error;
    answer->fd = fd;
    __atomic_add_fetch(&answer->calls, 1, __ATOMIC_RELEASE);
}

/* Waits for the answer that comes next. */
static void hears(struct answer *answer, int error)
{
    eventually(__atomic_load_n(&answer->calls, __ATOMIC_ACQUIRE) == 1);
    check(answer->error == error);
    answer->calls = 0;
}

static int shared_object(void *dev, const uint8_t *name, int *fd)
{
    (void)dev;
    (void)name;
    (void)fd;
    return -ENOENT;
}

/* The channel's other end gets `id` with this body, and sends `value` back. */
static int serve(struct fe *channel, uint32_t id, const void *body, uint32_t size, uint64_t value,
                 const int *reply_fd)
{
    struct fe_msg request;
    int fd;

    ok(fe_recv_fd(channel, &request, &fd));
    check(request.request == id && request.size == size);
    check(request.flags == (FE_VERSION | FE_NEED_REPLY));
    check(memcmp(request.body, body, size) == 0);
    ok(fe_send(channel, id, FE_REPLY, &value, sizeof(value), reply_fd, reply_fd != NULL));
    return fd;
}

static void objects(vu_server *server, struct fe *channel)
{
    struct answer answer = {0};
    int object = eventfd(5, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t count;

    ok(vu_server_object_add(server, uuid, done, &answer));
    check(serve(channel, FE_BE_SHARED_OBJECT_ADD, uuid, 16, 0, NULL) == -1);
    hears(&answer, 0);
    check(answer.fd == -1);
    ok(vu_server_object_remove(server, uuid, done, &answer));
    serve(channel, FE_BE_SHARED_OBJECT_REMOVE, uuid, 16, 1, NULL);
    hears(&answer, -EREMOTEIO);
    ok(vu_server_object_lookup(server, uuid, done, &answer));
    serve(channel, FE_BE_SHARED_OBJECT_LOOKUP, uuid, 16, 0, &object);
    hears(&answer, 0);
    check(read(answer.fd, &count, sizeof(count)) == sizeof(count) && count == 5);
    close(answer.fd);
    ok(vu_server_object_lookup(server, uuid, done, &answer));
    serve(channel, FE_BE_SHARED_OBJECT_LOOKUP, uuid, 16, 1, NULL);
    hears(&answer, -EREMOTEIO);
    check(answer.fd == -1);
    /* Nobody has to listen. */
    ok(vu_server_object_add(server, uuid, NULL, NULL));
    serve(channel, FE_BE_SHARED_OBJECT_ADD, uuid, 16, 0, NULL);
    close(object);
}

static void mappings(vu_server *server, struct fe *channel)
{
    const uint64_t map[] = {1, 0x8000, 0x1000, 0x2000, 1}, unmap[] = {1, 0, 0x1000, 0x2000, 0};
    const uint64_t set[] = {0, 0x1000, 0x3000}, withdraw[] = {0x100, 0, 0};
    struct answer answer = {0};
    vu_shmem_mapping mapping = VU_SHMEM_MAPPING_INIT;
    int file = eventfd(0, EFD_CLOEXEC), fd;

    mapping.region = 1;
    mapping.flags = VU_SHMEM_WRITABLE;
    mapping.offset = 0x1000;
    mapping.len = 0x2000;
    mapping.fd_offset = 0x8000;
    ok(vu_server_shmem_map(server, &mapping, file, done, &answer));
    fd = serve(channel, FE_BE_SHMEM_MAP, map, sizeof(map), 0, NULL);
    hears(&answer, 0);
    check(fd >= 0);
    close(fd);
    ok(vu_server_shmem_unmap(server, &mapping, done, &answer));
    check(serve(channel, FE_BE_SHMEM_UNMAP, unmap, sizeof(unmap), 0, NULL) == -1);
    hears(&answer, 0);

    err(vu_server_shmem_map(server, &mapping, -1, done, &answer), -EBADF);
    mapping.len = 0x4000;
    err(vu_server_shmem_map(server, &mapping, file, done, &answer), -EINVAL);
    mapping.len = 0x1000;
    mapping.flags = 2;
    err(vu_server_shmem_map(server, &mapping, file, done, &answer), -EINVAL);
    mapping.flags = 0;
    mapping.region = 257;
    err(vu_server_shmem_unmap(server, &mapping, done, &answer), -EINVAL);

    ok(vu_server_host_notifier(server, 0, file, 0x3000, 0x1000, done, &answer));
    fd = serve(channel, FE_BE_VRING_HOST_NOTIFIER_MSG, set, sizeof(set), 0, NULL);
    hears(&answer, 0);
    check(fd >= 0);
    close(fd);
    ok(vu_server_host_notifier(server, 0, -1, 0, 0, done, &answer));
    serve(channel, FE_BE_VRING_HOST_NOTIFIER_MSG, withdraw, sizeof(withdraw), 0, NULL);
    hears(&answer, 0);
    err(vu_server_host_notifier(server, 1, file, 0, 0x1000, done, &answer), -EINVAL);
    close(file);
}

static void run(void)
{
    static const vu_device_ops ops = {
        VU_DEVICE_OPS_INIT,
        .kick = echo_kick,
        .shared_object = shared_object,
    };
    static const uint64_t sizes[] = {0, 0x4000};
    vu_server_config config = test_config();
    struct answer answers[65] = {{0}};
    vu_server_stats stats = VU_SERVER_STATS_INIT;
    struct fe channel = {.sock = -1, .memfd = -1};
    struct fe_msg shmem;
    pthread_t thread;
    struct rig rig;
    vu_ctx *ctx;
    int pair[2];

    config.shmem_sizes = sizes;
    config.num_shmem_regions = 2;
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&rig, &config, &ops, NULL, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    err(vu_server_object_add(rig.server, uuid, done, answers), -ENOTCONN);
    ok(fe_set_u64(&rig.fe, FE_SET_PROTOCOL_FEATURES, FEATURES));
    rig.fe.protocol_features = FEATURES;
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    ok(fe_set(&rig.fe, FE_SET_BACKEND_REQ_FD, NULL, 0, &pair[0], 1));
    close(pair[0]);
    fe_adopt(&channel, pair[1]);

    ok(fe_send(&rig.fe, FE_GET_SHMEM_CONFIG, 0, NULL, 0, NULL, 0));
    ok(fe_recv(&rig.fe, &shmem));
    check(shmem.size == 8 + 256 * 8 && shmem.body[0] == 1);
    check(memcmp(shmem.body + 8, sizes, sizeof(sizes)) == 0);

    objects(rig.server, &channel);
    mappings(rig.server, &channel);

    /* So many wait and no more, and a stop answers them. */
    for (int i = 0; i < 64; i++)
        ok(vu_server_object_add(rig.server, uuid, done, &answers[i]));
    err(vu_server_object_add(rig.server, uuid, done, &answers[64]), -EAGAIN);
    ok(vu_server_stop(rig.server));
    for (int i = 0; i < 64; i++)
        hears(&answers[i], -ECANCELED);
    check(answers[64].calls == 0);
    ok(vu_server_get_stats(rig.server, &stats));
    check(stats.backend_requests >= 9 && stats.backend_failures == 66);
    vu_ctx_quit(ctx);
    check(pthread_join(thread, NULL) == 0);
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    fe_disconnect(&channel);
    fe_destroy(&rig.fe);
}

int main(void)
{
    int fds;

    watchdog(50);
    fds = open_fds();
    run();
    check(open_fds() == fds);
    return 0;
}

/* A device answers, refuses, or does not implement what the front-end asks of it. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <sys/eventfd.h>

static const uint8_t uuid[16] = "0123456789abcdef";

struct device {
    int refuse; /* -errno for each answer, or 0 */
    uint8_t mac[6];
    uint32_t mtu;
    uint64_t closed;
    uint32_t cipher, key_len, auth_key_len;
    uint8_t key_byte;
    int gpu;
    int object;
    int status;
    int kept; /* a descriptor taken out of a message */
};

static int send_rarp(void *opaque, const uint8_t *mac)
{
    struct device *dev = opaque;

    memcpy(dev->mac, mac, sizeof(dev->mac));
    return dev->refuse;
}

static int net_set_mtu(void *opaque, uint32_t mtu)
{
    struct device *dev = opaque;

    dev->mtu = mtu;
    return dev->refuse;
}

static int shared_object(void *opaque, const uint8_t *name, int *fd)
{
    struct device *dev = opaque;

    check(memcmp(name, uuid, sizeof(uuid)) == 0);
    if (dev->refuse)
        return dev->refuse;
    *fd = dup(dev->object);
    return 0;
}

static int create_crypto_session(void *opaque, const vu_crypto_session *session, uint64_t *id)
{
    struct device *dev = opaque;

    check(session->body_size == 632 || session->body_size == 1072);
    dev->cipher = session->algo;
    dev->key_len = (uint32_t)session->key_len;
    dev->auth_key_len = (uint32_t)session->auth_key_len;
    dev->key_byte = session->key_len > 0 ? *(const uint8_t *)session->key : 0;
    *id = 77;
    return dev->refuse;
}

static int close_crypto_session(void *opaque, uint64_t id)
{
    struct device *dev = opaque;

    dev->closed = id;
    return dev->refuse;
}

static int gpu_set_socket(void *opaque, int fd)
{
    struct device *dev = opaque;

    if (dev->refuse)
        return dev->refuse;
    dev->gpu = fd;
    return 0;
}

static void status_set(void *opaque, uint8_t status)
{
    struct device *dev = opaque;

    __atomic_store_n(&dev->status, status, __ATOMIC_RELEASE);
}

/* Sends a message of 1000 back, keeps the descriptor of 1001, lets the library have 1002. */
static int message(void *opaque, vu_message *msg)
{
    struct device *dev = opaque;

    if (dev->refuse)
        return dev->refuse;
    switch (msg->request) {
    case 1000:
        memcpy(msg->reply, msg->body, msg->body_size);
        msg->reply_size = msg->body_size;
        msg->reply_fds[0] = dup(dev->object);
        msg->num_reply_fds = 1;
        return VU_MESSAGE_REPLY;
    case 1001:
        check(msg->num_fds == 2 && msg->need_reply == 1);
        dev->kept = msg->fds[1];
        msg->fds[1] = -1;
        return VU_MESSAGE_HANDLED;
    default:
        return VU_MESSAGE_NOT_MINE;
    }
}

static const vu_device_ops ops = {
    VU_DEVICE_OPS_INIT,
    .kick = echo_kick,
    .send_rarp = send_rarp,
    .net_set_mtu = net_set_mtu,
    .shared_object = shared_object,
    .create_crypto_session = create_crypto_session,
    .close_crypto_session = close_crypto_session,
    .gpu_set_socket = gpu_set_socket,
    .status_set = status_set,
    .message = message,
};

/* RARP, MTU, CRYPTO_SESSION, SHARED_OBJECT. */
#define QUESTIONS (1ULL << 2 | 1ULL << 4 | 1ULL << 7 | 1ULL << 18)
#define STATUS (1ULL << 16)

static void begin(struct rig *rig, uint64_t expected)
{
    uint64_t offered;

    ok(fe_get(&rig->fe, FE_GET_PROTOCOL_FEATURES, &offered));
    check((offered & QUESTIONS) == expected);
    ok(fe_set_u64(&rig->fe, FE_SET_PROTOCOL_FEATURES,
                  expected | FE_PF_REPLY_ACK | STATUS));
    rig->fe.protocol_features = FE_PF_REPLY_ACK;
}

static int64_t create_session(struct rig *rig, uint32_t key_len)
{
    uint8_t body[632] = {0};
    struct fe_msg reply;
    const uint32_t fields[] = {2, 11, key_len, 0, 0, 3, 0};
    int64_t id;

    memcpy(body + 8, fields, sizeof(fields));
    memset(body + 56, 0xc1, 64);
    ok(fe_send(&rig->fe, FE_CREATE_CRYPTO_SESSION, 0, body, sizeof(body), NULL, 0));
    ok(fe_recv(&rig->fe, &reply));
    check(reply.request == FE_CREATE_CRYPTO_SESSION && reply.size == sizeof(body));
    memcpy(&id, reply.body, sizeof(id));
    return id;
}

static int get_object(struct rig *rig)
{
    struct fe_msg reply;
    int fd;

    ok(fe_send(&rig->fe, FE_GET_SHARED_OBJECT, 0, uuid, sizeof(uuid), NULL, 0));
    ok(fe_recv_fd(&rig->fe, &reply, &fd));
    check(reply.request == FE_GET_SHARED_OBJECT && reply.size == 0);
    return fd;
}

static void answers(struct rig *rig, struct device *dev)
{
    const uint8_t mac[8] = {2, 0, 0, 1, 2, 3};
    uint64_t count = 0;
    int fd;

    ok(fe_set(&rig->fe, FE_SEND_RARP, mac, sizeof(mac), NULL, 0));
    check(memcmp(dev->mac, mac, 6) == 0);
    ok(fe_set_u64(&rig->fe, FE_NET_SET_MTU, 9000));
    check(dev->mtu == 9000);
    err(fe_set_u64(&rig->fe, FE_NET_SET_MTU, 67), -EREMOTEIO);
    check(dev->mtu == 9000);

    fd = get_object(rig);
    check(fd >= 0 && read(fd, &count, sizeof(count)) == sizeof(count) && count == 5);
    close(fd);

    check(create_session(rig, 16) == 77);
    check(dev->cipher == 11 && dev->key_len == 16 && dev->auth_key_len == 3);
    check(dev->key_byte == 0xc1);
    check(create_session(rig, 65) == -1);
    ok(fe_set_u64(&rig->fe, FE_CLOSE_CRYPTO_SESSION, 77));
    check(dev->closed == 77);

    fd = eventfd(0, EFD_CLOEXEC);
    ok(fe_set(&rig->fe, FE_GPU_SET_SOCKET, NULL, 0, &fd, 1));
    check(dev->gpu >= 0 && dev->gpu != fd);
    close(dev->gpu);
    close(fd);

    ok(fe_set_u64(&rig->fe, FE_SET_STATUS, 11));
    eventually(__atomic_load_n(&dev->status, __ATOMIC_ACQUIRE) == 11);
}

static void messages(struct rig *rig, struct device *dev)
{
    const int fds[2] = {dev->object, dev->object};
    struct fe_msg reply;
    int fd;

    ok(fe_send(&rig->fe, 1000, 0, "hello", 5, NULL, 0));
    ok(fe_recv_fd(&rig->fe, &reply, &fd));
    check(reply.request == 1000 && reply.size == 5 && memcmp(reply.body, "hello", 5) == 0);
    check(fd >= 0);
    close(fd);
    ok(fe_set(&rig->fe, 1001, NULL, 0, fds, 2));
    check(dev->kept >= 0);
    close(dev->kept);
    err(fe_set(&rig->fe, 1002, NULL, 0, fds, 1), -EREMOTEIO);
}

static void refusals(struct rig *rig, struct device *dev)
{
    dev->refuse = -EPERM;
    err(fe_set_u64(&rig->fe, FE_SEND_RARP, 0), -EREMOTEIO);
    err(fe_set_u64(&rig->fe, FE_NET_SET_MTU, 1500), -EREMOTEIO);
    err(fe_set_u64(&rig->fe, FE_CLOSE_CRYPTO_SESSION, 1), -EREMOTEIO);
    err(fe_set(&rig->fe, FE_GPU_SET_SOCKET, NULL, 0, &dev->object, 1), -EREMOTEIO);
    err(fe_set(&rig->fe, 1001, NULL, 0, NULL, 0), -EREMOTEIO);
    check(create_session(rig, 16) == -1);
    check(get_object(rig) == -1);
    /* An answer that means nothing is a refusal, too. */
    dev->refuse = 4711;
    err(fe_set_u64(&rig->fe, FE_NET_SET_MTU, 1500), -EREMOTEIO);
    err(fe_set(&rig->fe, 1001, NULL, 0, NULL, 0), -EREMOTEIO);
    dev->refuse = 0;
    ok(fe_set_u64(&rig->fe, FE_NET_SET_MTU, 1500));
}

static void not_implemented(struct rig *rig)
{
    err(fe_set_u64(&rig->fe, FE_SEND_RARP, 0), -EREMOTEIO);
    err(fe_set_u64(&rig->fe, FE_NET_SET_MTU, 1500), -EREMOTEIO);
    check(create_session(rig, 16) == -1);
    check(get_object(rig) == -1);
    err(fe_set(&rig->fe, FE_GPU_SET_SOCKET, NULL, 0, &rig->fe.memfd, 1), -EREMOTEIO);
}

static void run(const vu_device_ops *device_ops, struct device *dev)
{
    static const uint32_t requests[] = {1000, 1001, 1002};
    vu_server_config config = test_config();
    struct rig rig;
    pthread_t thread;
    vu_ctx *ctx;

    config.message_requests = requests;
    config.num_message_requests = 3;
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&rig, &config, device_ops, dev, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    if (device_ops == &ops) {
        begin(&rig, QUESTIONS);
        answers(&rig, dev);
        messages(&rig, dev);
        refusals(&rig, dev);
    } else {
        begin(&rig, 0);
        not_implemented(&rig);
    }
    ok(vu_server_stop(rig.server));
    vu_ctx_quit(ctx);
    check(pthread_join(thread, NULL) == 0);
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    fe_destroy(&rig.fe);
}

int main(void)
{
    static const vu_device_ops half = {
        VU_DEVICE_OPS_INIT,
        .kick = echo_kick,
        .create_crypto_session = create_crypto_session,
    };
    struct device dev = {.gpu = -1, .kept = -1};
    vu_server_config config = test_config();
    vu_server *server;
    int fds;

    watchdog(50);
    dev.object = eventfd(5, EFD_CLOEXEC | EFD_NONBLOCK);
    fds = open_fds();
    run(&ops, &dev);
    run(&null_ops, &dev);
    check(open_fds() == fds);
    err(vu_server_new(&config, &half, &dev, &server, NULL), -EINVAL);
    close(dev.object);
    return 0;
}

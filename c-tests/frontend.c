#define _GNU_SOURCE
#include "frontend.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define HEADER_LEN 12U

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int fe_wait_fd(int fd, short events)
{
    int64_t end = now_ms() + FE_TIMEOUT_MS;

    for (;;) {
        struct pollfd entry = {.fd = fd, .events = events};
        int64_t left = end - now_ms();
        int ready = poll(&entry, 1, left > 0 ? (int)left : 0);

        if (ready > 0)
            return 0;
        if (ready == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

void fe_adopt(struct fe *fe, int sock)
{
    fe_disconnect(fe);
    fe->sock = sock;
    fe->features = 0;
    fe->protocol_features = 0;
}

void fe_disconnect(struct fe *fe)
{
    if (fe->sock >= 0)
        close(fe->sock);
    fe->sock = -1;
}

int fe_connect(struct fe *fe, const char *path)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int64_t end = now_ms() + FE_TIMEOUT_MS;
    int sock;

    if (strlen(path) >= sizeof(addr.sun_path))
        return -ENAMETOOLONG;
    memcpy(addr.sun_path, path, strlen(path));
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sock < 0)
        return -errno;
    while (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int rc = -errno;
        bool retry = rc == -ENOENT || rc == -ECONNREFUSED || rc == -EAGAIN;

        if (!retry || now_ms() > end) {
            close(sock);
            return rc;
        }
        nanosleep(&millisecond, NULL);
    }
    fe_adopt(fe, sock);
    return 0;
}

static int sendmsg_all(int sock, struct msghdr *msg)
{
    struct iovec *iov = msg->msg_iov;

    while (iov->iov_len > 0) {
        ssize_t sent = sendmsg(sock, msg, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent >= 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + sent;
            iov->iov_len -= (size_t)sent;
            msg->msg_control = NULL;
            msg->msg_controllen = 0;
        } else if (errno == EAGAIN) {
            int rc = fe_wait_fd(sock, POLLOUT);

            if (rc < 0)
                return rc;
        } else if (errno != EINTR) {
            return errno == EPIPE ? -ECONNRESET : -errno;
        }
    }
    return 0;
}

int fe_send(struct fe *fe, uint32_t request, uint32_t flags, const void *body,
            uint32_t size, const int *fds, unsigned nfds)
{
    struct fe_msg out = {request, flags | FE_VERSION, size, {0}};
    struct iovec iov = {&out, HEADER_LEN + size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        char bytes[CMSG_SPACE(FE_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};

    if (size > FE_MAX_BODY || nfds > FE_MAX_FDS)
        return -EINVAL;
    if (size > 0)
        memcpy(out.body, body, size);
    if (nfds > 0) {
        struct cmsghdr *cmsg;

        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
    }
    return sendmsg_all(fe->sock, &msg);
}

/* Plain recv: the kernel drops descriptors that nobody asks for. */
static int recv_exact(int sock, void *buffer, size_t size)
{
    size_t filled = 0;

    while (filled < size) {
        ssize_t got = recv(sock, (uint8_t *)buffer + filled, size - filled,
                           MSG_DONTWAIT);

        if (got == 0) {
            return -ECONNRESET;
        } else if (got > 0) {
            filled += (size_t)got;
        } else if (errno == EAGAIN) {
            int rc = fe_wait_fd(sock, POLLIN);

            if (rc < 0)
                return rc;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

int fe_recv(struct fe *fe, struct fe_msg *msg)
{
    int rc = recv_exact(fe->sock, msg, HEADER_LEN);

    if (rc < 0)
        return rc;
    if (msg->size > FE_MAX_BODY)
        return -EPROTO;
    return recv_exact(fe->sock, msg->body, msg->size);
}

int fe_recv_fd(struct fe *fe, struct fe_msg *msg, int *fd)
{
    struct iovec iov = {msg, HEADER_LEN};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr header = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *cmsg;
    ssize_t got;
    int rc = fe_wait_fd(fe->sock, POLLIN);

    *fd = -1;
    if (rc < 0)
        return rc;
    got = recvmsg(fe->sock, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got <= 0)
        return got < 0 ? -errno : -ECONNRESET;
    cmsg = CMSG_FIRSTHDR(&header);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(cmsg), sizeof(*fd));
    rc = recv_exact(fe->sock, (uint8_t *)msg + got, HEADER_LEN - (size_t)got);
    if (rc < 0)
        return rc;
    if (msg->size > FE_MAX_BODY)
        return -EPROTO;
    return recv_exact(fe->sock, msg->body, msg->size);
}

int fe_wait_closed(struct fe *fe)
{
    uint8_t byte;
    int rc = recv_exact(fe->sock, &byte, 1);

    if (rc == 0)
        return -EPROTO;
    return rc == -ECONNRESET ? 0 : rc;
}

static int recv_reply(struct fe *fe, uint32_t request, struct fe_msg *reply)
{
    int rc = fe_recv(fe, reply);

    if (rc < 0)
        return rc;
    if (reply->request != request || reply->flags != (FE_VERSION | FE_REPLY))
        return -EPROTO;
    return 0;
}

static int recv_u64(struct fe *fe, uint32_t request, uint64_t *value)
{
    struct fe_msg reply;
    int rc = recv_reply(fe, request, &reply);

    if (rc < 0)
        return rc;
    if (reply.size != sizeof(*value))
        return -EPROTO;
    memcpy(value, reply.body, sizeof(*value));
    return 0;
}

int fe_get(struct fe *fe, uint32_t request, uint64_t *value)
{
    int rc = fe_send(fe, request, 0, NULL, 0, NULL, 0);

    return rc < 0 ? rc : recv_u64(fe, request, value);
}

int fe_set(struct fe *fe, uint32_t request, const void *body, uint32_t size,
           const int *fds, unsigned nfds)
{
    bool acked = fe->protocol_features & FE_PF_REPLY_ACK;
    uint64_t status = 0;
    int rc = fe_send(fe, request, acked ? FE_NEED_REPLY : 0, body, size, fds,
                     nfds);

    if (rc == 0 && acked)
        rc = recv_u64(fe, request, &status);
    if (rc < 0)
        return rc;
    return status == 0 ? 0 : -EREMOTEIO;
}

int fe_set_u64(struct fe *fe, uint32_t request, uint64_t value)
{
    return fe_set(fe, request, &value, sizeof(value), NULL, 0);
}

int fe_get_config(struct fe *fe, uint32_t offset, void *data, uint32_t size)
{
    const uint32_t head[3] = {offset, size, 0};
    uint8_t body[FE_MAX_BODY] = {0};
    struct fe_msg reply;
    int rc;

    if (size > sizeof(body) - sizeof(head))
        return -EINVAL;
    memcpy(body, head, sizeof(head));
    rc = fe_send(fe, FE_GET_CONFIG, 0, body, sizeof(head) + size, NULL, 0);
    if (rc == 0)
        rc = recv_reply(fe, FE_GET_CONFIG, &reply);
    if (rc < 0)
        return rc;
    if (reply.size == 0)
        return -EREMOTEIO;
    if (reply.size != sizeof(head) + size)
        return -EPROTO;
    memcpy(data, reply.body + sizeof(head), size);
    return 0;
}

/* Set-up. */

static uint64_t user_addr(const struct fe *fe, const void *ptr)
{
    return fe_gpa(fe, ptr) - FE_GPA + FE_USER_ADDR;
}

static int set_mem_table(struct fe *fe)
{
    const struct {
        uint32_t count, padding;
        uint64_t gpa, size, user_addr, mmap_offset;
    } table = {1, 0, FE_GPA, fe->mem_size, FE_USER_ADDR, 0};

    return fe_set(fe, FE_SET_MEM_TABLE, &table, sizeof(table), &fe->memfd, 1);
}

int fe_negotiate(struct fe *fe, uint64_t features)
{
    uint64_t offered, protocol;
    int rc = fe_get(fe, FE_GET_FEATURES, &offered);

    if (rc < 0)
        return rc;
    fe->features = offered & (features | FE_F_PROTOCOL_FEATURES);
    if (fe->features & FE_F_PROTOCOL_FEATURES) {
        rc = fe_get(fe, FE_GET_PROTOCOL_FEATURES, &protocol);
        if (rc < 0)
            return rc;
        protocol &= FE_PF_MQ | FE_PF_REPLY_ACK | FE_PF_CONFIG;
        rc = fe_set_u64(fe, FE_SET_PROTOCOL_FEATURES, protocol);
        if (rc < 0)
            return rc;
        fe->protocol_features = protocol;
    }
    rc = fe_set(fe, FE_SET_OWNER, NULL, 0, NULL, 0);
    if (rc == 0)
        rc = fe_set_u64(fe, FE_SET_FEATURES, fe->features);
    return rc < 0 ? rc : set_mem_table(fe);
}

static int set_state(struct fe *fe, uint32_t request, unsigned index,
                     uint32_t num)
{
    const uint32_t state[2] = {index, num};

    return fe_set(fe, request, state, sizeof(state), NULL, 0);
}

static int set_addr(struct fe *fe, unsigned index)
{
    const struct fe_queue *queue = &fe->queues[index];
    const struct {
        uint32_t index, flags;
        uint64_t desc, used, avail, log;
    } addr = {index, 0, user_addr(fe, queue->desc), user_addr(fe, queue->used),
              user_addr(fe, queue->avail), 0};

    return fe_set(fe, FE_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
}

static int set_fd(struct fe *fe, uint32_t request, unsigned index, int fd)
{
    uint64_t body = index;

    return fe_set(fe, request, &body, sizeof(body), &fd, 1);
}

int fe_start_queue(struct fe *fe, unsigned index)
{
    const struct fe_queue *queue = &fe->queues[index];
    int rc = set_state(fe, FE_SET_VRING_NUM, index, queue->size);

    if (rc == 0)
        rc = set_state(fe, FE_SET_VRING_BASE, index, queue->base);
    if (rc == 0)
        rc = set_addr(fe, index);
    if (rc == 0)
        rc = set_fd(fe, FE_SET_VRING_ERR, index, queue->err);
    if (rc == 0)
        rc = set_fd(fe, FE_SET_VRING_CALL, index, queue->call);
    if (rc == 0)
        rc = set_fd(fe, FE_SET_VRING_KICK, index, queue->kick);
    if (rc == 0 && (fe->features & FE_F_PROTOCOL_FEATURES))
        rc = set_state(fe, FE_SET_VRING_ENABLE, index, 1);
    return rc;
}

int fe_send_stop(struct fe *fe, unsigned index)
{
    const uint32_t state[2] = {index, 0};

    return fe_send(fe, FE_GET_VRING_BASE, 0, state, sizeof(state), NULL, 0);
}

int fe_recv_stop(struct fe *fe, unsigned index)
{
    struct fe_msg reply;
    uint32_t state[2];
    int rc = recv_reply(fe, FE_GET_VRING_BASE, &reply);

    if (rc < 0)
        return rc;
    memcpy(state, reply.body, sizeof(state));
    if (reply.size != sizeof(state) || state[0] != index || state[1] > 0xffff)
        return -EPROTO;
    fe->queues[index].base = (uint16_t)state[1];
    return (int)state[1];
}

int fe_stop_queue(struct fe *fe, unsigned index)
{
    int rc = fe_send_stop(fe, index);

    return rc < 0 ? rc : fe_recv_stop(fe, index);
}

int fe_start(struct fe *fe)
{
    int rc = fe_negotiate(fe, FE_F_VERSION_1 | FE_F_EVENT_IDX);

    for (unsigned i = 0; i < fe->queue_count && rc == 0; i++)
        rc = fe_start_queue(fe, i);
    return rc;
}

int fe_stop(struct fe *fe)
{
    int rc = 0;

    for (unsigned i = 0; i < fe->queue_count && rc >= 0; i++)
        rc = fe_stop_queue(fe, i);
    fe_disconnect(fe);
    return rc < 0 ? rc : 0;
}

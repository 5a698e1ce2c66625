/*
 * A tiny vhost-user front-end with the driver's side of split virtqueues.
 * It shares no code with the library; frontend.c is the socket's side,
 * driver.c memory and queues. Functions return >= 0 or -errno; a wait ends
 * after FE_TIMEOUT_MS with -ETIMEDOUT, a closed connection is -ECONNRESET,
 * a refused request -EREMOTEIO.
 */
#ifndef TEST_FRONTEND_H
#define TEST_FRONTEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FE_TIMEOUT_MS 20000
#define FE_MAX_QUEUES 8
#define FE_MAX_SIZE 256
#define FE_MAX_BODY 4352
#define FE_MAX_FDS 8

/* Guest address of the only region, and the made-up user address of it. */
#define FE_GPA 0x40000000ULL
#define FE_USER_ADDR 0x7f0000000000ULL

enum {
    FE_GET_FEATURES = 1,
    FE_SET_FEATURES = 2,
    FE_SET_OWNER = 3,
    FE_RESET_OWNER = 4,
    FE_SET_MEM_TABLE = 5,
    FE_SET_VRING_NUM = 8,
    FE_SET_VRING_ADDR = 9,
    FE_SET_VRING_BASE = 10,
    FE_GET_VRING_BASE = 11,
    FE_SET_VRING_KICK = 12,
    FE_SET_VRING_CALL = 13,
    FE_SET_VRING_ERR = 14,
    FE_GET_PROTOCOL_FEATURES = 15,
    FE_SET_PROTOCOL_FEATURES = 16,
    FE_GET_QUEUE_NUM = 17,
    FE_SET_VRING_ENABLE = 18,
    FE_SEND_RARP = 19,
    FE_NET_SET_MTU = 20,
    FE_SET_BACKEND_REQ_FD = 21,
    FE_GET_CONFIG = 24,
    FE_SET_CONFIG = 25,
    FE_CREATE_CRYPTO_SESSION = 26,
    FE_CLOSE_CRYPTO_SESSION = 27,
    FE_GPU_SET_SOCKET = 33,
    FE_RESET_DEVICE = 34,
    FE_GET_MAX_MEM_SLOTS = 36,
    FE_ADD_MEM_REG = 37,
    FE_REM_MEM_REG = 38,
    FE_SET_STATUS = 39,
    FE_GET_STATUS = 40,
    FE_GET_SHARED_OBJECT = 41,
    FE_SET_DEVICE_STATE_FD = 42,
    FE_CHECK_DEVICE_STATE = 43,
    FE_GET_SHMEM_CONFIG = 44,
};

/* Requests of the back-end. */
enum {
    FE_BE_VRING_HOST_NOTIFIER_MSG = 3,
    FE_BE_SHARED_OBJECT_ADD = 6,
    FE_BE_SHARED_OBJECT_REMOVE = 7,
    FE_BE_SHARED_OBJECT_LOOKUP = 8,
    FE_BE_SHMEM_MAP = 9,
    FE_BE_SHMEM_UNMAP = 10,
};

/* Header flags. */
#define FE_VERSION 1U
#define FE_REPLY (1U << 2)
#define FE_NEED_REPLY (1U << 3)

/* Features and protocol features, as masks. */
#define FE_F_INDIRECT_DESC (1ULL << 28)
#define FE_F_EVENT_IDX (1ULL << 29)
#define FE_F_PROTOCOL_FEATURES (1ULL << 30)
#define FE_F_VERSION_1 (1ULL << 32)
#define FE_PF_MQ (1ULL << 0)
#define FE_PF_REPLY_ACK (1ULL << 3)
#define FE_PF_CONFIG (1ULL << 9)
#define FE_PF_DEVICE_STATE (1ULL << 19)

struct fe_msg {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    uint8_t body[FE_MAX_BODY];
};

struct fe_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct fe_avail {
    _Atomic(uint16_t) flags;
    _Atomic(uint16_t) idx;
    _Atomic(uint16_t) ring[]; /* then used_event */
};

struct fe_used_elem {
    uint32_t id;
    uint32_t len;
};

struct fe_used {
    _Atomic(uint16_t) flags;
    _Atomic(uint16_t) idx;
    struct fe_used_elem ring[]; /* then avail_event */
};

struct fe_queue {
    uint16_t size;
    uint16_t added;  /* available index */
    uint16_t kicked; /* available index at the last kick */
    uint16_t taken;  /* used index up to which completions were taken */
    uint16_t base;   /* where the ring goes on at its next start */
    uint16_t free_count;
    uint16_t free[FE_MAX_SIZE];
    uint16_t chain_len[FE_MAX_SIZE]; /* by head, 0: not out */
    struct fe_desc *desc;
    struct fe_avail *avail;
    struct fe_used *used;
    int kick, call, err;
};

struct fe {
    int sock;
    int memfd;
    uint8_t *mem;
    size_t mem_size;
    size_t mem_used;
    uint64_t features;
    uint64_t protocol_features;
    unsigned queue_count;
    struct fe_queue queues[FE_MAX_QUEUES];
};

/* One buffer of a chain, in memory from fe_alloc(). */
struct fe_buf {
    void *ptr;
    uint32_t len;
    bool writable;
};

/* Makes the guest's memory and `queue_count` queues of `queue_size` in it. */
int fe_init(struct fe *fe, size_t mem_size, unsigned queue_count,
            uint16_t queue_size);
/* Ends everything that fe_init() and fe_connect() began. */
void fe_destroy(struct fe *fe);

/* Connects, again and again while nobody listens there yet. */
int fe_connect(struct fe *fe, const char *path);
/* Uses, and later closes, a connected socket. */
void fe_adopt(struct fe *fe, int sock);
/* Closes the socket; memory, queues and what is in flight stay. */
void fe_disconnect(struct fe *fe);
/* Waits until the back-end closes the connection. */
int fe_wait_closed(struct fe *fe);

/* Waits for poll(2) events on any fd, for example a queue's err fd. */
int fe_wait_fd(int fd, short events);

int fe_send(struct fe *fe, uint32_t request, uint32_t flags, const void *body,
            uint32_t size, const int *fds, unsigned nfds);
/* The next message; a file descriptor that comes with it is closed. */
int fe_recv(struct fe *fe, struct fe_msg *msg);
/* The same, keeping one descriptor; -1 if none came. */
int fe_recv_fd(struct fe *fe, struct fe_msg *msg, int *fd);
/* A request with a reply of its own that is one u64. */
int fe_get(struct fe *fe, uint32_t request, uint64_t *value);
/* A request without a reply: acknowledged if REPLY_ACK was negotiated. */
int fe_set(struct fe *fe, uint32_t request, const void *body, uint32_t size,
           const int *fds, unsigned nfds);
int fe_set_u64(struct fe *fe, uint32_t request, uint64_t value);
int fe_get_config(struct fe *fe, uint32_t offset, void *data, uint32_t size);

/* Features (those of `features` that are offered), owner, memory. */
int fe_negotiate(struct fe *fe, uint64_t features);
/* Ring set-up, kick, call and err fds, enable. */
int fe_start_queue(struct fe *fe, unsigned index);
/* GET_VRING_BASE, in one go or with time between its halves. */
int fe_stop_queue(struct fe *fe, unsigned index);
int fe_send_stop(struct fe *fe, unsigned index);
int fe_recv_stop(struct fe *fe, unsigned index);
/* fe_negotiate() with VERSION_1 and EVENT_IDX, then every queue. */
int fe_start(struct fe *fe);
/* fe_stop_queue() for every queue, then fe_disconnect(). */
int fe_stop(struct fe *fe);

/* Zeroed guest memory, 16-aligned, never given back; NULL if there is none. */
void *fe_alloc(struct fe *fe, size_t size);
uint64_t fe_gpa(const struct fe *fe, const void *ptr);

/* Makes a chain available without a kick; returns its head. */
int fe_add(struct fe *fe, unsigned index, const struct fe_buf *bufs,
           unsigned count);
/* Kicks if the device wants it: returns 1 if it did, else 0. */
int fe_kick(struct fe *fe, unsigned index);
/* fe_add() and fe_kick(). */
int fe_submit(struct fe *fe, unsigned index, const struct fe_buf *bufs,
              unsigned count);
/* The next completion's head, or -EAGAIN; -EPROTO if it makes no sense. */
int fe_poll_used(struct fe *fe, unsigned index, uint32_t *len);
/* The same, waiting on the call fd. */
int fe_wait_used(struct fe *fe, unsigned index, uint32_t *len);

#endif

/* A device in C gives its state away in pieces, and takes one over; both functions or none. */
#define _GNU_SOURCE
#include <fcntl.h>

#include "echo-device.h"

#define SIZE 700001

enum { SAVE = 0, LOAD = 1 };

struct device {
    unsigned char state[SIZE];
    int64_t failure; /* what save_state returns instead */
    bool complete;
};

static int64_t save_state(void *dev, uint64_t offset, void *buffer, size_t size)
{
    struct device *device = dev;
    size_t left = SIZE - offset;

    if (device->failure != 0 && offset > 0)
        return device->failure;
    if (size > left)
        size = left;
    memcpy(buffer, device->state + offset, size);
    return (int64_t)size;
}

static int load_state(void *dev, uint64_t offset, const void *bytes, size_t size)
{
    struct device *device = dev;

    device->complete = size == 0 && offset == SIZE;
    if (size == 0)
        return device->complete ? 0 : -ENODATA;
    if (size > SIZE - offset)
        return -EFBIG;
    memcpy(device->state + offset, bytes, size);
    return 0;
}

static const vu_device_ops state_ops = {
    VU_DEVICE_OPS_INIT,
    .kick = null_kick,
    .save_state = save_state,
    .load_state = load_state,
};

/* Begins a transfer; our end of its pipe. */
static int begin(struct fe *fe, uint32_t direction)
{
    const uint32_t body[2] = {direction, 0};
    struct fe_msg reply;
    uint64_t value;
    int ends[2], theirs;

    check(pipe2(ends, O_CLOEXEC) == 0);
    theirs = ends[direction == SAVE];
    ok(fe_send(fe, FE_SET_DEVICE_STATE_FD, 0, body, sizeof(body), &theirs, 1));
    close(theirs);
    ok(fe_recv(fe, &reply));
    check(reply.request == FE_SET_DEVICE_STATE_FD && reply.size == sizeof(value));
    memcpy(&value, reply.body, sizeof(value));
    check(value == 0x100);
    return ends[direction == LOAD];
}

static uint64_t how_it_went(struct fe *fe)
{
    uint64_t value;

    ok(fe_get(fe, FE_CHECK_DEVICE_STATE, &value));
    return value;
}

/* Reads to the end of the stream. */
static size_t receive(int fd, unsigned char *bytes)
{
    size_t got = 0;
    ssize_t n;

    while ((n = read(fd, bytes + got, SIZE + 1 - got)) > 0)
        got += (size_t)n;
    check(n == 0);
    close(fd);
    return got;
}

static void supply(int fd, const unsigned char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);

        check(n > 0);
        bytes += n;
        size -= (size_t)n;
    }
    close(fd);
}

static void both_or_none(void)
{
    const vu_server_config config = test_config();
    vu_server *server = (vu_server *)&server;
    vu_device_ops ops = state_ops;

    ops.load_state = NULL;
    err(vu_server_new(&config, &ops, NULL, &server, NULL), -EINVAL);
    check(server == NULL);
    ops = state_ops;
    ops.save_state = NULL;
    err(vu_server_new(&config, &ops, NULL, &server, NULL), -EINVAL);
}

int main(void)
{
    static struct device device;
    static unsigned char bytes[SIZE + 1];
    const vu_server_config config = test_config();
    struct rig rig;
    pthread_t thread;
    uint64_t offered;
    vu_ctx *ctx;

    watchdog(50);
    both_or_none();
    for (size_t i = 0; i < SIZE; i++)
        device.state[i] = (unsigned char)(i * 31 + i / 251);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&rig, &config, &state_ops, &device, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    ok(fe_get(&rig.fe, FE_GET_PROTOCOL_FEATURES, &offered));
    check(offered & FE_PF_DEVICE_STATE);
    ok(fe_set_u64(&rig.fe, FE_SET_PROTOCOL_FEATURES, FE_PF_DEVICE_STATE));

    check(receive(begin(&rig.fe, SAVE), bytes) == SIZE);
    check(how_it_went(&rig.fe) == 0);
    check(how_it_went(&rig.fe) != 0);
    check(memcmp(bytes, device.state, SIZE) == 0);

    memset(device.state, 0, SIZE);
    supply(begin(&rig.fe, LOAD), bytes, SIZE);
    check(how_it_went(&rig.fe) == 0);
    check(device.complete && memcmp(bytes, device.state, SIZE) == 0);

    supply(begin(&rig.fe, LOAD), bytes, SIZE - 1);
    check(how_it_went(&rig.fe) != 0);

    /* An error, and two answers that make no sense. */
    const int64_t failures[] = {-EIO, INT64_MIN, INT64_MAX};
    for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++) {
        device.failure = failures[i];
        check(receive(begin(&rig.fe, SAVE), bytes) < SIZE);
        check(how_it_went(&rig.fe) != 0);
    }

    fe_destroy(&rig.fe);
    vu_ctx_quit(ctx);
    check(pthread_join(thread, NULL) == 0);
    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    return 0;
}

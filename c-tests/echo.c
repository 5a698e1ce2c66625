/* A request goes through: popped, looked at, answered, counted. */
#define _GNU_SOURCE
#include "echo-device.h"

#define REQUESTS 500

struct device {
    struct rig *rig;
    int started, stopping, stopped, connected, disconnected, acked;
};

static void check_elem(const struct device *device, vu_vq *vq, const vu_elem *elem)
{
    struct iovec slice[2];

    check(vu_elem_vq(elem) == vq);
    check(vu_vq_server(vq) == device->rig->server);
    check(vu_server_vq(device->rig->server, 0) == vq);
    check(elem->out_num == 1 && elem->in_num == 1);
    check(elem->out_len == elem->out[0].iov_len && elem->in_len == elem->in[0].iov_len);
    check(elem->priv != NULL && (uintptr_t)elem->priv % 16 == 0);
    check(vu_elem_iov_slice(elem->out, elem->out_num, 1, elem->out_len - 1, slice, 2) == 1);
    check((char *)slice[0].iov_base == (char *)elem->out[0].iov_base + 1);
}

static int on_kick(void *dev, vu_vq *vq)
{
    struct device *device = dev;
    vu_elem *elems[8];
    int n;

    while ((n = ok(vu_vq_pop(vq, elems, 8))) > 0) {
        for (int i = 0; i < n; i++) {
            char bytes[100];
            size_t got = vu_elem_read(elems[i], 0, bytes, sizeof(bytes));

            check_elem(device, vq, elems[i]);
            check(vu_elem_read(elems[i], elems[i]->out_len, bytes, 1) == 0);
            got = vu_elem_write(elems[i], 0, bytes, got);
            check(vu_elem_write(elems[i], elems[i]->in_len - 1, "yz", 2) == 1);
            ok(i % 2 ? vu_vq_stage(vq, elems[i], (uint32_t)got)
                     : vu_elem_complete(elems[i], (uint32_t)got));
        }
    }
    return 0;
}

static void on_started(void *dev, vu_vq *vq)
{
    struct device *device = dev;

    check(device->acked > 0);
    check(vu_vq_size(vq) == 64 && vu_vq_enabled(vq) == 1);
    check(vu_vq_big_endian(vq) == 0);
    device->started++;
}

static void on_stopping(void *dev, vu_vq *vq, uint32_t reason)
{
    vu_elem *elem;

    check(reason == VU_STOP_VRING_BASE);
    err(vu_vq_pop(vq, &elem, 1), -ESHUTDOWN);
    ((struct device *)dev)->stopping++;
}

static void on_stopped(void *dev, uint32_t index)
{
    check(index == 0);
    ((struct device *)dev)->stopped++;
}

static void on_connected(void *dev)
{
    ((struct device *)dev)->connected++;
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    struct device *device = dev;

    check(error == 0 && reason != NULL);
    device->disconnected++;
    vu_ctx_quit(device->rig->ctx);
}

static void on_acked(void *dev, uint64_t features, uint64_t protocol_features)
{
    struct device *device = dev;

    check(features & FE_F_VERSION_1);
    check(vu_server_features(device->rig->server) == features);
    (void)protocol_features;
    device->acked++;
}

static void exchange(struct rig *rig)
{
    for (int i = 0; i < REQUESTS; i++) {
        const uint32_t size = 2 + (uint32_t)i % 90;
        uint32_t written;
        int head;

        rig->fe.mem_used = 64 << 10;
        head = rig_submit(rig, 0, size, size + 1);
        check(ok(fe_wait_used(&rig->fe, 0, &written)) == head);
        check(written == size);
    }
}

static void check_stats(struct rig *rig)
{
    vu_server_stats server = VU_SERVER_STATS_INIT;
    vu_vq_stats queue = VU_VQ_STATS_INIT;

    ok(vu_server_get_stats(rig->server, &server));
    ok(vu_vq_get_stats(vu_server_vq(rig->server, 0), &queue));
    check(server.connections == 1 && server.memory_regions == 1);
    check(server.messages_by_type[FE_SET_MEM_TABLE] == 1);
    check(server.protocol_errors == 0 && server.broken_rings == 0);
    check(queue.pops == REQUESTS && queue.completions == REQUESTS);
    check(queue.bytes_in == queue.bytes_out && queue.bytes_in >= REQUESTS);
    check(queue.inflight == 0 && queue.dropped == 0 && queue.breaks == 0);
    check(queue.kicks >= 1 && queue.notifications >= 1);
}

int main(void)
{
    const vu_device_ops ops = {
        VU_DEVICE_OPS_INIT,
        .kick = on_kick,
        .queue_started = on_started,
        .queue_stopping = on_stopping,
        .queue_stopped = on_stopped,
        .connected = on_connected,
        .disconnected = on_disconnected,
        .features_acked = on_acked,
    };
    vu_server_config config = test_config();
    struct device device = {0};
    struct rig rig;
    pthread_t thread;
    vu_ctx *ctx;

    watchdog(50);
    config.elem_priv_size = 24;
    device.rig = &rig;
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&rig, &config, &ops, &device, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    ok(fe_start(&rig.fe));
    exchange(&rig);
    check_stats(&rig);
    ok(fe_stop(&rig.fe));
    pthread_join(thread, NULL);
    check(device.started == 1 && device.stopping == 1 && device.stopped == 1);
    check(device.connected == 1 && device.disconnected == 1);
    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    fe_destroy(&rig.fe);
    return 0;
}

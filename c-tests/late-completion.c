/* Completing after the front-end has gone is legal; the next one is served when nothing is in flight any more. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <stdatomic.h>

struct device {
    _Atomic(vu_elem *) held;
    bool holds;
    atomic_bool stopping, gone;
};

static int on_kick(void *dev, vu_vq *vq)
{
    struct device *device = dev;
    vu_elem *elem;

    if (!device->holds)
        return echo_kick(dev, vq);
    if (ok(vu_vq_pop(vq, &elem, 1)) == 1)
        atomic_store(&device->held, elem);
    return 0;
}

static void on_queue_stopping(void *dev, vu_vq *vq, uint32_t reason)
{
    (void)vq;
    (void)reason;
    atomic_store(&((struct device *)dev)->stopping, true);
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    (void)error;
    (void)reason;
    atomic_store(&((struct device *)dev)->gone, true);
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = on_kick,
                               .queue_stopping = on_queue_stopping,
                               .disconnected = on_disconnected};
    vu_server_config config = test_config();
    struct device device = {.holds = true};
    struct rig rig = {0};
    struct place place;
    uint32_t written;
    pthread_t thread;
    char bytes[16];

    watchdog(50);
    place_make(&place);
    config.drain_timeout_ms = UINT32_MAX;
    ok(vu_ctx_new_epoll(&rig.ctx, NULL));
    ok(vu_server_new(&config, &ops, &device, &rig.server, NULL));
    ok(vu_server_start(rig.server, place.address, rig.ctx, NULL));
    check(pthread_create(&thread, NULL, run_ctx, rig.ctx) == 0);
    ok(fe_init(&rig.fe, 1 << 18, 1, 64));
    ok(fe_connect(&rig.fe, place.path));
    ok(fe_start(&rig.fe));
    rig_submit(&rig, 0, 16, 16);
    eventually(atomic_load(&device.held));
    fe_disconnect(&rig.fe);
    eventually(atomic_load(&device.stopping));
    check(vu_server_has_inflight(rig.server) == 1);
    check(!atomic_load(&device.gone));

    /* The guest's memory is still there. Nothing of it is published. */
    check(vu_elem_read(device.held, 0, bytes, sizeof(bytes)) == sizeof(bytes));
    device.holds = false;
    ok(vu_elem_complete(device.held, 16));
    eventually(atomic_load(&device.gone));
    err(fe_poll_used(&rig.fe, 0, &written), -EAGAIN);
    check(vu_server_has_inflight(rig.server) == 0);

    fe_destroy(&rig.fe);
    ok(fe_init(&rig.fe, 1 << 18, 1, 64));
    ok(fe_connect(&rig.fe, place.path));
    ok(fe_start(&rig.fe));
    rig_submit(&rig, 0, 16, 16);
    ok(fe_wait_used(&rig.fe, 0, &written));
    check(written == 16);
    ok(fe_stop(&rig.fe));
    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    vu_ctx_quit(rig.ctx);
    pthread_join(thread, NULL);
    ok(vu_ctx_free(rig.ctx));
    fe_destroy(&rig.fe);
    place_remove(&place);
    return 0;
}

/* A server may be freed inside `stopped`: destroy follows, and nothing else. */
#define _GNU_SOURCE
#include "fixture.h"

struct device {
    vu_server *server;
    vu_ctx *ctx;
    int stopped, destroyed;
    bool stops, in_stop;
};

static void on_stopped(void *dev)
{
    struct device *device = dev;

    device->stopped++;
    check(vu_server_is_stopped(device->server) == 1);
    err(vu_server_stop(device->server), -EDEADLK);
    if (device->in_stop)
        err(vu_server_free(device->server), -EBUSY);
    if (device->stops)
        return;
    ok(vu_server_free(device->server));
    check(device->destroyed == 1);
    vu_ctx_quit(device->ctx);
}

static void on_destroy(void *dev)
{
    struct device *device = dev;

    check(device->stopped == 1);
    device->destroyed++;
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = null_kick,
                               .stopped = on_stopped, .destroy = on_destroy};
    const vu_server_config config = test_config();
    struct device device = {0};
    struct place place;

    watchdog(50);
    place_make(&place);
    ok(vu_ctx_new_epoll(&device.ctx, NULL));
    for (int round = 0; round < 50; round++) {
        device.stopped = device.destroyed = 0;
        ok(vu_server_new(&config, &ops, &device, &device.server, NULL));
        ok(vu_server_start(device.server, place.address, device.ctx, NULL));
        ok(vu_server_request_stop(device.server));
        ok(vu_ctx_run(device.ctx));
        check(device.stopped == 1 && device.destroyed == 1);
    }
    /* Not so when it is vu_server_stop() that calls it: that still needs the server. */
    device.stops = true;
    for (int round = 0; round < 50; round++) {
        device.stopped = 0;
        ok(vu_server_new(&config, &ops, &device, &device.server, NULL));
        ok(vu_server_start(device.server, place.address, device.ctx, NULL));
        ok(vu_server_request_stop(device.server));
        device.in_stop = true;
        ok(vu_server_stop(device.server));
        device.in_stop = false;
        while (!device.stopped)
            ok(vu_ctx_dispatch(device.ctx, -1));
        ok(vu_server_free(device.server));
    }
    ok(vu_ctx_free(device.ctx));
    place_remove(&place);
    return 0;
}

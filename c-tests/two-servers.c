/* Two servers cannot have one path: the second is told so, and the first goes on. */
#define _GNU_SOURCE
#include "echo-device.h"

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = echo_kick};
    const vu_server_config config = test_config();
    vu_server *second = null_server();
    vu_error *error = NULL;
    struct rig rig = {0};
    struct place place;
    uint32_t written;
    pthread_t thread;

    watchdog(50);
    place_make(&place);
    ok(vu_ctx_new_epoll(&rig.ctx, NULL));
    ok(vu_server_new(&config, &ops, NULL, &rig.server, NULL));
    ok(vu_server_start(rig.server, place.address, rig.ctx, NULL));
    check(pthread_create(&thread, NULL, run_ctx, rig.ctx) == 0);
    ok(fe_init(&rig.fe, 1 << 18, 1, 64));
    ok(fe_connect(&rig.fe, place.path));
    ok(fe_start(&rig.fe));
    for (int round = 0; round < 3; round++) {
        err(vu_server_start(second, place.address, rig.ctx, &error), -EADDRINUSE);
        check(strstr(vu_error_message(error), place.path) != NULL);
        vu_error_free(error);
        check(vu_server_is_stopped(second) == 1 && place_has_socket(&place));
        rig_submit(&rig, 0, 16, 16);
        ok(fe_wait_used(&rig.fe, 0, &written));
        check(written == 16);
    }
    ok(fe_stop(&rig.fe));
    ok(vu_server_stop(rig.server));

    /* Now it is free, and the context was never the second one's. */
    ok(vu_server_start(second, place.address, NULL, NULL));
    vu_ctx_quit(rig.ctx);
    pthread_join(thread, NULL);
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(rig.ctx));
    ok(vu_server_stop(second));
    ok(vu_server_free(second));
    fe_destroy(&rig.fe);
    place_remove(&place);
    return 0;
}

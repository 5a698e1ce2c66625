/* Each call in each state that a server without a front-end can be in. */
#define _GNU_SOURCE
#include "fixture.h"

/* New and stopped are alike in everything but how they came to be. */
static void check_idle(vu_server *server, vu_ctx *ctx)
{
    check(vu_server_is_stopped(server) == 1);
    ok(vu_server_request_stop(server));
    ok(vu_server_stop(server));
    err(vu_server_attach_ctx(server, ctx), -ESHUTDOWN);
    err(vu_server_detach_ctx(server), -ESHUTDOWN);
    err(vu_server_request_detach(server), -ESHUTDOWN);
    err(vu_server_attach_vq_ctx(server, 0, ctx), -ESHUTDOWN);
    check(vu_server_is_stopped(server) == 1);
    check(vu_server_is_quiesced(server) == 1);
    check(vu_server_has_inflight(server) == 0);
}

static void check_running(vu_server *server, vu_ctx *ctx)
{
    check(vu_server_is_stopped(server) == 0);
    err(vu_server_start(server, "unix:/nowhere", ctx, NULL), -EBUSY);
    err(vu_server_free(server), -EBUSY);
    err(vu_server_attach_ctx(server, ctx), -EBUSY);
    err(vu_ctx_free(ctx), -EBUSY);
    ok(vu_server_attach_vq_ctx(server, 0, ctx));
    err(vu_server_attach_vq_ctx(server, 1, ctx), -EINVAL);
    ok(vu_server_detach_ctx(server));
    check(vu_server_is_quiesced(server) == 1);
    ok(vu_server_attach_ctx(server, ctx));
    ok(vu_server_request_detach(server));
    ok(vu_server_attach_ctx(server, ctx));
    check(vu_server_is_stopped(server) == 0);
}

int main(void)
{
    vu_server *server = null_server();
    struct place place;
    vu_ctx *ctx;

    watchdog(50);
    place_make(&place);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    check_idle(server, ctx);
    for (int round = 0; round < 3; round++) {
        ok(vu_server_start(server, place.address, ctx, NULL));
        check(place_has_socket(&place));
        check_running(server, ctx);
        ok(vu_server_stop(server));
        check(!place_has_socket(&place));
        check_idle(server, ctx);
    }
    ok(vu_server_free(server));
    ok(vu_ctx_free(ctx));
    place_remove(&place);
    return 0;
}

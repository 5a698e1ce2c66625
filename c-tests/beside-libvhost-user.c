/* In one program with libvhost-user, each call reaches the library that it is meant for. */
#include "fixture.h"
#include "libvhost-user-names.h"

#define DECLARE(name) int name(void);
LIBVHOST_USER_NAMES(DECLARE)

int main(void)
{
    int count = 0;

#define CALL(name) check(name() == count++);
    LIBVHOST_USER_NAMES(CALL)
    check(count == 28);
    check(vu_version() == VU_SERVER_VERSION);

    vu_server *server = null_server();
    vu_ctx *ctx;
    struct place place;

    place_make(&place);
    ok(vu_ctx_new_epoll(&ctx, NULL));
    ok(vu_server_start(server, place.address, ctx, NULL));
    ok(vu_ctx_dispatch(ctx, 0));
    ok(vu_server_stop(server));
    ok(vu_server_free(server));
    ok(vu_ctx_free(ctx));
    place_remove(&place);
    return 0;
}

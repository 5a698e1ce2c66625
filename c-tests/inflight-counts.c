/* Explicit counts are seen, and cannot be taken back more often than they were made. */
#include "fixture.h"

int main(void)
{
    vu_server *server = null_server();
    vu_vq *vq = vu_server_vq(server, 0);

    err(vu_server_inflight_dec(server), -EINVAL);
    err(vu_vq_inflight_dec(vq), -EINVAL);
    ok(vu_server_inflight_inc(server));
    ok(vu_server_inflight_inc(server));
    check(vu_server_has_inflight(server) == 1);
    ok(vu_server_inflight_dec(server));
    check(vu_server_has_inflight(server) == 1);
    ok(vu_server_inflight_dec(server));
    check(vu_server_has_inflight(server) == 0);
    err(vu_server_inflight_dec(server), -EINVAL);

    ok(vu_vq_inflight_inc(vq));
    check(vu_server_has_inflight(server) == 1);
    ok(vu_vq_inflight_dec(vq));
    check(vu_server_has_inflight(server) == 0);
    err(vu_vq_inflight_dec(vq), -EINVAL);

    /* Taken back after the server is gone. */
    ok(vu_server_inflight_inc(server));
    ok(vu_vq_inflight_inc(vq));
    ok(vu_server_free(server));
    ok(vu_vq_inflight_dec(vq));
    ok(vu_server_inflight_dec(server));
    return 0;
}

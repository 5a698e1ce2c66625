/* A program that was built against an older header: what it lacks is zero. */
#include "fixture.h"

static void must_not_run(void *dev)
{
    (void)dev;
    abort();
}

int main(void)
{
    vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = null_kick, .destroy = must_not_run};
    vu_server_config config = test_config();
    vu_server_stats stats;
    vu_server *server;

    /* The fields behind struct_size are not looked at. */
    ops.struct_size = offsetof(vu_device_ops, queue_started);
    config.struct_size = offsetof(vu_server_config, config_space);
    config.log_level = 1000;
    config.on_broken_ring = 1000;
    ok(vu_server_new(&config, &ops, NULL, &server, NULL));

    memset(&stats, 0xaa, sizeof(stats));
    stats.struct_size = offsetof(vu_server_stats, refusals);
    ok(vu_server_get_stats(server, &stats));
    check(stats.struct_size == offsetof(vu_server_stats, refusals));
    check(stats.connections == 0 && stats.messages == 0);
    check(stats.refusals == 0xaaaaaaaaaaaaaaaa);
    ok(vu_server_free(server));

    /* Nothing but the size: the required field is missing. */
    config.struct_size = sizeof(size_t);
    err(vu_server_new(&config, &ops, NULL, &server, NULL), -EINVAL);
    /* Sizes that no version has. */
    config.struct_size = sizeof(size_t) - 1;
    err(vu_server_new(&config, &ops, NULL, &server, NULL), -EINVAL);
    config.struct_size = sizeof(config) - 1;
    err(vu_server_new(&config, &ops, NULL, &server, NULL), -EINVAL);
    return 0;
}

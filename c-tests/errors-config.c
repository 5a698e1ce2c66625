/* Every field of the configuration is checked, and named when it is refused. */
#define _GNU_SOURCE
#include "fixture.h"

static void refused(const vu_server_config *config, const char *field)
{
    vu_server *server = (vu_server *)&server;
    vu_error *error = NULL;

    err(vu_server_new(config, &null_ops, NULL, &server, &error), -EINVAL);
    check(server == NULL && error != NULL);
    err(vu_error_code(error), -EINVAL);
    if (!strstr(vu_error_message(error), field)) {
        fprintf(stderr, "'%s' does not name '%s'\n", vu_error_message(error), field);
        abort();
    }
    vu_error_free(error);
}

#define REFUSED(field, value, text)                                            \
    do {                                                                       \
        vu_server_config config_ = test_config();                              \
        config_.field = (value);                                               \
        refused(&config_, text);                                               \
    } while (0)

int main(void)
{
    static const uint64_t sizes[257] = {100};
    static const char bytes[257];
    vu_server_config config = test_config();
    vu_server *server;

    refused(NULL, "config");
    REFUSED(struct_size, 0, "config.struct_size 0");
    REFUSED(name, "\xff", "name");
    REFUSED(flags, 1ull << 62, "flags 0x4000000000000000");
    REFUSED(flags, 1ull << 63, "flags 0x8000000000000000");
    REFUSED(features, 1ull << 24, "features 0x1000000");
    REFUSED(features, 1ull << 49, "features 0x2000000000000");
    REFUSED(num_queues, 0, "num_queues 0");
    REFUSED(num_queues, 1025, "num_queues 1025");
    REFUSED(max_queue_size, 65536, "max_queue_size 65536");
    REFUSED(max_queue_size, 48, "max_queue_size 48");
    REFUSED(config_size, 4, "config_space");
    REFUSED(stage_max, 257, "stage_max 257");
    REFUSED(on_broken_ring, 2, "on_broken_ring 2");
    REFUSED(log_level, 8, "log_level 8");
    REFUSED(num_shmem_regions, 1, "shmem_sizes");
    REFUSED(num_message_requests, 1, "message_requests");
    config.shmem_sizes = sizes;
    config.num_shmem_regions = 1;
    refused(&config, "shmem_regions: size 0x64");
    config.num_shmem_regions = 257;
    refused(&config, "shmem_sizes");
    config = test_config();
    config.config_space = bytes;
    config.config_size = sizeof(bytes);
    refused(&config, "config_size 257");

    /* The largest of everything is fine. */
    config = test_config();
    config.flags = VU_SERVER_RUN_DISABLED_QUEUES | VU_SERVER_REQUIRE_SEALED_MEMORY |
                   VU_SERVER_NO_INFLIGHT_AREA | VU_SERVER_SUSPENDS |
                   VU_SERVER_INBAND_NOTIFICATIONS;
    config.features = ~(((1ull << 50) - 1) & ~((1ull << 24) - 1));
    config.features_masked = ~0ull;
    config.num_queues = 1024;
    config.max_queue_size = 32768;
    config.config_space = config.config_writable = bytes;
    config.config_size = 256;
    config.elem_priv_size = 65536;
    config.stage_max = 256;
    config.drain_timeout_ms = UINT32_MAX;
    config.on_broken_ring = VU_BROKEN_RING_DISCONNECT;
    config.log_level = VU_LOG_DEBUG;
    config.reply_timeout_ms = UINT32_MAX;
    config.shmem_sizes = &sizes[1];
    config.num_shmem_regions = 256;
    ok(vu_server_new(&config, &null_ops, NULL, &server, NULL));
    check(vu_server_vq(server, 1023) != NULL);
    check(vu_server_vq(server, 1024) == NULL);
    ok(vu_server_free(server));
    return 0;
}

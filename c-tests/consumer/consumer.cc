/* The same from C++11. */
#include <cstdio>
#include <memory>
#include <vu_server.h>

namespace {

struct Free {
    void operator()(vu_ctx *ctx) const { vu_ctx_free(ctx); }
    void operator()(vu_server *server) const
    {
        vu_server_stop(server);
        vu_server_free(server);
    }
    void operator()(vu_error *err) const { vu_error_free(err); }
};

template <typename T> using Owned = std::unique_ptr<T, Free>;

int on_kick(void *, vu_vq *)
{
    return 0;
}

int serve(const char *path, vu_error **err)
{
    vu_server_config config = VU_SERVER_CONFIG_INIT;
    vu_device_ops ops = {};
    vu_server *server;
    vu_ctx *ctx;

    ops.struct_size = sizeof ops;
    ops.kick = on_kick;
    config.num_queues = 1;
    int rc = vu_ctx_new_epoll(&ctx, err);
    if (rc < 0)
        return rc;
    const Owned<vu_ctx> owned_ctx(ctx);
    rc = vu_server_new(&config, &ops, nullptr, &server, err);
    if (rc < 0)
        return rc;
    const Owned<vu_server> owned_server(server);
    rc = vu_server_start(server, path, ctx, err);
    return rc < 0 ? rc : vu_ctx_dispatch(ctx, 0);
}

} // namespace

int main(int argc, char **argv)
{
    vu_server_stats stats = VU_SERVER_STATS_INIT;
    vu_vq_stats vq_stats = VU_VQ_STATS_INIT;
    vu_error *err = nullptr;
    const int rc = argc == 2 ? serve(argv[1], &err) : -1;
    const Owned<vu_error> owned_err(err);

    if (rc < 0) {
        std::fprintf(stderr, "consumer: %d: %s\n", rc, vu_error_message(err));
        return 1;
    }
    return stats.struct_size != sizeof stats || vq_stats.struct_size != sizeof vq_stats;
}

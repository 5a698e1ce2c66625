/* What a program needs of an installed library: header, link, and a server that runs. ISO C99. */
#include <stdio.h>
#include <vu_server.h>

static int on_kick(void *dev, vu_vq *vq)
{
    (void)dev;
    (void)vq;
    return 0;
}

static int serve(const char *path, vu_error **err)
{
    static const vu_device_ops ops = { VU_DEVICE_OPS_INIT, .kick = on_kick };
    vu_server_config config = VU_SERVER_CONFIG_INIT;
    vu_server *server = NULL;
    vu_ctx *ctx = NULL;
    int rc;

    config.num_queues = 1;
    rc = vu_ctx_new_epoll(&ctx, err);
    if (rc >= 0)
        rc = vu_server_new(&config, &ops, NULL, &server, err);
    if (rc >= 0)
        rc = vu_server_start(server, path, ctx, err);
    if (rc >= 0)
        rc = vu_ctx_dispatch(ctx, 0);
    vu_server_stop(server);
    vu_server_free(server);
    vu_ctx_free(ctx);
    return rc;
}

/* argv[1] is where to listen. */
int main(int argc, char **argv)
{
    vu_error *err = NULL;
    int rc = argc == 2 ? serve(argv[1], &err) : -1;

    if (rc < 0) {
        fprintf(stderr, "consumer: %d: %s\n", rc, vu_error_message(err));
        vu_error_free(err);
        return 1;
    }
    if (vu_version() != VU_SERVER_VERSION) {
        fprintf(stderr, "consumer: library %s, header %s\n", vu_version_string(),
                VU_SERVER_VERSION_STRING);
        return 1;
    }
    return 0;
}

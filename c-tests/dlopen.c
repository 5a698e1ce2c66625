/* Loaded, used and unloaded by a thread that then ends. argv[1] is the library. */
#define _GNU_SOURCE
#include "fixture.h"

#include <dlfcn.h>
#include <pthread.h>

/* POSIX has functions at what dlsym() returns, ISO C forbids to convert it. */
#define LOOK_UP(name)                                                          \
    __typeof__(&name) load_##name;                                             \
    *(void **)&load_##name = dlsym(library, #name)

static void *use(void *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const vu_server_config config = test_config();
    vu_server *server;
    vu_ctx *ctx;

    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        abort();
    }
    LOOK_UP(vu_server_new);
    LOOK_UP(vu_server_start);
    LOOK_UP(vu_server_stop);
    LOOK_UP(vu_server_free);
    LOOK_UP(vu_ctx_new_epoll);
    LOOK_UP(vu_ctx_dispatch);
    LOOK_UP(vu_ctx_free);
    check(load_vu_server_new != NULL && load_vu_ctx_dispatch != NULL);
    check(load_vu_ctx_new_epoll(&ctx, NULL) == 0);
    check(load_vu_server_new(&config, &null_ops, NULL, &server, NULL) == 0);
    check(load_vu_server_start(server, "unix:/no/such/directory/sock", ctx, NULL) == -ENOENT);
    check(load_vu_ctx_dispatch(ctx, 0) == 0);
    check(load_vu_server_stop(server) == 0);
    check(load_vu_server_free(server) == 0);
    check(load_vu_ctx_free(ctx) == 0);
    check(dlclose(library) == 0);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    watchdog(50);
    check(argc == 2);
    for (int round = 0; round < 3; round++) {
        check(pthread_create(&thread, NULL, use, argv[1]) == 0);
        check(pthread_join(thread, NULL) == 0);
    }
    return 0;
}

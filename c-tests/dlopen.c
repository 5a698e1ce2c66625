/*
 * Loaded, used and unloaded by a thread that then ends; and used by a thread
 * that ends after another one has unloaded it. argv[1] is the library.
 */
#define _GNU_SOURCE
#include "fixture.h"

#include <dlfcn.h>
#include <pthread.h>

/* POSIX has functions at what dlsym() returns, ISO C forbids to convert it. */
#define LOOK_UP(name)                                                          \
    __typeof__(&name) load_##name;                                             \
    *(void **)&load_##name = dlsym(library, #name)

static void *load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        abort();
    }
    return library;
}

static void use(void *library)
{
    const vu_server_config config = test_config();
    vu_server *server;
    vu_ctx *ctx;

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
}

static void *load_use_and_unload(void *path)
{
    void *library = load(path);

    use(library);
    check(dlclose(library) == 0);
    return NULL;
}

struct lent {
    void *library;
    pthread_barrier_t used;
    pthread_barrier_t unloaded;
};

static void *use_and_outlive(void *data)
{
    struct lent *lent = data;

    use(lent->library);
    pthread_barrier_wait(&lent->used);
    pthread_barrier_wait(&lent->unloaded);
    return NULL;
}

static void unload_under_a_thread(const char *path)
{
    struct lent lent = {.library = load(path)};
    pthread_t thread;

    check(pthread_barrier_init(&lent.used, NULL, 2) == 0);
    check(pthread_barrier_init(&lent.unloaded, NULL, 2) == 0);
    check(pthread_create(&thread, NULL, use_and_outlive, &lent) == 0);
    pthread_barrier_wait(&lent.used);
    check(dlclose(lent.library) == 0);
    pthread_barrier_wait(&lent.unloaded);
    check(pthread_join(thread, NULL) == 0);
    pthread_barrier_destroy(&lent.used);
    pthread_barrier_destroy(&lent.unloaded);
}

int main(int argc, char **argv)
{
    pthread_t thread;

    watchdog(50);
    check(argc == 2);
    for (int round = 0; round < 3; round++) {
        check(pthread_create(&thread, NULL, load_use_and_unload, argv[1]) == 0);
        check(pthread_join(thread, NULL) == 0);
        unload_under_a_thread(argv[1]);
    }
    return 0;
}

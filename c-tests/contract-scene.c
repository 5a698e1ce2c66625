#define _GNU_SOURCE
#include "contract.h"

#include <sys/eventfd.h>

/* What may be called while a callback runs is called in the first one of each kind. */
static void act_in(struct scene *scene, enum callback callback)
{
    const struct contract_case *act = scene->act;
    bool wanted = scene->column == CALLBACK &&
                  (scene->only == callback || scene->only == CALLBACKS);
    long result;

    if (wanted && !scene->fired[callback] && !(act->flags & (ELEM | RING) && callback != KICK) &&
        !(act->flags & RUNS && callback == STOPPED)) {
        scene->fired[callback] = true;
        result = act->call(scene);
        if (!(act->flags & DRAINS && result == -ESHUTDOWN && callback != KICK))
            contract_expect(scene, result);
    }
    atomic_fetch_add(&scene->seen[callback], 1);
}

static int on_kick(void *dev, vu_vq *vq)
{
    struct scene *scene = dev;

    if (scene->column == CALLBACK && scene->act->flags & ELEM && !scene->fired[KICK])
        check(ok(vu_vq_pop(vq, &scene->elem, 1)) == 1);
    act_in(scene, KICK);
    if (scene->column == CALLBACK && scene->elem) {
        ok(vu_elem_complete(scene->elem, 0));
        scene->elem = NULL;
    }
    return echo_kick(dev, vq);
}

static void on_queue_started(void *dev, vu_vq *vq)
{
    (void)vq;
    act_in(dev, QUEUE_STARTED);
}

static void on_queue_stopping(void *dev, vu_vq *vq, uint32_t reason)
{
    check(vu_vq_index(vq) == 0 && reason >= VU_STOP_RECALL && reason <= VU_STOP_BROKEN);
    act_in(dev, QUEUE_STOPPING);
}

static void on_queue_stopped(void *dev, uint32_t index)
{
    check(index == 0);
    act_in(dev, QUEUE_STOPPED);
}

static void on_connected(void *dev)
{
    act_in(dev, CONNECTED);
}

static void on_disconnected(void *dev, int error, const char *reason)
{
    check(error <= 0 && reason != NULL);
    act_in(dev, DISCONNECTED);
}

static void on_features_acked(void *dev, uint64_t features, uint64_t protocol_features)
{
    (void)protocol_features;
    check(features & FE_F_VERSION_1);
    act_in(dev, FEATURES_ACKED);
}

static void on_config_written(void *dev, uint32_t offset, uint32_t size)
{
    check(offset == 1 && size == 1);
    act_in(dev, CONFIG_WRITTEN);
}

static void on_reset(void *dev)
{
    act_in(dev, RESET);
}

static void on_stopped(void *dev)
{
    act_in(dev, STOPPED);
}

static const vu_device_ops device_ops = {
    VU_DEVICE_OPS_INIT,
    .kick = on_kick,
    .queue_started = on_queue_started,
    .queue_stopping = on_queue_stopping,
    .queue_stopped = on_queue_stopped,
    .connected = on_connected,
    .disconnected = on_disconnected,
    .features_acked = on_features_acked,
    .config_written = on_config_written,
    .reset = on_reset,
    .stopped = on_stopped,
};

static int still_set_watch(void *loop, int fd, uint32_t events, vu_ctx_watch_fn fn, void *data)
{
    (void)fd;
    (void)events;
    (void)fn;
    *(void **)loop = data;
    return 0;
}

static void still_remove_watch(void *loop, int fd)
{
    (void)loop;
    (void)fd;
}

const vu_ctx_ops still_ops = {
    VU_CTX_OPS_INIT,
    .set_watch = still_set_watch,
    .remove_watch = still_remove_watch,
};

static void *loop(void *data)
{
    struct scene *scene = data;

    ok(vu_ctx_adopt(scene->rig.ctx));
    atomic_store(&scene->loop_owns, true);
    /* A case may quit the loop, or use up the wish to. */
    while (!atomic_load(&scene->end_loop))
        ok(vu_ctx_run(scene->rig.ctx));
    return NULL;
}

static void begin_loop(struct scene *scene)
{
    if (scene->looping)
        return;
    atomic_store(&scene->end_loop, false);
    atomic_store(&scene->loop_owns, false);
    check(pthread_create(&scene->looper, NULL, loop, scene) == 0);
    scene->looping = true;
    /* While the main thread owned the context, a stop there would dispatch it. */
    eventually(atomic_load(&scene->loop_owns));
}

static void end_loop(struct scene *scene)
{
    atomic_store(&scene->end_loop, true);
    vu_ctx_quit(scene->rig.ctx);
    check(pthread_join(scene->looper, NULL) == 0);
    scene->looping = false;
}

static void connect_front_end(struct scene *scene)
{
    ok(fe_init(&scene->rig.fe, 1 << 18, 1, 64));
    ok(fe_connect(&scene->rig.fe, scene->place.path));
}

static void scene_make(struct scene *scene)
{
    static const uint8_t space[8], writable[8] = {0, 1};
    vu_server_config config = test_config();

    config.config_space = space;
    config.config_writable = writable;
    config.config_size = sizeof(space);
    place_make(&scene->place);
    snprintf(scene->spare_address, sizeof(scene->spare_address), "%s-spare", scene->place.address);
    ok(vu_ctx_new_epoll(&scene->rig.ctx, NULL));
    ok(vu_ctx_new_epoll(&scene->spare_ctx, NULL));
    ok(vu_ctx_new_polled(&scene->polled, NULL));
    ok(vu_ctx_new(&still_ops, &scene->watch, &scene->foreign, NULL));
    scene->fd = ok(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    scene->spare = null_server();
    ok(vu_server_new(&config, &device_ops, scene, &scene->rig.server, NULL));
    ok(vu_server_start(scene->rig.server, scene->place.address, scene->rig.ctx, NULL));
    scene->vq = vu_server_vq(scene->rig.server, 0);
    connect_front_end(scene);
}

static void scene_end(struct scene *scene)
{
    ok(fe_stop(&scene->rig.fe));
    ok(vu_server_stop(scene->rig.server));
    end_loop(scene);
    ok(vu_server_free(scene->rig.server));
    fe_destroy(&scene->rig.fe);
    if (scene->spare)
        ok(vu_server_stop(scene->spare));
    ok(vu_server_free(scene->spare));
    ok(vu_ctx_free(scene->rig.ctx));
    ok(vu_ctx_free(scene->spare_ctx));
    ok(vu_ctx_free(scene->polled));
    ok(vu_ctx_free(scene->foreign));
    close(scene->fd);
    place_remove(&scene->place);
}

/* On the main thread, which owns the context: the queue runs, and what the case wants is there. */
static void start_queue(struct scene *scene)
{
    struct fe *fe = &scene->rig.fe;
    struct fe_buf bufs[2];

    ok(fe_start(fe));
    while (!atomic_load(&scene->seen[QUEUE_STARTED]))
        ok(vu_ctx_dispatch(scene->rig.ctx, -1));
    if (!(scene->act->flags & (RING | ELEM)))
        return;
    bufs[0] = (struct fe_buf){fe_alloc(fe, 16), 16, false};
    bufs[1] = (struct fe_buf){fe_alloc(fe, 16), 16, true};
    ok(fe_add(fe, 0, bufs, 2));
    if (scene->act->flags & ELEM)
        check(ok(vu_vq_pop(scene->vq, &scene->elem, 1)) == 1);
}

static void *act_elsewhere(void *data)
{
    struct scene *scene = data;

    contract_expect(scene, scene->act->call(scene));
    return NULL;
}

static void act_on_another_thread(struct scene *scene)
{
    pthread_t thread;

    check(pthread_create(&thread, NULL, act_elsewhere, scene) == 0);
    check(pthread_join(thread, NULL) == 0);
}

/* The steps of a front-end's life, and the callbacks that each of them leads to. */
static int step(struct scene *scene, enum callback callback)
{
    const struct {
        uint32_t offset, size, flags;
        uint8_t byte;
    } config = {1, 1, 0, 7};
    struct fe *fe = &scene->rig.fe;

    switch (callback) {
    case FEATURES_ACKED:
        return fe_negotiate(fe, FE_F_VERSION_1);
    case CONFIG_WRITTEN:
        return fe_set(fe, FE_SET_CONFIG, &config, 13, NULL, 0);
    case QUEUE_STARTED:
        return fe_start_queue(fe, 0);
    case KICK:
        return rig_submit(&scene->rig, 0, 16, 16);
    case QUEUE_STOPPING:
        return fe_stop_queue(fe, 0);
    case RESET:
        return fe_set(fe, FE_RESET_OWNER, NULL, 0, NULL, 0);
    case DISCONNECTED:
        fe_disconnect(fe);
        return 0;
    case STOPPED:
        return vu_server_request_stop(scene->rig.server);
    default:
        return 0;
    }
}

/* Through all callbacks, or to the one in which something happens that ends it. */
static void play_callbacks(struct scene *scene)
{
    begin_loop(scene);
    for (enum callback callback = CONNECTED; callback < CALLBACKS; callback++) {
        int rc = step(scene, callback);

        /* What happens in there may be the end of the connection. */
        if (callback != scene->only)
            ok(rc);
        eventually(atomic_load(&scene->seen[callback]));
        if (callback == scene->only)
            break;
    }
}

/* Whatever it was: with the server running and attached, requests are served. */
static void verify(struct scene *scene)
{
    struct fe_queue *queue = &scene->rig.fe.queues[0];
    vu_server *server = scene->rig.server;
    bool stops = strcmp(scene->act->function, "vu_server_request_stop") == 0;
    uint32_t written;

    if (!scene->rig.ctx)
        ok(vu_ctx_new_epoll(&scene->rig.ctx, NULL));
    begin_loop(scene);
    if (scene->elem)
        ok(vu_elem_complete(scene->elem, 0));
    if (stops)
        ok(vu_server_stop(server));
    if (vu_server_is_stopped(server) || scene->column == CALLBACK) {
        if (vu_server_is_stopped(server))
            ok(vu_server_start(server, scene->place.address, scene->rig.ctx, NULL));
        fe_destroy(&scene->rig.fe);
        connect_front_end(scene);
    }
    if (vu_server_attach_ctx(server, scene->rig.ctx) < 0)
        err(vu_server_attach_ctx(server, scene->rig.ctx), -EBUSY);
    if (scene->rig.fe.features == 0)
        ok(fe_start(&scene->rig.fe));
    rig_submit(&scene->rig, 0, 16, 16);
    while (queue->free_count < queue->size)
        ok(fe_wait_used(&scene->rig.fe, 0, &written));
    check(written == 16);
}

void contract_play(const struct contract_case *act, enum column column, const char *cell,
                   enum callback only)
{
    static struct scene scene;

    memset(&scene, 0, sizeof(scene));
    scene.act = act;
    scene.column = column;
    scene.cell = cell;
    scene.only = only;
    scene_make(&scene);
    if (column == CALLBACK) {
        play_callbacks(&scene);
        check(scene.fired[only == CALLBACKS ? KICK : only]);
    } else {
        start_queue(&scene);
    }
    switch (column) {
    case ANY_RUNNING:
        begin_loop(&scene);
        contract_expect(&scene, act->call(&scene));
        break;
    case ANY_IDLE:
        act_on_another_thread(&scene);
        break;
    case DETACHED:
        ok(vu_server_detach_ctx(scene.rig.server));
        contract_expect(&scene, act->call(&scene));
        break;
    case OWNER:
        contract_expect(&scene, act->call(&scene));
        break;
    case CALLBACK:
        break;
    }
    verify(&scene);
    scene_end(&scene);
}

static bool is_allowed(const char *cell)
{
    return strcmp(cell, "yes") == 0 || strcmp(cell, "idle") == 0;
}

static long errno_of(const char *cell)
{
    static const struct {
        const char *name;
        long code;
    } names[] = {{"-EBUSY", -EBUSY}, {"-EDEADLK", -EDEADLK}, {"-EXDEV", -EXDEV}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(cell, names[i].name) == 0)
            return names[i].code;
    fprintf(stderr, "'%s' in the header's table means nothing here\n", cell);
    abort();
}

void contract_expect(const struct scene *scene, long result)
{
    static const char *const columns[] = {"owner", "any, loop running", "any, loop idle", "callback",
                                          "detached"};
    bool good = is_allowed(scene->cell) ? result >= 0 : result == errno_of(scene->cell);

    if (!good) {
        fprintf(stderr, "%s, %s: returned %ld (%s), the header says %s\n", scene->act->function,
                columns[scene->column], result, result < 0 ? strerror((int)-result) : "success",
                scene->cell);
        abort();
    }
}

/*
 * Four queues under load while they move between a loop over poll(2), an
 * epoll loop, a polled context and none, and while the front-end stops rings,
 * leaves and comes back. Requests are completed inside kick, staged, and by
 * other threads in random order; each one is answered once, with the right
 * bytes. Usage: stress [SEED [SECONDS]]
 */
#define _GNU_SOURCE
#include "fixture.h"
#include "frontend.h"
#include "poll-loop.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>

#define QUEUES 4
#define DEPTH 16
#define LEN 128
#define CONTEXTS 3
#define WORKERS 2
#define WAITING_MAX (QUEUES * DEPTH)

/* --- random numbers ------------------------------------------------------------------------- */

struct rng {
    uint64_t state;
};

static struct rng rng_make(uint64_t seed)
{
    return (struct rng){seed * 0x9e3779b97f4a7c15ULL | 1};
}

static unsigned below(struct rng *rng, unsigned limit)
{
    rng->state ^= rng->state << 13;
    rng->state ^= rng->state >> 7;
    rng->state ^= rng->state << 17;
    return (unsigned)((rng->state >> 11) % limit);
}

/* --- the device ----------------------------------------------------------------------------- */

struct device {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    vu_elem *waiting[WAITING_MAX]; /* for the workers */
    unsigned count;
    bool closed;
    struct rng rng[QUEUES];
    atomic_uint arrivals;
};

static uint32_t answer(vu_elem *elem)
{
    uint8_t bytes[LEN];
    size_t n = vu_elem_read(elem, 0, bytes, sizeof(bytes));

    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)~bytes[i];
    return (uint32_t)vu_elem_write(elem, 0, bytes, n);
}

static void complete(vu_elem *elem)
{
    ok(vu_elem_complete(elem, answer(elem)));
}

static void leave_to_workers(struct device *dev, vu_elem *elem)
{
    pthread_mutex_lock(&dev->lock);
    check(dev->count < WAITING_MAX);
    dev->waiting[dev->count++] = elem;
    pthread_cond_signal(&dev->changed);
    pthread_mutex_unlock(&dev->lock);
}

static void *work(void *data)
{
    struct device *dev = data;
    struct rng rng = rng_make((uintptr_t)&rng);

    pthread_mutex_lock(&dev->lock);
    for (;;) {
        while (dev->count == 0 && !dev->closed)
            pthread_cond_wait(&dev->changed, &dev->lock);
        if (dev->count == 0)
            break;
        unsigned at = below(&rng, dev->count);
        vu_elem *elem = dev->waiting[at];

        dev->waiting[at] = dev->waiting[--dev->count];
        pthread_mutex_unlock(&dev->lock);
        complete(elem);
        pthread_mutex_lock(&dev->lock);
    }
    pthread_mutex_unlock(&dev->lock);
    return NULL;
}

static int on_kick(void *data, vu_vq *vq)
{
    struct device *dev = data;
    struct rng *rng = &dev->rng[vu_vq_index(vq)];
    vu_elem *elems[8];
    int n;

    while ((n = vu_vq_pop(vq, elems, 1 + below(rng, 8))) > 0) {
        if (below(rng, 8) == 0)
            ok(vu_vq_unpop(vq, &elems[--n], 1));
        for (int i = 0; i < n; i++) {
            switch (below(rng, 3)) {
            case 0:
                complete(elems[i]);
                break;
            case 1:
                ok(vu_vq_stage(vq, elems[i], answer(elems[i])));
                break;
            default:
                leave_to_workers(dev, elems[i]);
            }
        }
        if (below(rng, 16) == 0)
            return VU_AGAIN;
    }
    check(n == 0 || n == -ESHUTDOWN);
    return 0;
}

static void on_queue_started(void *data, vu_vq *vq)
{
    struct device *dev = data;

    (void)vq;
    atomic_fetch_add(&dev->arrivals, 1);
}

static void on_ring_broken(void *dev, uint32_t index, int error, const char *reason)
{
    (void)dev;
    fprintf(stderr, "queue %u broke: %d, %s\n", index, error, reason);
    abort();
}

static void on_orphaned(void *dev, uint32_t index)
{
    (void)dev;
    (void)index;
    check(!"orphaned");
}

/* --- the contexts --------------------------------------------------------------------------- */

struct place_to_run {
    vu_ctx *ctx;
    pthread_t thread;
    sem_t ready;
    int (*make)(struct place_to_run *place);
    void (*run)(struct place_to_run *place);
    struct poll_loop loop; /* of a foreign one */
    atomic_bool quit;
};

static int make_foreign(struct place_to_run *place)
{
    place->loop = (struct poll_loop){.thread = pthread_self()};
    return vu_ctx_new(&poll_loop_ops, &place->loop, &place->ctx, NULL);
}

static void run_foreign(struct place_to_run *place)
{
    while (!atomic_load(&place->quit))
        ok(poll_loop_iterate(&place->loop, 5));
}

static int make_epoll(struct place_to_run *place)
{
    return vu_ctx_new_epoll(&place->ctx, NULL);
}

static void run_epoll(struct place_to_run *place)
{
    ok(vu_ctx_set_busy_poll(place->ctx, 20000));
    ok(vu_ctx_run(place->ctx));
}

static int make_polled(struct place_to_run *place)
{
    return vu_ctx_new_polled(&place->ctx, NULL);
}

static void run_polled(struct place_to_run *place)
{
    while (!atomic_load(&place->quit))
        if (ok(vu_ctx_poll(place->ctx)) == 0)
            sched_yield();
}

static void *place_thread(void *data)
{
    struct place_to_run *place = data;

    ok(place->make(place));
    sem_post(&place->ready);
    place->run(place);
    ok(vu_ctx_free(place->ctx));
    return NULL;
}

static void places_start(struct place_to_run places[CONTEXTS])
{
    for (int i = 0; i < CONTEXTS; i++) {
        check(sem_init(&places[i].ready, 0, 0) == 0);
        check(pthread_create(&places[i].thread, NULL, place_thread, &places[i]) == 0);
        while (sem_wait(&places[i].ready) != 0)
            check(errno == EINTR);
    }
}

static void places_end(struct place_to_run places[CONTEXTS])
{
    for (int i = 0; i < CONTEXTS; i++) {
        atomic_store(&places[i].quit, true);
        /* Ends the run of an embedded loop, and is nothing to the others. */
        vu_ctx_quit(places[i].ctx);
        pthread_join(places[i].thread, NULL);
        sem_destroy(&places[i].ready);
    }
}

/* --- the mover ------------------------------------------------------------------------------ */

struct mover {
    vu_server *server;
    struct place_to_run *places;
    struct rng rng;
    sem_t woken;
    atomic_bool quit;
    unsigned moves;
};

static void on_wake(void *opaque)
{
    sem_post(&((struct mover *)opaque)->woken);
}

static vu_ctx *any_ctx(struct mover *mover)
{
    return mover->places[below(&mover->rng, CONTEXTS)].ctx;
}

static void move_server(struct mover *mover)
{
    ok(vu_server_request_detach(mover->server));
    if (below(&mover->rng, 2) == 0)
        while (!vu_server_is_quiesced(mover->server))
            check(sem_wait(&mover->woken) == 0 || errno == EINTR);
    ok(vu_server_attach_ctx(mover->server, any_ctx(mover)));
}

static void *move(void *data)
{
    struct mover *mover = data;
    static const uint8_t zeros[4];

    while (!atomic_load(&mover->quit)) {
        unsigned queue = below(&mover->rng, QUEUES);

        switch (below(&mover->rng, 8)) {
        case 0:
            move_server(mover);
            break;
        case 1:
            ok(vu_server_attach_vq_ctx(mover->server, queue, NULL));
            break;
        case 2:
            ok(vu_server_set_config(mover->server, 0, zeros, sizeof(zeros)));
            break;
        default:
            ok(vu_server_attach_vq_ctx(mover->server, queue, any_ctx(mover)));
        }
        mover->moves++;
        if (below(&mover->rng, 4) == 0)
            test_pause();
    }
    for (unsigned queue = 0; queue < QUEUES; queue++)
        ok(vu_server_attach_vq_ctx(mover->server, queue, any_ctx(mover)));
    return NULL;
}

/* --- the driver ----------------------------------------------------------------------------- */

struct request {
    struct fe_buf bufs[2];
    uint64_t number;
    int head; /* -1: not out */
};

struct driver {
    struct fe fe;
    struct rng rng;
    struct request requests[QUEUES][DEPTH];
    unsigned out[QUEUES];
    uint64_t submitted, answered;
    unsigned stops, reconnects;
};

static void driver_init(struct driver *driver)
{
    ok(fe_init(&driver->fe, 1 << 20, QUEUES, 64));
    for (unsigned queue = 0; queue < QUEUES; queue++) {
        for (unsigned i = 0; i < DEPTH; i++) {
            struct request *request = &driver->requests[queue][i];

            request->bufs[0] = (struct fe_buf){fe_alloc(&driver->fe, LEN), LEN, false};
            request->bufs[1] = (struct fe_buf){fe_alloc(&driver->fe, LEN), LEN, true};
            check(request->bufs[0].ptr && request->bufs[1].ptr);
            request->head = -1;
        }
    }
}

/* A byte that only this place of this request has, more or less. */
static uint8_t pattern(uint64_t number, unsigned at)
{
    return (uint8_t)((number * 0x9e3779b97f4a7c15ULL + at * 0x2545f4914f6cdd1dULL) >> 40);
}

static void submit(struct driver *driver, unsigned queue, struct request *request)
{
    uint8_t *bytes = request->bufs[0].ptr;

    request->number = ++driver->submitted;
    for (unsigned i = 0; i < LEN; i++)
        bytes[i] = pattern(request->number, i);
    memset(request->bufs[1].ptr, 0, LEN);
    request->head = ok(fe_submit(&driver->fe, queue, request->bufs, 2));
    driver->out[queue]++;
}

static void take(struct driver *driver, unsigned queue, int head, uint32_t written)
{
    struct request *request = driver->requests[queue];
    const uint8_t *bytes;

    while (request->head != head)
        check(++request < driver->requests[queue] + DEPTH);
    check(written == LEN);
    bytes = request->bufs[1].ptr;
    for (unsigned i = 0; i < LEN; i++)
        check(bytes[i] == (uint8_t)~pattern(request->number, i));
    request->head = -1;
    driver->out[queue]--;
    driver->answered++;
}

/* Takes what is there of every queue. */
static void poll_queues(struct driver *driver)
{
    for (unsigned queue = 0; queue < QUEUES; queue++) {
        uint32_t written;
        int head;

        while ((head = fe_poll_used(&driver->fe, queue, &written)) >= 0)
            take(driver, queue, head, written);
        check(head == -EAGAIN);
    }
}

static void wait_queue(struct driver *driver, unsigned queue)
{
    uint32_t written;
    int head = ok(fe_wait_used(&driver->fe, queue, &written));

    take(driver, queue, head, written);
}

static void fill(struct driver *driver, unsigned queue)
{
    for (unsigned i = 0; i < DEPTH; i++)
        if (driver->requests[queue][i].head < 0)
            submit(driver, queue, &driver->requests[queue][i]);
}

static void drain(struct driver *driver)
{
    for (unsigned queue = 0; queue < QUEUES; queue++)
        while (driver->out[queue] > 0)
            wait_queue(driver, queue);
}

/* Gone without a word. Nothing is in flight, so the rings go on where they are. */
static void vanish(struct driver *driver)
{
    drain(driver);
    fe_disconnect(&driver->fe);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        driver->fe.queues[queue].base = driver->fe.queues[queue].taken;
}

static void drive(struct driver *driver, const char *path, unsigned seconds)
{
    const time_t end = time(NULL) + seconds;

    ok(fe_connect(&driver->fe, path));
    ok(fe_start(&driver->fe));
    while (time(NULL) < end) {
        unsigned queue = below(&driver->rng, QUEUES);

        fill(driver, queue);
        switch (below(&driver->rng, 64)) {
        case 0:
            /* With requests in flight, and some that the device has not seen. */
            ok(fe_stop_queue(&driver->fe, queue));
            ok(fe_start_queue(&driver->fe, queue));
            driver->stops++;
            break;
        case 1:
            if (below(&driver->rng, 2) == 0)
                ok(fe_stop(&driver->fe));
            else
                vanish(driver);
            ok(fe_connect(&driver->fe, path));
            ok(fe_start(&driver->fe));
            driver->reconnects++;
            break;
        default:
            wait_queue(driver, queue);
        }
        poll_queues(driver);
    }
}

/* --- all together --------------------------------------------------------------------------- */

static void run(uint64_t seed, unsigned seconds)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = on_kick,
                               .queue_started = on_queue_started,
                               .ring_broken = on_ring_broken, .orphaned = on_orphaned};
    struct device dev = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER};
    struct place_to_run places[CONTEXTS] = {
        {.make = make_foreign, .run = run_foreign},
        {.make = make_epoll, .run = run_epoll},
        {.make = make_polled, .run = run_polled},
    };
    struct mover mover = {.places = places, .rng = rng_make(seed + 1)};
    static struct driver driver;
    vu_server_config config = test_config();
    pthread_t workers[WORKERS], mover_thread;
    uint8_t config_space[4] = {0};
    struct place socket;

    place_make(&socket);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        dev.rng[queue] = rng_make(seed + 2 + queue);
    memset(&driver, 0, sizeof(driver));
    driver.rng = rng_make(seed);
    driver_init(&driver);
    check(sem_init(&mover.woken, 0, 0) == 0);
    config.num_queues = QUEUES;
    config.config_space = config_space;
    config.config_size = sizeof(config_space);
    config.wake = on_wake;
    config.wake_opaque = &mover;
    ok(vu_server_new(&config, &ops, &dev, &mover.server, NULL));
    places_start(places);
    ok(vu_server_start(mover.server, socket.address, places[0].ctx, NULL));
    for (int i = 0; i < WORKERS; i++)
        check(pthread_create(&workers[i], NULL, work, &dev) == 0);
    check(pthread_create(&mover_thread, NULL, move, &mover) == 0);

    drive(&driver, socket.path, seconds);
    atomic_store(&mover.quit, true);
    pthread_join(mover_thread, NULL);
    drain(&driver);
    check(driver.answered == driver.submitted);
    ok(fe_stop(&driver.fe));

    ok(vu_server_stop(mover.server));
    check(vu_server_has_inflight(mover.server) == 0);
    ok(vu_server_free(mover.server));
    places_end(places);
    pthread_mutex_lock(&dev.lock);
    check(dev.count == 0);
    dev.closed = true;
    pthread_cond_broadcast(&dev.changed);
    pthread_mutex_unlock(&dev.lock);
    for (int i = 0; i < WORKERS; i++)
        pthread_join(workers[i], NULL);
    fe_destroy(&driver.fe);
    sem_destroy(&mover.woken);
    place_remove(&socket);
    printf("%llu requests, %u moves, %u arrivals, %u ring stops, %u reconnects\n",
           (unsigned long long)driver.answered, mover.moves, atomic_load(&dev.arrivals),
           driver.stops, driver.reconnects);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    unsigned seconds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 3;
    int descriptors = open_fds(), threads = thread_count();

    printf("stress %llu %u\n", (unsigned long long)seed, seconds);
    fflush(stdout);
    watchdog(40 * seconds + 60);
    run(seed, seconds);
    check(open_fds() == descriptors);
    check(thread_count() == threads);
    return 0;
}

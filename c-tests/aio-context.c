/*
 * examples/aio-context under load: drained sections, nested ones too, and changes of the AioContext
 * lose no request, and nothing is served inside of a section.
 */
#define _GNU_SOURCE
#include "../examples/aio-context/export.h"

#include "fixture.h"
#include "frontend.h"

#include <pthread.h>
#include <stdatomic.h>

#define DEPTH 4
#define LENGTH 64

struct client {
    char *path;
    struct fe fe;
    atomic_uint answered;
    atomic_bool ending, ended;
    uint8_t *out[DEPTH], *in[DEPTH];
    int slot_of[FE_MAX_SIZE]; /* by head; -1: not out */
};

static void submit(struct client *client, int slot, unsigned seed)
{
    struct fe_buf bufs[2] = {{client->out[slot], LENGTH, false}, {client->in[slot], LENGTH, true}};
    int head;

    for (int i = 0; i < LENGTH; i++)
        client->out[slot][i] = (uint8_t)(seed + (unsigned)i);
    memset(client->in[slot], 0, LENGTH);
    head = ok(fe_submit(&client->fe, 0, bufs, 2));
    check(client->slot_of[head] < 0);
    client->slot_of[head] = slot;
}

static int take_answer(struct client *client)
{
    uint32_t written;
    int head = ok(fe_wait_used(&client->fe, 0, &written));
    int slot = client->slot_of[head];

    check(slot >= 0 && written == LENGTH);
    check(memcmp(client->out[slot], client->in[slot], LENGTH) == 0);
    client->slot_of[head] = -1;
    atomic_fetch_add(&client->answered, 1);
    /* The main thread waits for progress. */
    aio_wait_kick();
    return slot;
}

static void *client_run(void *data)
{
    struct client *client = data;
    unsigned seed = 0;

    memset(client->slot_of, 0xff, sizeof(client->slot_of));
    ok(fe_init(&client->fe, 1 << 20, 1, 64));
    ok(fe_connect(&client->fe, client->path));
    ok(fe_start(&client->fe));
    for (int slot = 0; slot < DEPTH; slot++) {
        client->out[slot] = fe_alloc(&client->fe, LENGTH);
        client->in[slot] = fe_alloc(&client->fe, LENGTH);
        submit(client, slot, seed++);
    }
    while (!atomic_load(&client->ending))
        submit(client, take_answer(client), seed++);
    for (int i = 0; i < DEPTH; i++)
        take_answer(client);
    ok(fe_stop(&client->fe));
    fe_destroy(&client->fe);
    atomic_store(&client->ended, true);
    aio_wait_kick();
    return NULL;
}

static void wait_for_answers(struct client *client, unsigned count)
{
    const unsigned until = atomic_load(&client->answered) + count;

    AIO_WAIT_WHILE_UNLOCKED(NULL, (int)(atomic_load(&client->answered) - until) < 0);
}

/* The client's requests wait, and loops turn; the backend ends the test if it is given one. */
static void linger(void)
{
    for (int i = 0; i < 5; i++) {
        aio_poll(qemu_get_aio_context(), false);
        test_pause();
    }
}

static void drained_section(BlockBackend *blk, bool nested)
{
    bdrv_drained_begin(blk_bs(blk));
    if (nested)
        bdrv_drained_begin(blk_bs(blk));
    linger();
    if (nested)
        bdrv_drained_end(blk_bs(blk));
    linger();
    bdrv_drained_end(blk_bs(blk));
}

int main(void)
{
    IOThread *threads[2] = {iothread_create(), iothread_create()};
    AioContext *contexts[3] = {iothread_get_aio_context(threads[0]), qemu_get_aio_context(),
                               iothread_get_aio_context(threads[1])};
    BlockBackend *blk = blk_new(contexts[0]);
    static struct client client;
    struct place place;
    pthread_t thread;
    VuExport *export;

    watchdog(50);
    place_make(&place);
    client.path = place.path;
    ok(vu_export_new(blk, place.address, &export));
    check(pthread_create(&thread, NULL, client_run, &client) == 0);
    for (int round = 0; round < 12; round++) {
        wait_for_answers(&client, 20);
        drained_section(blk, round % 2 == 0);
        wait_for_answers(&client, 20);
        ok(blk_set_aio_context(blk, contexts[(round + 1) % 3]));
    }
    wait_for_answers(&client, 20);

    atomic_store(&client.ending, true);
    AIO_WAIT_WHILE_UNLOCKED(NULL, !atomic_load(&client.ended));
    pthread_join(thread, NULL);
    /* Nobody is there to serve it: the end is heard of all the same. */
    bdrv_drained_begin(blk_bs(blk));
    vu_export_delete(export);
    bdrv_drained_end(blk_bs(blk));

    blk_unref(blk);
    iothread_destroy(threads[0]);
    iothread_destroy(threads[1]);
    while (aio_poll(qemu_get_aio_context(), false))
        continue;
    aio_context_unref(qemu_get_aio_context());
    place_remove(&place);
    return 0;
}

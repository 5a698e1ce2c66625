/* What is wrong to do with an element is refused, and the element stays live. */
#define _GNU_SOURCE
#include "echo-device.h"

#include <stdatomic.h>

static atomic_bool other_started;

static void *from_another_thread(void *data)
{
    vu_vq *vq = data;
    vu_elem *elem = NULL;

    err(vu_vq_pop(vq, &elem, 1), -EXDEV);
    err(vu_vq_unpop(vq, &elem, 1), -EXDEV);
    err(vu_vq_flush(vq), -EXDEV);
    return NULL;
}

static void misuse_one(vu_vq *vq, vu_vq *other, vu_elem *elem)
{
    pthread_t thread;

    err(vu_elem_complete(elem, elem->in_len + 1), -EINVAL);
    err(vu_elem_complete(elem, UINT32_MAX), -EINVAL);
    err(vu_vq_stage(vq, elem, elem->in_len + 1), -EINVAL);
    err(vu_vq_stage(other, elem, 0), -EINVAL);
    ok(vu_elem_mark_dirty(elem, 0, elem->in_len));
    ok(vu_elem_mark_dirty(elem, elem->in_len, 0));
    err(vu_elem_mark_dirty(elem, 1, elem->in_len), -ERANGE);
    err(vu_elem_mark_dirty(elem, SIZE_MAX, SIZE_MAX), -ERANGE);
    check(pthread_create(&thread, NULL, from_another_thread, vq) == 0);
    check(pthread_join(thread, NULL) == 0);
}

static void misuse_order(vu_vq *vq, vu_vq *other, vu_elem **elems)
{
    vu_elem *swapped[2] = {elems[1], elems[0]}, *again[3];

    err(vu_vq_unpop(vq, elems, 1), -EINVAL);
    err(vu_vq_unpop(vq, swapped, 2), -EINVAL);
    err(vu_vq_unpop(other, elems, 2), -EINVAL);
    err(vu_vq_unpop(vq, NULL, 1), -EINVAL);
    err(vu_vq_unpop(vq, elems, 1 << 20), -EINVAL);
    ok(vu_vq_unpop(vq, elems, 0));
    ok(vu_vq_unpop(vq, elems, 2));
    check(ok(vu_vq_pop(vq, again, 3)) == 2);
    check(again[0]->in_len == 40 && again[1]->in_len == 41);
    elems[0] = again[0];
    elems[1] = again[1];
}

static int on_kick(void *dev, vu_vq *vq)
{
    vu_vq *other = vu_server_vq(vu_vq_server(vq), 1);
    vu_elem *elems[4];

    if (vu_vq_index(vq) == 1 || ok(vu_vq_pop(vq, elems, 4)) == 0)
        return 0;
    *(int *)dev += 1;
    check(ok(vu_vq_pop(vq, &elems[2], 1)) == 0);
    misuse_one(vq, other, elems[0]);
    misuse_order(vq, other, elems);
    ok(vu_elem_complete(elems[0], elems[0]->in_len));
    /* Completed already, and not reused yet. */
    err(vu_elem_complete(elems[0], 0), -EINVAL);
    err(vu_vq_stage(vq, elems[0], 0), -EINVAL);
    err(vu_elem_mark_dirty(elems[0], 0, 0), -EINVAL);
    ok(vu_vq_stage(vq, elems[1], 7));
    err(vu_vq_stage(vq, elems[1], 7), -EINVAL);
    return 0;
}

static void on_started(void *dev, vu_vq *vq)
{
    (void)dev;
    if (vu_vq_index(vq) == 1)
        atomic_store(&other_started, true);
}

int main(void)
{
    const vu_device_ops ops = {VU_DEVICE_OPS_INIT, .kick = on_kick, .queue_started = on_started};
    vu_server_config config = test_config();
    struct fe_buf bufs[2];
    uint32_t written;
    struct rig rig;
    pthread_t thread;
    int batches = 0;
    vu_ctx *ctx;

    watchdog(50);
    config.num_queues = 2;
    ok(vu_ctx_new_epoll(&ctx, NULL));
    rig_make(&rig, &config, &ops, &batches, ctx);
    check(pthread_create(&thread, NULL, run_ctx, ctx) == 0);
    ok(fe_negotiate(&rig.fe, FE_F_VERSION_1));
    /* Both are there before the device looks for the first time. */
    for (int i = 0; i < 2; i++) {
        bufs[0] = (struct fe_buf){fe_alloc(&rig.fe, 4), 4, false};
        bufs[1] = (struct fe_buf){fe_alloc(&rig.fe, 64), 40 + (uint32_t)i, true};
        ok(fe_add(&rig.fe, 0, bufs, 2));
    }
    ok(fe_start_queue(&rig.fe, 1));
    eventually(atomic_load(&other_started));
    ok(fe_start_queue(&rig.fe, 0));
    ok(fe_wait_used(&rig.fe, 0, &written));
    check(written == 40);
    ok(fe_wait_used(&rig.fe, 0, &written));
    check(written == 7);
    ok(fe_stop_queue(&rig.fe, 0));
    check(batches == 1);
    vu_ctx_quit(ctx);
    pthread_join(thread, NULL);
    ok(vu_server_stop(rig.server));
    ok(vu_server_free(rig.server));
    ok(vu_ctx_free(ctx));
    fe_destroy(&rig.fe);
    return 0;
}

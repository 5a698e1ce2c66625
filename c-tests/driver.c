#define _GNU_SOURCE
#include "frontend.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define DESC_NEXT 1
#define DESC_WRITE 2
#define USED_NO_NOTIFY 1

/* Memory and queues. */

void *fe_alloc(struct fe *fe, size_t size)
{
    size_t start = (fe->mem_used + 15) & ~(size_t)15;

    if (start > fe->mem_size || size > fe->mem_size - start)
        return NULL;
    fe->mem_used = start + size;
    return fe->mem + start;
}

uint64_t fe_gpa(const struct fe *fe, const void *ptr)
{
    return FE_GPA + (uint64_t)((const uint8_t *)ptr - fe->mem);
}

static int queue_init(struct fe *fe, struct fe_queue *queue, uint16_t size)
{
    queue->size = size;
    queue->desc = fe_alloc(fe, 16u * size);
    queue->avail = fe_alloc(fe, 6u + 2u * size);
    queue->used = fe_alloc(fe, 6u + 8u * size);
    queue->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->err = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->kick < 0 || queue->call < 0 || queue->err < 0)
        return -errno;
    if (!queue->desc || !queue->avail || !queue->used)
        return -ENOMEM;
    for (uint16_t i = 0; i < size; i++)
        queue->free[i] = (uint16_t)(size - 1 - i);
    queue->free_count = size;
    return 0;
}

int fe_init(struct fe *fe, size_t mem_size, unsigned queue_count,
            uint16_t queue_size)
{
    void *mem;
    int rc = 0;

    memset(fe, 0, sizeof(*fe));
    fe->sock = -1;
    if (queue_count > FE_MAX_QUEUES || queue_size > FE_MAX_SIZE)
        return -EINVAL;
    fe->memfd = memfd_create("fe-guest", MFD_CLOEXEC);
    if (fe->memfd < 0)
        return -errno;
    if (ftruncate(fe->memfd, (off_t)mem_size) < 0)
        goto fail;
    mem = mmap(NULL, mem_size, PROT_READ | PROT_WRITE, MAP_SHARED, fe->memfd, 0);
    if (mem == MAP_FAILED)
        goto fail;
    fe->mem = mem;
    fe->mem_size = mem_size;
    for (unsigned i = 0; i < queue_count && rc == 0; i++) {
        fe->queue_count++;
        rc = queue_init(fe, &fe->queues[i], queue_size);
    }
    if (rc < 0)
        fe_destroy(fe);
    return rc;
fail:
    rc = -errno;
    close(fe->memfd);
    return rc;
}

void fe_destroy(struct fe *fe)
{
    fe_disconnect(fe);
    for (unsigned i = 0; i < fe->queue_count; i++) {
        close(fe->queues[i].kick);
        close(fe->queues[i].call);
        close(fe->queues[i].err);
    }
    munmap(fe->mem, fe->mem_size);
    close(fe->memfd);
    memset(fe, 0, sizeof(*fe));
    fe->sock = -1;
}

/* The driver. */

static _Atomic(uint16_t) *used_event(const struct fe_queue *queue)
{
    return &queue->avail->ring[queue->size];
}

static _Atomic(uint16_t) *avail_event(const struct fe_queue *queue)
{
    return (_Atomic(uint16_t) *)&queue->used->ring[queue->size];
}

int fe_add(struct fe *fe, unsigned index, const struct fe_buf *bufs,
           unsigned count)
{
    struct fe_queue *queue = &fe->queues[index];
    uint16_t head, next = 0;

    if (count == 0 || count > queue->free_count)
        return -ENOSPC;
    /* Backwards, so that each descriptor knows the one that follows. */
    for (unsigned i = count; i-- > 0;) {
        uint16_t slot = queue->free[--queue->free_count];
        unsigned flags = (bufs[i].writable ? DESC_WRITE : 0) |
                         (i + 1 < count ? DESC_NEXT : 0);

        queue->desc[slot] = (struct fe_desc){
            .addr = htole64(fe_gpa(fe, bufs[i].ptr)),
            .len = htole32(bufs[i].len),
            .flags = htole16((uint16_t)flags),
            .next = htole16(next),
        };
        next = slot;
    }
    head = next;
    queue->chain_len[head] = (uint16_t)count;
    atomic_store_explicit(&queue->avail->ring[queue->added % queue->size],
                          htole16(head), memory_order_relaxed);
    queue->added++;
    /* Release: pairs with the device's acquire load of the index. */
    atomic_store_explicit(&queue->avail->idx, htole16(queue->added),
                          memory_order_release);
    return head;
}

/* The device asked to hear of `event`, and it is among the new ones. */
static bool passed(uint16_t event, uint16_t old, uint16_t new)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

int fe_kick(struct fe *fe, unsigned index)
{
    struct fe_queue *queue = &fe->queues[index];
    const uint64_t one = 1;
    uint16_t before = queue->kicked;
    bool wanted;

    queue->kicked = queue->added;
    /* The index before the wish; pairs with the device's fence. */
    atomic_thread_fence(memory_order_seq_cst);
    if (fe->features & FE_F_EVENT_IDX) {
        uint16_t event = le16toh(atomic_load(avail_event(queue)));

        wanted = passed(event, before, queue->added);
    } else {
        wanted = !(le16toh(atomic_load(&queue->used->flags)) & USED_NO_NOTIFY);
    }
    if (!wanted)
        return 0;
    return write(queue->kick, &one, sizeof(one)) == sizeof(one) ? 1 : -errno;
}

int fe_submit(struct fe *fe, unsigned index, const struct fe_buf *bufs,
              unsigned count)
{
    int head = fe_add(fe, index, bufs, count);
    int rc = head < 0 ? head : fe_kick(fe, index);

    return rc < 0 ? rc : head;
}

static void free_chain(struct fe_queue *queue, uint16_t head)
{
    uint16_t slot = head;

    for (uint16_t i = 0; i < queue->chain_len[head]; i++) {
        queue->free[queue->free_count++] = slot;
        slot = le16toh(queue->desc[slot].next);
    }
    queue->chain_len[head] = 0;
}

int fe_poll_used(struct fe *fe, unsigned index, uint32_t *len)
{
    struct fe_queue *queue = &fe->queues[index];
    const struct fe_used_elem *elem;
    uint32_t head;

    /* Acquire: pairs with the device's release store of the index. */
    if (le16toh(atomic_load_explicit(&queue->used->idx, memory_order_acquire)) ==
        queue->taken)
        return -EAGAIN;
    elem = &queue->used->ring[queue->taken % queue->size];
    head = le32toh(elem->id);
    if (head >= queue->size || queue->chain_len[head] == 0)
        return -EPROTO;
    *len = le32toh(elem->len);
    queue->taken++;
    free_chain(queue, (uint16_t)head);
    return (int)head;
}

int fe_wait_used(struct fe *fe, unsigned index, uint32_t *len)
{
    struct fe_queue *queue = &fe->queues[index];

    for (;;) {
        uint64_t count;
        int rc;

        atomic_store(used_event(queue), htole16(queue->taken));
        /* The wish before the look; pairs with the device's fence. */
        atomic_thread_fence(memory_order_seq_cst);
        rc = fe_poll_used(fe, index, len);
        if (rc != -EAGAIN)
            return rc;
        rc = fe_wait_fd(queue->call, POLLIN);
        if (rc < 0)
            return rc;
        if (read(queue->call, &count, sizeof(count)) < 0 && errno != EAGAIN)
            return -errno;
    }
}

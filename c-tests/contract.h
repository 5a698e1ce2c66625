/*
 * The header's table of functions and contexts as a test: contract-cases.c
 * knows how to call each function, contract-scene.c makes each situation, and
 * contract.c goes through the table cell by cell.
 */
#ifndef TEST_CONTRACT_H
#define TEST_CONTRACT_H

#include <stdatomic.h>

#include "echo-device.h"

/* The columns of the table. `any` is two situations: the owner's loop runs, or it does not. */
enum column {
    OWNER,
    ANY_RUNNING,
    ANY_IDLE,
    CALLBACK,
    DETACHED,
};

enum callback {
    CONNECTED,
    FEATURES_ACKED,
    CONFIG_WRITTEN,
    QUEUE_STARTED,
    KICK,
    QUEUE_STOPPING,
    QUEUE_STOPPED,
    RESET,
    DISCONNECTED,
    STOPPED,
    CALLBACKS,
};

struct scene;

enum {
    /* Wants a request in the ring that nobody has popped, on the queue's thread or in its kick. */
    RING = 1 << 0,
    /* Wants an element that is popped and not completed, in scene.elem. */
    ELEM = 1 << 1,
    /* On another thread it waits for the loop, which must run. */
    WAITS = 1 << 2,
    /* Takes the scene to an end: one scene for each callback. */
    ENDS = 1 << 3,
    /* Answers -ESHUTDOWN where a drain is over. */
    DRAINS = 1 << 4,
    /* Is not for a server that is stopped, nor tested in `stopped`. */
    RUNS = 1 << 5,
};

struct contract_case {
    const char *function;
    /* Calls it where it is, and undoes what it did if that is easy. What it returned, or any number >= 0
     * for what is no status. */
    long (*call)(struct scene *scene);
    unsigned flags;
};

extern const struct contract_case contract_cases[];

/* A server with one queue and a front-end, and spare objects that nobody uses. */
struct scene {
    enum column column;
    const struct contract_case *act;
    /* What the table says about it here. */
    const char *cell;

    struct place place;
    struct rig rig;
    vu_server *spare;
    char spare_address[112];
    vu_ctx *spare_ctx, *polled, *foreign;
    /* What the foreign loop was told to watch. */
    void *watch;
    int fd;
    vu_vq *vq;
    vu_elem *elem;

    pthread_t looper;
    bool looping;
    atomic_bool end_loop, loop_owns;
    atomic_int seen[CALLBACKS];
    bool fired[CALLBACKS];
    /* With ENDS, the only callback in which it happens. */
    enum callback only;
};

/* Ops of a loop that never runs; the loop itself is a void * that takes the last watch's data. */
extern const vu_ctx_ops still_ops;

/* One cell of the table, or the one callback `only` of it. */
void contract_play(const struct contract_case *act, enum column column, const char *cell,
                   enum callback only);
/* The answer is what the cell says. */
void contract_expect(const struct scene *scene, long result);

#endif

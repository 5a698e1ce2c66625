/* An event loop as the tests of loops use it, whatever its own library calls things. */
#ifndef TEST_LOOP_H
#define TEST_LOOP_H

#include <stdbool.h>
#include <vu_server.h>

/* Everything is called on the loop's thread. */
struct loop {
    void *loop;
    int (*new_ctx)(void *loop, vu_ctx **ctx);
    /* Frees the only one there is; NULL: vu_ctx_free() does. */
    void (*free_ctx)(void *loop);
    /* What the header makes of it for vu_ctx_new(), its functions and their argument; or no `wrap`. */
    vu_ctx_ops ops;
    void *(*wrap)(void *loop);
    /* Until quit(), which is called inside of it. */
    void (*run)(void *loop);
    void (*quit)(void *loop);
    /* One iteration, without waiting. */
    void (*turn)(void *loop);
    /* Calls it once, from the loop. */
    void (*later)(void *loop, void (*fn)(void *), void *arg);
    /* How many descriptors it watches. */
    int (*watches)(void *loop);
    /* Whether this is called from inside of it, and of no other; or NULL. */
    bool (*inside)(void *loop);
    /* Whether the loop may be run inside a callback of its own. */
    bool nests;
    /* Whether a blocking stop runs everything in the loop, later() too. */
    bool whole;
};

/* What later() is to call. */
struct call {
    void (*fn)(void *);
    void *arg;
};

#endif

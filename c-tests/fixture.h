/*
 * What most tests begin with: a place for a socket, a configuration, an
 * address, and a device that has seen nothing yet.
 */
#ifndef TEST_FIXTURE_H
#define TEST_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <vu_server.h>

#include "util.h"

struct place {
    char dir[64];
    char path[80];
    char address[96];
};

static inline void place_make(struct place *place)
{
    strcpy(place->dir, "/tmp/vu-test-XXXXXX");
    check(mkdtemp(place->dir) != NULL);
    snprintf(place->path, sizeof(place->path), "%s/sock", place->dir);
    snprintf(place->address, sizeof(place->address), "unix:%s", place->path);
}

static inline bool place_has_socket(const struct place *place)
{
    struct stat status;

    return stat(place->path, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* Nothing must be left in it. */
static inline void place_remove(const struct place *place)
{
    check(rmdir(place->dir) == 0);
}

static inline int null_kick(void *dev, vu_vq *vq)
{
    (void)dev;
    (void)vq;
    return 0;
}

static const vu_device_ops null_ops = {VU_DEVICE_OPS_INIT, .kick = null_kick};

static inline vu_server_config test_config(void)
{
    vu_server_config config = VU_SERVER_CONFIG_INIT;

    config.name = "test";
    config.num_queues = 1;
    return config;
}

/* A server of a device that does nothing. */
static inline vu_server *null_server(void)
{
    const vu_server_config config = test_config();
    vu_server *server;

    ok(vu_server_new(&config, &null_ops, NULL, &server, NULL));
    return server;
}

#endif

/* Log lines: up to the level that was asked for, whole, and silence by default. */
#define _GNU_SOURCE
#include "fixture.h"

#include <pthread.h>
#include <sys/socket.h>

struct lines {
    pthread_mutex_t lock;
    int count[8];
};

static void on_log(void *opaque, int level, const char *message)
{
    struct lines *lines = opaque;

    check(level == VU_LOG_ERROR || level == VU_LOG_WARNING || level == VU_LOG_INFO ||
          level == VU_LOG_DEBUG);
    check(message[0] != '\0' && strchr(message, '\n') == NULL);
    pthread_mutex_lock(&lines->lock);
    lines->count[level]++;
    pthread_mutex_unlock(&lines->lock);
}

/* A front-end that sends rubbish: a protocol error. */
static struct lines listen_to(uint32_t level)
{
    struct lines lines = {.lock = PTHREAD_MUTEX_INITIALIZER};
    vu_server_config config = test_config();
    vu_server_stats stats = VU_SERVER_STATS_INIT;
    char address[32], rubbish[12];
    vu_server *server;
    int pair[2];

    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    sprintf(address, "fd:%d", pair[0]);
    config.log_level = level;
    config.log = on_log;
    config.log_opaque = &lines;
    ok(vu_server_new(&config, &null_ops, NULL, &server, NULL));
    ok(vu_server_start(server, address, NULL, NULL));
    memset(rubbish, 0xff, sizeof(rubbish));
    check(write(pair[1], rubbish, sizeof(rubbish)) == sizeof(rubbish));
    check(read(pair[1], rubbish, 1) == 0);
    eventually(vu_server_get_stats(server, &stats) == 0 && stats.protocol_errors == 1);
    ok(vu_server_stop(server));
    ok(vu_server_free(server));
    close(pair[1]);
    return lines;
}

int main(void)
{
    struct lines lines;

    watchdog(50);
    lines = listen_to(0);
    for (int level = 0; level < 8; level++)
        check(lines.count[level] == 0);
    lines = listen_to(VU_LOG_WARNING);
    check(lines.count[VU_LOG_WARNING] >= 1);
    check(lines.count[VU_LOG_INFO] == 0 && lines.count[VU_LOG_DEBUG] == 0);
    lines = listen_to(VU_LOG_INFO);
    check(lines.count[VU_LOG_WARNING] >= 1 && lines.count[VU_LOG_INFO] >= 1);
    return 0;
}

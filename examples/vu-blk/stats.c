/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "stats.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "log.h"

struct field {
    const char *name;
    size_t offset;
};

#define SERVER_FIELD(name) { #name, offsetof(vu_server_stats, name) }
#define QUEUE_FIELD(name) { #name, offsetof(vu_vq_stats, name) }

static const struct field server_fields[] = {
    SERVER_FIELD(connections),
    SERVER_FIELD(messages),
    SERVER_FIELD(refusals),
    SERVER_FIELD(protocol_errors),
    SERVER_FIELD(broken_rings),
    SERVER_FIELD(orphaned_queues),
    SERVER_FIELD(config_changes),
    SERVER_FIELD(memory_regions),
};

static const struct field queue_fields[] = {
    QUEUE_FIELD(pops),
    QUEUE_FIELD(completions),
    QUEUE_FIELD(bytes_out),
    QUEUE_FIELD(bytes_in),
    QUEUE_FIELD(kicks),
    QUEUE_FIELD(notifications),
    QUEUE_FIELD(notifications_suppressed),
    QUEUE_FIELD(inflight),
    QUEUE_FIELD(dropped),
    QUEUE_FIELD(breaks),
};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static void print_fields(FILE *out, const void *stats, const struct field *fields, size_t num)
{
    for (size_t i = 0; i < num; i++) {
        const uint64_t *value = (const void *)((const char *)stats + fields[i].offset);
        fprintf(out, "%s\"%s\":%" PRIu64, i ? "," : "", fields[i].name, *value);
    }
}

/* Only the requests that were seen, by their number. */
static void print_messages(FILE *out, const vu_server_stats *stats)
{
    const char *separator = "";

    for (size_t i = 0; i < LENGTH(stats->messages_by_type); i++) {
        if (stats->messages_by_type[i]) {
            fprintf(out, "%s\"%zu\":%" PRIu64, separator, i, stats->messages_by_type[i]);
            separator = ",";
        }
    }
}

static void print_queue(FILE *out, const vu_server *server, uint32_t index)
{
    vu_vq_stats stats = { .struct_size = sizeof stats };

    vu_vq_get_stats(vu_server_vq(server, index), &stats);
    fprintf(out, "%s{\"index\":%" PRIu32 ",", index ? "," : "", index);
    print_fields(out, &stats, queue_fields, LENGTH(queue_fields));
    fputs("}", out);
}

void stats_print(const vu_server *server, uint32_t num_queues)
{
    vu_server_stats stats = { .struct_size = sizeof stats };
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    if (!out) {
        log_error("no memory for the statistics");
        return;
    }
    vu_server_get_stats(server, &stats);
    fputs("{", out);
    print_fields(out, &stats, server_fields, LENGTH(server_fields));
    fputs(",\"messages_by_type\":{", out);
    print_messages(out, &stats);
    fputs("},\"queues\":[", out);
    for (uint32_t i = 0; i < num_queues; i++) {
        print_queue(out, server, i);
    }
    fputs("]}", out);
    if (fclose(out) == 0) {
        log_line(text);
    } else {
        log_error("no memory for the statistics");
    }
    free(text);
}

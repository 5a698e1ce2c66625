/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vu_server.h>

#include "image.h"
#include "log.h"

#define MAX_QUEUES 1024
#define MIN_QUEUE_SIZE 4 /* header, one data buffer, status, and a power of two */
#define MAX_QUEUE_SIZE 32768
#define MAX_IOTHREADS 256
#define MAX_POLL_NS 1000000
#define DEFAULT_POLL_NS 32768

enum {
    OPT_SOCKET_PATH = 256,
    OPT_FD,
    OPT_BLK_FILE,
    OPT_NULL,
    OPT_READ_ONLY,
    OPT_NUM_QUEUES,
    OPT_QUEUE_SIZE,
    OPT_IOTHREADS,
    OPT_POLL_MAX_NS,
    OPT_SERIAL,
    OPT_VERBOSE,
    OPT_PRINT_CAPABILITIES,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    { "socket-path", required_argument, NULL, OPT_SOCKET_PATH },
    { "fd", required_argument, NULL, OPT_FD },
    { "blk-file", required_argument, NULL, OPT_BLK_FILE },
    { "null", required_argument, NULL, OPT_NULL },
    { "read-only", no_argument, NULL, OPT_READ_ONLY },
    { "num-queues", required_argument, NULL, OPT_NUM_QUEUES },
    { "queue-size", required_argument, NULL, OPT_QUEUE_SIZE },
    { "iothreads", required_argument, NULL, OPT_IOTHREADS },
    { "poll-max-ns", required_argument, NULL, OPT_POLL_MAX_NS },
    { "serial", required_argument, NULL, OPT_SERIAL },
    { "verbose", no_argument, NULL, OPT_VERBOSE },
    { "print-capabilities", no_argument, NULL, OPT_PRINT_CAPABILITIES },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { NULL, 0, NULL, 0 },
};

static const char usage[] =
    "Usage: vu-blk {--socket-path=PATH | --fd=FDNUM} {--blk-file=PATH | --null=SIZE} [OPTION]...\n"
    "Serve a disk to a virtual machine over vhost-user.\n"
    "\n"
    "Options:\n"
    "  --socket-path=PATH    Listen on the UNIX socket PATH, for one front-end after the\n"
    "                        other. A socket file that nobody listens on is replaced; the\n"
    "                        file is removed at the end.\n"
    "  --fd=FDNUM            Use the inherited UNIX socket FDNUM. A listening one, such as\n"
    "                        systemd's --fd=3, serves one front-end after the other; a\n"
    "                        connected one ends the program when the front-end is gone.\n"
    "  --blk-file=PATH       The disk is this file or block device.\n"
    "  --null=SIZE           The disk is nothing: reads and writes do nothing and succeed.\n"
    "  --read-only           Offer a read-only disk, and open the file for reading only.\n"
    "                        Default: read and write.\n"
    "  --num-queues=N        Number of virtqueues, 1 to 1024. Default: 1.\n"
    "  --queue-size=N        Largest virtqueue that is accepted: a power of two from 4 to\n"
    "                        32768. Default: 32768.\n"
    "  --iothreads=N         Process the queues on N threads of their own, 0 to 256: queue i\n"
    "                        on thread i modulo N. With 0 the main thread has them all.\n"
    "                        Default: 0.\n"
    "  --poll-max-ns=N       Look at the rings for up to N nanoseconds, 0 to 1000000, before\n"
    "                        sleeping, as long as that pays. Default: 32768.\n"
    "  --serial=S            Serial number of the disk, at most 20 bytes. Default: vu-blk.\n"
    "  --verbose             Log connections and each message by its name on stderr.\n"
    "                        Default: only what goes wrong.\n"
    "  --print-capabilities  Print the capabilities as JSON and exit.\n"
    "  --help                Print this and exit.\n"
    "  --version             Print the version and exit.\n"
    "\n"
    "SIZE is in bytes or takes the suffix K, M, G or T, and is a multiple of 512.\n"
    "\n"
    "Signals:\n"
    "  SIGTERM, SIGINT       End, when the requests in flight have come to their end.\n"
    "  SIGHUP                Read the size of the disk again and tell the guest.\n"
    "  SIGUSR1               Print statistics on stderr, as one line of JSON.\n"
    "\n"
    "Exit status:\n"
    "  0                     Ended as asked, by a signal or by the front-end of --fd.\n"
    "  1                     The server could not start, or failed later.\n"
    "  2                     Wrong options, or the disk or the socket --fd cannot be opened.\n";

int options_parse_size(const char *text, uint64_t *bytes)
{
    static const char suffixes[] = "KMGT";
    char *end;

    if (!isdigit((unsigned char)text[0])) {
        return -1;
    }
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (errno) {
        return -1;
    }
    unsigned shift = 0;
    if (*end) {
        const char *suffix = strchr(suffixes, toupper((unsigned char)*end));
        if (!suffix || end[1]) {
            return -1;
        }
        shift = 10 * (unsigned)(suffix - suffixes + 1);
    }
    if (number > (uint64_t)INT64_MAX >> shift) {
        return -1;
    }
    *bytes = (uint64_t)number << shift;
    return 0;
}

/* The value of --NAME as a number from `min` to `max`: 0, or -1 after a line on stderr. */
static int parse_number(const char *name, const char *text, uint32_t min, uint32_t max,
                        uint32_t *number)
{
    char *end;

    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end || errno || value < min || value > max) {
        log_error("--%s=%s: not a number from %" PRIu32 " to %" PRIu32, name, text, min, max);
        return -1;
    }
    *number = (uint32_t)value;
    return 0;
}

static int parse_null_size(struct options *options, const char *text)
{
    if (options_parse_size(text, &options->null_size) < 0 || options->null_size == 0 ||
        options->null_size % SECTOR_SIZE) {
        log_error("--null=%s: not a size that is a multiple of %u", text, SECTOR_SIZE);
        return -1;
    }
    return 0;
}

static int parse_queue_size(struct options *options, const char *text)
{
    if (parse_number("queue-size", text, MIN_QUEUE_SIZE, MAX_QUEUE_SIZE,
                     &options->queue_size) < 0) {
        return -1;
    }
    if (options->queue_size & (options->queue_size - 1)) {
        log_error("--queue-size=%s: not a power of two", text);
        return -1;
    }
    return 0;
}

static int parse_serial(struct options *options, const char *text)
{
    if (strlen(text) > VIRTIO_BLK_ID_BYTES) {
        log_error("--serial=%s: longer than %d bytes", text, VIRTIO_BLK_ID_BYTES);
        return -1;
    }
    options->serial = text;
    return 0;
}

static int parse_one(struct options *options, int opt, const char *value)
{
    uint32_t number;

    switch (opt) {
    case OPT_SOCKET_PATH:
        options->socket_path = value;
        return 0;
    case OPT_FD:
        if (parse_number("fd", value, 0, INT_MAX, &number) < 0) {
            return -1;
        }
        options->socket_fd = (int)number;
        return 0;
    case OPT_BLK_FILE:
        options->blk_file = value;
        return 0;
    case OPT_NULL:
        return parse_null_size(options, value);
    case OPT_READ_ONLY:
        options->read_only = true;
        return 0;
    case OPT_NUM_QUEUES:
        return parse_number("num-queues", value, 1, MAX_QUEUES, &options->num_queues);
    case OPT_QUEUE_SIZE:
        return parse_queue_size(options, value);
    case OPT_IOTHREADS:
        return parse_number("iothreads", value, 0, MAX_IOTHREADS, &options->iothreads);
    case OPT_POLL_MAX_NS:
        return parse_number("poll-max-ns", value, 0, MAX_POLL_NS, &options->poll_max_ns);
    case OPT_SERIAL:
        return parse_serial(options, value);
    case OPT_VERBOSE:
        options->verbose = true;
        return 0;
    default:
        return -1;
    }
}

/* Are the options together a disk to serve and a place to serve it? */
static int check(const struct options *options)
{
    if (!options->socket_path == (options->socket_fd < 0)) {
        log_error("give either --socket-path or --fd (see vu-blk --help)");
        return -1;
    }
    if (options->socket_path && !options->socket_path[0]) {
        log_error("--socket-path is empty");
        return -1;
    }
    if (!options->blk_file == !options->null_size) {
        log_error("give either --blk-file or --null (see vu-blk --help)");
        return -1;
    }
    return 0;
}

/* --print-capabilities counts whatever stands beside it, right or wrong. */
static bool wants_capabilities(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--print-capabilities")) {
            return true;
        }
    }
    return false;
}

static enum options_result answer(int opt)
{
    if (opt == OPT_HELP) {
        fputs(usage, stdout);
    } else if (opt == OPT_VERSION) {
        printf("vu-blk %s\n", vu_version_string());
    } else {
        puts("{\n  \"type\": \"block\",\n  \"features\": [\n    \"read-only\",\n"
             "    \"blk-file\"\n  ]\n}");
    }
    return OPTIONS_DONE;
}

/* What getopt_long() did not like about `argument`. */
static void complain(int opt, const char *argument)
{
    if (opt == ':') {
        log_error("%s needs a value", argument);
    } else if (optopt >= OPT_SOCKET_PATH) {
        log_error("%s takes no value", argument);
    } else if (optopt) {
        log_error("unknown option -%c (see vu-blk --help)", optopt);
    } else {
        log_error("unknown option %s (see vu-blk --help)", argument);
    }
}

enum options_result options_parse(struct options *options, int argc, char **argv)
{
    int opt;

    *options = (struct options){
        .socket_fd = -1,
        .num_queues = 1,
        .poll_max_ns = DEFAULT_POLL_NS,
        .serial = "vu-blk",
    };
    if (wants_capabilities(argc, argv)) {
        return answer(OPT_PRINT_CAPABILITIES);
    }
    opterr = 0;
    while ((opt = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (opt == OPT_HELP || opt == OPT_VERSION) {
            return answer(opt);
        }
        if (opt == ':' || opt == '?') {
            complain(opt, argv[optind - 1]);
            return OPTIONS_WRONG;
        }
        if (parse_one(options, opt, optarg) < 0) {
            return OPTIONS_WRONG;
        }
    }
    if (optind < argc) {
        log_error("unexpected argument %s (see vu-blk --help)", argv[optind]);
        return OPTIONS_WRONG;
    }
    return check(options) < 0 ? OPTIONS_WRONG : OPTIONS_RUN;
}

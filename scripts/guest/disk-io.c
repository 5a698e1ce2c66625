/*
 * The guest's load: stamped blocks written to a disk and checked, past the page cache, by one
 * thread per CPU so that every queue of the disk is used.
 *
 *   disk-io write  DISK THREADS START BLOCKS STAMP   writes the blocks once, flushes
 *   disk-io verify DISK THREADS START BLOCKS STAMP   reads them and compares every byte
 *   disk-io churn  DISK THREADS START BLOCKS         rewrites each thread's share for ever
 *
 * Each report is one line beginning with "VU: ". pattern.py describes the same blocks for the host.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_SIZE 4096u
#define WORDS (BLOCK_SIZE / sizeof(uint64_t))
#define BLOCKS_PER_IO 16u
#define IO_SIZE (BLOCKS_PER_IO * BLOCK_SIZE)
#define WRITES_PER_FLUSH 8u
#define WORD_STEP UINT64_C(0x9E3779B97F4A7C15)
#define MAX_THREADS 64u

struct share {
    pthread_t thread;
    int disk;
    unsigned cpu;
    uint64_t start, blocks;     /* this thread's part of the disk */
    uint32_t stamp;
};

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    printf("VU: failed %s\n", text);
    fflush(stdout);
    _exit(1);
}

static void *io_buffer(void)
{
    void *buffer;

    if (posix_memalign(&buffer, BLOCK_SIZE, IO_SIZE) != 0)
        fail("out of memory");
    return buffer;
}

/* A block says which it is and who wrote it, so that a stray, stale or torn one shows. */
static uint64_t block_word(uint64_t block, uint32_t stamp, size_t index)
{
    return ((uint64_t)stamp << 32 | block) + index * WORD_STEP;
}

static void fill_block(uint64_t *words, uint64_t block, uint32_t stamp)
{
    for (size_t i = 0; i < WORDS; i++)
        words[i] = block_word(block, stamp, i);
}

static void check_block(const uint64_t *words, uint64_t block, uint32_t stamp)
{
    for (size_t i = 0; i < WORDS; i++) {
        uint64_t expected = block_word(block, stamp, i);

        if (words[i] != expected)
            fail("block %" PRIu64 " word %zu is %#" PRIx64 ", not %#" PRIx64, block, i, words[i], expected);
    }
}

static void write_blocks(int disk, const void *data, uint64_t block, uint64_t count)
{
    ssize_t done = pwrite(disk, data, count * BLOCK_SIZE, (off_t)(block * BLOCK_SIZE));

    if (done != (ssize_t)(count * BLOCK_SIZE))
        fail("write of block %" PRIu64 ": %s", block, done < 0 ? strerror(errno) : "short");
}

static void read_blocks(int disk, void *data, uint64_t block, uint64_t count)
{
    ssize_t done = pread(disk, data, count * BLOCK_SIZE, (off_t)(block * BLOCK_SIZE));

    if (done != (ssize_t)(count * BLOCK_SIZE))
        fail("read of block %" PRIu64 ": %s", block, done < 0 ? strerror(errno) : "short");
}

static void flush_disk(int disk)
{
    if (fdatasync(disk) != 0)
        fail("flush: %s", strerror(errno));
}

/* The block layer maps CPUs to queues: a thread that stays on its CPU stays on its queue. */
static void pin_to_cpu(unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        fail("CPU %u: %s", cpu, strerror(errno));
}

static void *write_share(void *opaque)
{
    struct share *share = opaque;
    uint64_t *data = io_buffer();

    pin_to_cpu(share->cpu);
    for (uint64_t done = 0; done < share->blocks; done += BLOCKS_PER_IO) {
        for (unsigned i = 0; i < BLOCKS_PER_IO; i++)
            fill_block(data + i * WORDS, share->start + done + i, share->stamp);
        write_blocks(share->disk, data, share->start + done, BLOCKS_PER_IO);
    }
    flush_disk(share->disk);
    free(data);
    return NULL;
}

static void *verify_share(void *opaque)
{
    struct share *share = opaque;
    uint64_t *data = io_buffer();

    pin_to_cpu(share->cpu);
    for (uint64_t done = 0; done < share->blocks; done += BLOCKS_PER_IO) {
        read_blocks(share->disk, data, share->start + done, BLOCKS_PER_IO);
        for (unsigned i = 0; i < BLOCKS_PER_IO; i++)
            check_block(data + i * WORDS, share->start + done + i, share->stamp);
    }
    free(data);
    return NULL;
}

/*
 * Write number n of a thread goes to block n modulo its share, stamped n. A report names the
 * thread and the number of writes that a completed flush has made durable.
 */
static void *churn_share(void *opaque)
{
    struct share *share = opaque;
    uint64_t *data = io_buffer();

    pin_to_cpu(share->cpu);
    for (uint32_t n = 0;; n++) {
        uint64_t block = share->start + n % share->blocks;

        fill_block(data, block, n);
        write_blocks(share->disk, data, block, 1);
        if ((n + 1) % WRITES_PER_FLUSH == 0) {
            flush_disk(share->disk);
            printf("VU: flushed %u %" PRIu32 "\n", share->cpu, n + 1);
        }
    }
    return NULL;
}

static uint64_t parse_number(const char *text, const char *what, uint64_t max)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value > max)
        fail("%s: %s", what, text);
    return value;
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void run_threads(struct share *shares, unsigned threads, void *(*body)(void *))
{
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&shares[i].thread, NULL, body, &shares[i]) != 0)
            fail("cannot start thread %u", i);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(shares[i].thread, NULL);
}

int main(int argc, char **argv)
{
    static struct share shares[MAX_THREADS];
    void *(*body)(void *);
    uint64_t start, blocks;
    uint32_t stamp;
    unsigned threads;
    double began, seconds;
    int disk;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 7 && strcmp(argv[1], "write") == 0)
        body = write_share;
    else if (argc == 7 && strcmp(argv[1], "verify") == 0)
        body = verify_share;
    else if (argc == 6 && strcmp(argv[1], "churn") == 0)
        body = churn_share;
    else
        fail("usage: disk-io write|verify DISK THREADS START BLOCKS STAMP | churn DISK THREADS START BLOCKS");

    threads = (unsigned)parse_number(argv[3], "threads", MAX_THREADS);
    start = parse_number(argv[4], "start", UINT32_MAX);
    blocks = parse_number(argv[5], "blocks", UINT32_MAX);
    stamp = argc == 7 ? (uint32_t)parse_number(argv[6], "stamp", UINT32_MAX) : 0;
    if (threads == 0 || blocks == 0 || blocks % (threads * BLOCKS_PER_IO) != 0)
        fail("%" PRIu64 " blocks are not whole %u-block requests of %u threads", blocks, BLOCKS_PER_IO, threads);

    disk = open(argv[2], O_RDWR | O_DIRECT | O_CLOEXEC);
    if (disk < 0)
        fail("%s: %s", argv[2], strerror(errno));
    for (unsigned i = 0; i < threads; i++)
        shares[i] = (struct share){
            .disk = disk,
            .cpu = i,
            .start = start + i * (blocks / threads),
            .blocks = blocks / threads,
            .stamp = stamp,
        };

    began = seconds_now();
    run_threads(shares, threads, body);
    seconds = seconds_now() - began;
    printf("VU: seconds %.3f\n", seconds);
    close(disk);
    return 0;
}

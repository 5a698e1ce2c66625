/*
 * What every C test needs: checks that say where they failed, and bounds on
 * everything that waits. Tests define _GNU_SOURCE before any include.
 */
#ifndef TEST_UTIL_H
#define TEST_UTIL_H

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Passes a result >= 0 on; a negative errno ends the test. */
#define ok(expr) test_ok((expr), #expr, __FILE__, __LINE__)

/* The expression returns exactly `code`, a negative errno. */
#define err(expr, code) test_err((expr), (code), #expr, #code, __FILE__, __LINE__)

#define check(cond) test_check((cond), #cond, __FILE__, __LINE__)

/* Waits, 10 seconds at most, for what offers nothing to wait on. */
#define eventually(cond)                                                       \
    do {                                                                       \
        unsigned tries_ = 0;                                                   \
        while (!(cond)) {                                                      \
            test_check(tries_++ < 10000, "eventually " #cond, __FILE__,        \
                       __LINE__);                                              \
            test_pause();                                                      \
        }                                                                      \
    } while (0)

static inline int test_ok(long result, const char *expr, const char *file,
                          int line)
{
    if (result < 0) {
        fprintf(stderr, "%s:%d: %s: returned %ld (%s)\n", file, line, expr,
                result, strerror((int)-result));
        abort();
    }
    return (int)result;
}

static inline void test_err(long result, long code, const char *expr,
                            const char *name, const char *file, int line)
{
    if (result != code) {
        fprintf(stderr, "%s:%d: %s: returned %ld (%s), want %s\n", file, line,
                expr, result, result < 0 ? strerror((int)-result) : "success",
                name);
        abort();
    }
}

static inline void test_check(bool cond, const char *text, const char *file,
                              int line)
{
    if (!cond) {
        fprintf(stderr, "%s:%d: false: %s\n", file, line, text);
        abort();
    }
}

static inline void test_pause(void)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};

    nanosleep(&millisecond, NULL);
}

static inline void test_watchdog_bark(int signal)
{
    static const char text[] = "watchdog: the test did not finish in time\n";
    ssize_t written = write(STDERR_FILENO, text, sizeof(text) - 1);

    (void)signal;
    (void)written;
    abort();
}

/* Ends the test, loudly, if it still runs after so many seconds. */
static inline void watchdog(unsigned seconds)
{
    struct sigaction action = {.sa_handler = test_watchdog_bark};

    sigaction(SIGALRM, &action, NULL);
    alarm(seconds);
}

static inline int test_count_entries(const char *path)
{
    struct dirent *entry;
    int count = 0;
    DIR *directory = opendir(path);

    if (!directory)
        return -errno;
    while ((entry = readdir(directory)))
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

/* Open file descriptors, without the one that looking takes. */
static inline int open_fds(void)
{
    return test_count_entries("/proc/self/fd") - 1;
}

static inline int thread_count(void)
{
    return test_count_entries("/proc/self/task");
}

#endif

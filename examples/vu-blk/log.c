/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "log.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <vu_server.h>

static const char *prefix(int level)
{
    if (level <= VU_LOG_ERROR) {
        return "error: ";
    }
    if (level <= VU_LOG_WARNING) {
        return "warning: ";
    }
    return level <= VU_LOG_INFO ? "" : "debug: ";
}

static void write_line(const char *program, const char *kind, const char *text)
{
    struct iovec parts[] = {
        { (void *)program, strlen(program) },
        { (void *)kind, strlen(kind) },
        { (void *)text, strlen(text) },
        { "\n", 1 },
    };
    /* A log that cannot be written has nobody left to be told. */
    ssize_t ignored = writev(STDERR_FILENO, parts, 4);
    (void)ignored;
}

static void write_message(int level, const char *format, va_list args)
{
    char text[1024];

    vsnprintf(text, sizeof text, format, args);
    write_line("vu-blk: ", prefix(level), text);
}

void log_error(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    write_message(VU_LOG_ERROR, format, args);
    va_end(args);
}

void log_warning(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    write_message(VU_LOG_WARNING, format, args);
    va_end(args);
}

void log_info(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    write_message(VU_LOG_INFO, format, args);
    va_end(args);
}

void log_library(void *opaque, int level, const char *message)
{
    (void)opaque;
    write_line("vu-blk: ", prefix(level), message);
}

void log_line(const char *text)
{
    write_line("", "", text);
}

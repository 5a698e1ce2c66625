/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Lines on stderr, each in one write so that threads do not mix them. */
#ifndef VU_BLK_LOG_H
#define VU_BLK_LOG_H

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* vu_server_config.log */
void log_library(void *opaque, int level, const char *message);

/* `text` and a newline as they are. */
void log_line(const char *text);

#endif

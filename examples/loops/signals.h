/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* For the loops that hear of signals through a descriptor. */
#ifndef LOOPS_SIGNALS_H
#define LOOPS_SIGNALS_H

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>

/* Readable after SIGINT or SIGTERM, which do nothing else from now on. */
static inline int open_signals(void)
{
    sigset_t signals;
    int fd;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

#endif

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * vu-blk: a vhost-user-blk back-end on the C API of vu-server.
 *
 * The main thread runs the server's home context, with the signals in it; the queues run there
 * too or, with --iothreads, in contexts of their own. Each of these contexts has an io_uring.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/poll.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <vu_server.h>

#include "vu-blk/announce.h"
#include "vu-blk/device.h"
#include "vu-blk/log.h"
#include "vu-blk/options.h"
#include "vu-blk/socket.h"
#include "vu-blk/stats.h"
#include "vu-blk/workers.h"

enum {
    STATUS_OK = 0,
    STATUS_FAILED = 1, /* at the start, or later */
    STATUS_USAGE = 2,  /* the options, or the disk or socket that they name */
};

struct program {
    struct options options;
    struct device device;
    struct workers *workers;
    vu_ctx *home;
    int signal_fd;
    struct socket_info socket;
    _Atomic int status;
};

/* From any thread. */
static void end(struct program *program, int status)
{
    if (status != STATUS_OK) {
        atomic_store(&program->status, status);
    }
    vu_ctx_quit(program->home);
}

/* --- signals -------------------------------------------------------------------------- */

static void reread_size(struct program *program)
{
    int changed = device_update_capacity(&program->device);

    if (changed < 0) {
        log_error("%s: cannot update the size: %s", program->options.blk_file, strerror(-changed));
    } else if (changed) {
        log_info("the disk has %llu sectors now",
                 (unsigned long long)image_sectors(&program->device.disk.image));
    }
}

static void on_signal(void *data, uint32_t revents)
{
    struct program *program = data;
    struct signalfd_siginfo info;

    (void)revents;
    while (read(program->signal_fd, &info, sizeof info) == sizeof info) {
        switch (info.ssi_signo) {
        case SIGUSR1:
            stats_print(program->device.server, program->options.num_queues);
            break;
        case SIGHUP:
            reread_size(program);
            break;
        default:
            end(program, STATUS_OK);
        }
    }
}

/* Before any thread exists: they all inherit the mask. */
static int catch_signals(struct program *program)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    /* Whoever reads our stderr may go away. */
    signal(SIGPIPE, SIG_IGN);
    program->signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    if (program->signal_fd < 0) {
        int error = -errno;
        log_error("signalfd: %s", strerror(errno));
        return error;
    }
    int error = vu_ctx_watch(program->home, program->signal_fd, POLLIN, on_signal, program);
    if (error < 0) {
        log_error("cannot watch for signals: %s", strerror(-error));
    }
    return error;
}

/* --- set-up --------------------------------------------------------------------------- */

static void on_failed(void *data, int error)
{
    log_error("an event loop failed: %s", strerror(-error));
    end(data, STATUS_FAILED);
}

static void on_disconnected(void *data, int error)
{
    struct program *program = data;

    if (program->socket.connected) {
        end(program, error ? STATUS_FAILED : STATUS_OK);
    }
}

static int open_image(struct program *program)
{
    const struct options *options = &program->options;
    struct image *image = &program->device.disk.image;

    if (options->blk_file) {
        return image_open(image, options->blk_file, options->read_only);
    }
    image_open_null(image, options->null_size, options->read_only);
    return 0;
}

/* Report and consume `err`, which the library may have left NULL. */
static void log_vu_error(const char *what, int error, vu_error *err)
{
    log_error("%s: %s", what, err ? vu_error_message(err) : strerror(-error));
    vu_error_free(err);
}

/* Start the server at the address the options name. */
static int start(struct program *program)
{
    const struct options *options = &program->options;
    vu_server *server = program->device.server;
    vu_error *err = NULL;
    char address[4096];

    int length = options->socket_path
                     ? snprintf(address, sizeof address, "unix:%s", options->socket_path)
                     : snprintf(address, sizeof address, "fd:%d", options->socket_fd);
    if (length >= (int)sizeof address) {
        log_error("--socket-path is longer than %zu bytes", sizeof address);
        return -ENAMETOOLONG;
    }
    int error = vu_server_start(server, address, program->home, &err);
    if (error < 0) {
        log_vu_error("cannot start", error, err);
        return error;
    }
    error = workers_attach(program->workers, server, options->num_queues);
    if (error < 0) {
        log_error("cannot attach the queues: %s", strerror(-error));
        vu_server_stop(server);
        return error;
    }
    announce(options, &program->device.disk.image, &program->socket);
    return 0;
}

/* Everything but the start: 0 or -errno after a line on stderr. */
static int set_up(struct program *program)
{
    const struct options *options = &program->options;
    vu_error *err = NULL;

    int error = vu_ctx_new_epoll(&program->home, &err);
    if (error < 0) {
        log_vu_error("cannot create a context", error, err);
        return error;
    }
    error = catch_signals(program);
    if (error < 0) {
        return error;
    }
    program->device.disconnected = on_disconnected;
    program->device.data = program;
    error = device_new_server(&program->device, options, &err);
    if (error < 0) {
        log_vu_error("cannot create the server", error, err);
        return error;
    }
    struct workers_config config = {
        .home = program->home,
        .iothreads = options->iothreads < options->num_queues ? options->iothreads
                                                              : options->num_queues,
        .poll_max_ns = options->poll_max_ns,
        .fd = program->device.disk.image.fd,
        .failed = on_failed,
        .data = program,
    };
    error = workers_new(&config, &program->workers);
    if (error < 0) {
        return error;
    }
    workers_assign(program->workers, program->device.server, options->num_queues);
    return 0;
}

/* Serve until a signal comes or something fails. The iothreads go on while the server stops:
 * it is they who bring the requests in flight to their end. */
static int serve(struct program *program)
{
    int error = start(program);

    if (error < 0) {
        return error;
    }
    error = vu_ctx_run(program->home);
    if (error < 0) {
        log_error("the event loop failed: %s", strerror(-error));
    }
    program->socket.connected = false;
    vu_server_stop(program->device.server);
    return error;
}

static void tear_down(struct program *program)
{
    if (program->workers) {
        workers_join(program->workers);
        workers_free(program->workers);
    }
    vu_server_free(program->device.server);
    if (program->home) {
        vu_ctx_unwatch(program->home, program->signal_fd);
        vu_ctx_free(program->home);
    }
    if (program->signal_fd >= 0) {
        close(program->signal_fd);
    }
    image_close(&program->device.disk.image);
}

int main(int argc, char **argv)
{
    static struct program program = { .signal_fd = -1 };

    switch (options_parse(&program.options, argc, argv)) {
    case OPTIONS_DONE:
        return STATUS_OK;
    case OPTIONS_WRONG:
        return STATUS_USAGE;
    case OPTIONS_RUN:
        break;
    }
    if (socket_examine(&program.socket, &program.options) < 0 || open_image(&program) < 0) {
        return STATUS_USAGE;
    }
    int error = set_up(&program);
    if (error >= 0) {
        error = serve(&program);
    }
    tear_down(&program);
    return error < 0 ? STATUS_FAILED : atomic_load(&program.status);
}

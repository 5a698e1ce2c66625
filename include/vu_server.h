/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/**
 * @file
 * vu-server: a vhost-user device server.
 *
 * Turns a program into a virtio device back-end, in the program's own event
 * loop. The library listens on a UNIX socket, speaks the vhost-user protocol
 * with the front-end that connects (QEMU and others), maps the guest's memory,
 * runs the virtqueues, and calls the program back. This file is generated; it
 * is the reference.
 *
 *
 * Objects
 * -------
 * vu_server  a device; one front-end at a time is connected to it
 * vu_vq      one of its virtqueues
 * vu_elem    one request of the driver, popped from a virtqueue
 * vu_ctx     an event loop of the program: its own, one over epoll that comes
 *            with the library, or a thread that polls
 * vu_error   why a set-up call failed
 *
 *
 * Lifecycle
 * ---------
 *
 *   vu_server_new()
 *        |
 *        v      vu_server_start()          vu_server_request_stop()
 *       NEW ----------------------> RUNNING ----------------------> STOPPING
 *        |                            ^ |      vu_server_stop()         |
 *        |          vu_server_start() | |                               |
 *        |                            | v      all is down              |
 *        |                          STOPPED <----------------------------
 *        |                             |
 *        +------ vu_server_free() -----+
 *
 *   call          new         running      stopping       stopped
 *   start         0           -EBUSY       -EBUSY         0
 *   request_stop  0, nothing  0            0, nothing     0, nothing
 *   stop          0, nothing  0            0, joins       0, nothing
 *   attach_ctx    -ESHUTDOWN  0, -EBUSY    -ESHUTDOWN     -ESHUTDOWN
 *   detach_ctx    -ESHUTDOWN  0            -ESHUTDOWN     -ESHUTDOWN
 *   free          0           -EBUSY       -EBUSY         0
 *
 * request_detach and attach_vq_ctx are as detach_ctx. While it runs, a server
 * is attached to contexts or detached. Connections come and go: connected,
 * features_acked, queue_started ... kick ... queue_stopping, queue_stopped,
 * disconnected; then the next front-end is accepted. What a front-end or a
 * guest does wrong ends its ring or its connection, never the server.
 *
 *
 * Threads
 * -------
 * A started server has one internal thread, "vu-<name>", with all signals
 * blocked; it never runs code of the device, except for `log` and `wake`,
 * which any thread may call, and never touches guest memory. A context is
 * owned by the thread that made it, adopted it (vu_ctx_adopt()) or last
 * dispatched it; a second thread that dispatches it at the same time gets
 * -EBUSY. What a thread owned when it ended must be adopted before it is used.
 * Every device callback and every call of vu_ctx_ops runs on the owner, inside
 * a dispatch of that context, or inside stop, detach, vu_ctx_new() or
 * vu_ctx_free() called by the owner (`destroy` on the thread that frees): a
 * program with one thread needs no lock. A server has a home context; each
 * queue has a context, at first the home one. Completing elements, counting,
 * configuration changes, statistics, attach and the request_* functions are
 * for any thread. No lock of the library's is held during a callback. Distinct
 * servers are independent. The library installs no signal handlers and raises
 * no SIGPIPE; all its descriptors are close-on-exec; a forked child may only
 * call _exit() or execve().
 *
 *   owner     on the thread that owns the context concerned
 *   any       on any other thread
 *   callback  inside a callback of the same server (on the owner, then)
 *   detached  while the server is detached
 *   idle      only while the context's loop is not running
 *
 *   function                   owner    any      callback  detached
 *   vu_ctx_new                 yes      idle     yes       yes
 *   vu_ctx_new_epoll           yes      yes      yes       yes
 *   vu_ctx_new_polled          yes      yes      yes       yes
 *   vu_ctx_free                yes      idle     -EBUSY    yes
 *   vu_ctx_adopt               yes      idle     yes       yes
 *   vu_ctx_fd                  yes      yes      yes       yes
 *   vu_ctx_dispatch            yes      idle     yes       yes
 *   vu_ctx_run                 yes      idle     yes       yes
 *   vu_ctx_quit                yes      yes      yes       yes
 *   vu_ctx_set_busy_poll       yes      idle     yes       yes
 *   vu_ctx_poll                yes      idle     yes       yes
 *   vu_ctx_watch               yes      idle     yes       yes
 *   vu_ctx_unwatch             yes      idle     yes       yes
 *   vu_ctx_flush               yes      -EXDEV   yes       yes
 *   vu_watch_poll              yes      idle     yes       yes
 *   vu_server_new              yes      yes      yes       yes
 *   vu_server_start            yes      yes      -EDEADLK  yes
 *   vu_server_stop             yes      yes      -EDEADLK  yes
 *   vu_server_request_stop     yes      yes      yes       yes
 *   vu_server_is_stopped       yes      yes      yes       yes
 *   vu_server_free             yes      yes      -EDEADLK  yes
 *   vu_server_attach_ctx       yes      yes      yes       yes
 *   vu_server_detach_ctx       yes      -EBUSY   -EDEADLK  yes
 *   vu_server_request_detach   yes      yes      yes       yes
 *   vu_server_attach_vq_ctx    yes      yes      yes       yes
 *   vu_server_is_quiesced      yes      yes      yes       yes
 *   vu_server_has_inflight     yes      yes      yes       yes
 *   vu_server_inflight_inc     yes      yes      yes       yes
 *   vu_server_inflight_dec     yes      yes      yes       yes
 *   vu_server_set_config       yes      yes      yes       yes
 *   vu_server_get_config       yes      yes      yes       yes
 *   vu_server_features         yes      yes      yes       yes
 *   vu_server_vq               yes      yes      yes       yes
 *   vu_server_object_add       yes      yes      yes       yes
 *   vu_server_object_remove    yes      yes      yes       yes
 *   vu_server_object_lookup    yes      yes      yes       yes
 *   vu_server_shmem_map        yes      yes      yes       yes
 *   vu_server_shmem_unmap      yes      yes      yes       yes
 *   vu_server_host_notifier    yes      yes      yes       yes
 *   vu_server_get_stats        yes      yes      yes       yes
 *   vu_vq_get_stats            yes      yes      yes       yes
 *   vu_vq_pop                  yes      -EXDEV   yes       -EXDEV
 *   vu_vq_unpop                yes      -EXDEV   yes       -EXDEV
 *   vu_vq_stage                yes      yes      yes       yes
 *   vu_vq_flush                yes      -EXDEV   yes       -EXDEV
 *   vu_vq_index                yes      yes      yes       yes
 *   vu_vq_size                 yes      yes      yes       yes
 *   vu_vq_server               yes      yes      yes       yes
 *   vu_vq_enabled              yes      yes      yes       yes
 *   vu_vq_big_endian           yes      yes      yes       yes
 *   vu_vq_set_data             yes      yes      yes       yes
 *   vu_vq_data                 yes      yes      yes       yes
 *   vu_vq_inflight_inc         yes      yes      yes       yes
 *   vu_vq_inflight_dec         yes      yes      yes       yes
 *   vu_elem_complete           yes      yes      yes       yes
 *   vu_elem_suspend            yes      yes      yes       yes
 *   vu_elem_read               yes      yes      yes       yes
 *   vu_elem_write              yes      yes      yes       yes
 *   vu_elem_iov_slice          yes      yes      yes       yes
 *   vu_elem_mark_dirty         yes      yes      yes       yes
 *   vu_elem_vq                 yes      yes      yes       yes
 *   vu_error_code              yes      yes      yes       yes
 *   vu_error_message           yes      yes      yes       yes
 *   vu_error_free              yes      yes      yes       yes
 *   vu_version                 yes      yes      yes       yes
 *   vu_version_string          yes      yes      yes       yes
 *
 * "yes" is about where a function is called; what state the server is in may
 * still make it fail, see above. vu_server_detach_ctx() is 0 on any thread
 * while no context has anything of the server. vu_server_free() is legal
 * inside the callback `stopped`. vu_server_stop() is -EDEADLK inside callbacks
 * of other servers and of vu_ctx_watch(), too. That an object is not used
 * while or after another thread frees it, and that one thread at a time uses
 * an element, is up to the program. vu_server_config.log must not call the
 * library, vu_server_config.wake may only wake a loop. vu_ctx_quit() is the
 * one function for signal handlers.
 *
 *
 * Moving and detaching
 * --------------------
 * A queue belongs to one context at a time. vu_server_attach_vq_ctx() moves it,
 * vu_server_detach_ctx() and vu_server_request_detach() take everything out of
 * its contexts, vu_server_attach_ctx() puts it into one again; the front-end
 * notices nothing, requests in flight stay valid, no kick is lost. A drained
 * section begins with vu_server_request_detach(), then waits until
 * vu_server_is_quiesced() and not vu_server_has_inflight(), woken up by
 * vu_server_config.wake.
 *
 *
 * Requests
 * --------
 * What the front-end asks the library answers from data, but for what only the
 * device can compute: there it calls those functions of vu_device_ops that
 * return an answer, in the home context, and the front-end waits. A device may
 * also see messages before the library (vu_server_config.message_requests).
 * Requests to the front-end, vu_server_object_add() and its kin, are for any
 * thread and never wait; a vu_reply_fn hears what becomes of each, once, in the
 * home context.
 *
 *
 * Errors
 * ------
 * Functions return >= 0 or -errno; the global errno is not used. Set-up calls
 * also give a vu_error, if the caller wants one. What comes out through a
 * pointer is NULL after a failure. NULL for an object is -EINVAL, or what the
 * function says; the free functions accept it. Beside the listed ones, every
 * function may return -EIO (a fault inside of the library was caught; the
 * server can then only be stopped and freed) and functions of such a server
 * -ENOTRECOVERABLE.
 *
 * Structures that the program fills in begin with their size, which the INIT
 * macros set. They grow at their end only, so a program works with a newer
 * library, and with an older one as long as it uses nothing new: -E2BIG.
 *
 *
 * Example
 * -------
 * A device that sends back what it is sent:
 *
 * @code
 * static int on_kick(void *dev, vu_vq *vq)
 * {
 *     vu_elem *elem;
 *
 *     (void)dev;
 *     while (vu_vq_pop(vq, &elem, 1) > 0) {
 *         char buf[512];
 *         size_t n = vu_elem_read(elem, 0, buf, sizeof buf);
 *
 *         n = vu_elem_write(elem, 0, buf, n);
 *         vu_vq_stage(vq, elem, (uint32_t)n);
 *     }
 *     return 0;
 * }
 *
 * int serve(const char *path)
 * {
 *     const vu_device_ops ops = { VU_DEVICE_OPS_INIT, .kick = on_kick };
 *     vu_server_config config = VU_SERVER_CONFIG_INIT;
 *     vu_server *server = NULL;
 *     vu_ctx *ctx = NULL;
 *
 *     config.num_queues = 1;
 *     int rc = vu_ctx_new_epoll(&ctx, NULL);
 *     if (rc >= 0)
 *         rc = vu_server_new(&config, &ops, NULL, &server, NULL);
 *     if (rc >= 0)
 *         rc = vu_server_start(server, path, ctx, NULL);
 *     if (rc >= 0)
 *         rc = vu_ctx_run(ctx);
 *     vu_server_stop(server);
 *     vu_server_free(server);
 *     vu_ctx_free(ctx);
 *     return rc;
 * }
 * @endcode
 */

#ifndef VU_SERVER_H
#define VU_SERVER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The version of this header; vu_version() tells the one of the library. */
#define VU_SERVER_VERSION_MAJOR 0
#define VU_SERVER_VERSION_MINOR 1
#define VU_SERVER_VERSION_PATCH 0
#define VU_SERVER_VERSION_STRING "0.1.0"
/* 0xMMmmpp, to compare with. */
#define VU_SERVER_VERSION                                              \
    ((VU_SERVER_VERSION_MAJOR << 16) | (VU_SERVER_VERSION_MINOR << 8) | \
     VU_SERVER_VERSION_PATCH)

/*
 * Initialisers of the structures that begin with their size. The two for tables
 * of functions stand inside the braces, before the functions:
 *     static const vu_device_ops ops = { VU_DEVICE_OPS_INIT, .kick = kick };
 * In C++ before C++20, which cannot name members there:
 *     vu_device_ops ops = {};
 *     ops.struct_size = sizeof ops;
 *     ops.kick = kick;
 */
#define VU_CTX_OPS_INIT .struct_size = sizeof(vu_ctx_ops)
#define VU_DEVICE_OPS_INIT .struct_size = sizeof(vu_device_ops)
#ifdef __cplusplus
#define VU_INIT_(type)                  \
    ([]() -> type {                     \
        type init = type();             \
        init.struct_size = sizeof init; \
        return init;                    \
    }())
#else
#define VU_INIT_(type) { .struct_size = sizeof(type) }
#endif
#define VU_SERVER_CONFIG_INIT VU_INIT_(vu_server_config)
#define VU_SHMEM_MAPPING_INIT VU_INIT_(vu_shmem_mapping)
#define VU_SERVER_STATS_INIT VU_INIT_(vu_server_stats)
#define VU_VQ_STATS_INIT VU_INIT_(vu_vq_stats)

/* Before functions whose result must not be ignored. */
#ifndef VU_MUST_USE
#if defined(__GNUC__) || defined(__clang__)
#define VU_MUST_USE __attribute__((warn_unused_result))
#else
#define VU_MUST_USE
#endif
#endif


/**
 * Answer of vu_device_ops.message: the library goes on with the message as if
 * the device had not been asked.
 */
#define VU_MESSAGE_NOT_MINE 0

/**
 * Answer of vu_device_ops.message: done. The library acknowledges the message,
 * if the front-end wants that.
 */
#define VU_MESSAGE_HANDLED 1

/**
 * Answer of vu_device_ops.message: done, and the one reply is in the message.
 */
#define VU_MESSAGE_REPLY 2

/**
 * Answer of vu_device_ops.kick: call again after the loop has served others.
 */
#define VU_AGAIN 1

/**
 * Why a queue leaves its context: the front-end changes something (its kick
 * descriptor, for one); the queue comes back.
 */
#define VU_STOP_RECALL 1

/**
 * The front-end stops the ring (GET_VRING_BASE).
 */
#define VU_STOP_VRING_BASE 2

/**
 * The front-end disables the ring.
 */
#define VU_STOP_DISABLED 3

/**
 * The server, or the queue, is being detached from its context.
 */
#define VU_STOP_DETACH 4

/**
 * The queue moves to another context.
 */
#define VU_STOP_MOVE 5

/**
 * The device is being reset.
 */
#define VU_STOP_RESET 6

/**
 * The connection has ended.
 */
#define VU_STOP_DISCONNECT 7

/**
 * The server is being stopped.
 */
#define VU_STOP_SERVER 8

/**
 * The ring is broken.
 */
#define VU_STOP_BROKEN 9

/**
 * Log level, as in syslog(3): something is lost; a callback failed, a queue
 * was orphaned.
 */
#define VU_LOG_ERROR 3

/**
 * Log level: the peer or the guest misbehaves; a refused message, a broken
 * ring.
 */
#define VU_LOG_WARNING 4

/**
 * Log level: connections come and go.
 */
#define VU_LOG_INFO 6

/**
 * Log level: each message.
 */
#define VU_LOG_DEBUG 7

/**
 * vu_server_config.on_broken_ring: stop that ring, the others go on.
 */
#define VU_BROKEN_RING_STOP 0

/**
 * vu_server_config.on_broken_ring: end the connection.
 */
#define VU_BROKEN_RING_DISCONNECT 1

/**
 * vu_server_config.flags: also run queues that the front-end has not enabled,
 * as a network device does; vu_vq_enabled() tells them apart.
 */
#define VU_SERVER_RUN_DISABLED_QUEUES 1

/**
 * vu_server_config.flags: refuse guest memory whose file the front-end could
 * truncate (no F_SEAL_SHRINK). Without this, a front-end that truncates a
 * mapped file makes the next access to it a SIGBUS in this process, and so
 * does one that shares more huge pages than there are; such memory is refused,
 * too. (A front-end that punches holes into huge pages can still do that.)
 */
#define VU_SERVER_REQUIRE_SEALED_MEMORY 2

/**
 * vu_server_config.flags: offer front-ends no record of what is in flight.
 * Without this, what was popped and not completed when this process died is
 * popped a second time by the next one, if the front-end keeps that record
 * (vhost-user specification, "Inflight I/O tracking"). For a device whose
 * requests must never be done twice.
 */
#define VU_SERVER_NO_INFLIGHT_AREA 4

/**
 * vu_server_config.flags: the device calls vu_elem_suspend() for what is in
 * flight when a front-end that can take it over stops a ring
 * (VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT is offered).
 */
#define VU_SERVER_SUSPENDS 8

/**
 * vu_server_config.flags: offer in-band notifications, that is, messages in the
 * place of kick, call and err descriptors that the front-end does not give, as
 * simulations want it. Some front-ends (QEMU for one) accept every feature that
 * is offered and then do not know these messages.
 */
#define VU_SERVER_INBAND_NOTIFICATIONS 16

/**
 * vu_shmem_mapping.flags: the driver may write there, too.
 */
#define VU_SHMEM_WRITABLE 1

/**
 * A context: one event loop of the application. See "Threads" at the top of
 * this file for who owns it.
 */
typedef struct vu_ctx vu_ctx;

/**
 * Why a set-up call failed: an error number and a sentence that names the
 * field and the value. Made by functions with a `vu_error **` parameter, freed
 * with vu_error_free(). It belongs to no thread.
 */
typedef struct vu_error vu_error;

/**
 * A virtio device that front-ends can connect to.
 */
typedef struct vu_server vu_server;

/**
 * A virtqueue of a server; lives as long as the server. Get it from
 * vu_server_vq() or from a callback.
 */
typedef struct vu_vq vu_vq;

/**
 * What a watch calls when its descriptor is ready.
 *
 * For the watches that the library asks for, the loop calls it with the `data`
 * that it was given: on the loop's thread, as long as the descriptor is ready
 * (level-triggered). Calls without readiness are fine, and so is one that
 * comes after remove_watch(): `data` stays valid until vu_ctx_free().
 *
 * For vu_ctx_watch() it is the application's own function.
 *
 * @param revents what the descriptor is ready for, as from poll(2)
 */
typedef void (*vu_ctx_watch_fn)(void *data, uint32_t revents);

/**
 * An event loop, as the library drives it. Every function is called on the
 * thread that owns the context: inside a dispatch, or inside vu_server_stop(),
 * vu_server_detach_ctx(), vu_ctx_new() or vu_ctx_free() called there. None but
 * `poll` may call the library.
 *
 * A context needs one watch for its doorbell and one for the kick descriptor
 * of each started queue.
 */
typedef struct vu_ctx_ops {
    /**
     * sizeof(vu_ctx_ops), see VU_CTX_OPS_INIT.
     */
    size_t struct_size;
    /**
     * Required. Watches `fd`, or replaces its watch: `events` is the whole
     * mask, of poll(2)'s values (POLLIN ...). The descriptor is borrowed.
     * Returns 0 or -errno, which breaks the ring concerned and is passed to
     * its vu_device_ops.ring_broken.
     */
    int (*set_watch)(void *loop,
                     int fd,
                     uint32_t events,
                     vu_ctx_watch_fn fn,
                     void *data);
    /**
     * Required. Ends the watch of `fd`; always called before it is closed.
     */
    void (*remove_watch)(void *loop, int fd);
    /**
     * Optional. Runs one iteration of the loop, waiting up to `timeout_ms` for
     * the first event; 0 or -errno. With it, vu_server_stop() works on the
     * loop's thread.
     */
    int (*poll)(void *loop, int timeout_ms);
    /**
     * Optional. Called exactly once: inside vu_ctx_free(), or inside
     * vu_ctx_new() if that fails after it could read this structure.
     */
    void (*destroy)(void *loop);
} vu_ctx_ops;

/**
 * What a server is made from. All zero but struct_size and num_queues is a
 * fine configuration.
 */
typedef struct vu_server_config {
    /**
     * sizeof(vu_server_config), see VU_SERVER_CONFIG_INIT.
     */
    size_t struct_size;
    /**
     * The internal thread is called "vu-<name>", cut to 15 bytes, and log
     * lines are about it; UTF-8. NULL: "server".
     */
    const char *name;
    /**
     * VU_SERVER_* flags; an unknown one is -EINVAL.
     */
    uint64_t flags;
    /**
     * Virtio feature bits of the device class to offer (0 to 23 and 50 to 63).
     * The library adds those that it implements: VIRTIO_F_VERSION_1,
     * VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX.
     */
    uint64_t features;
    /**
     * Features of the library's that shall not be offered.
     */
    uint64_t features_masked;
    /**
     * Virtqueues: 1 to 1024.
     */
    uint32_t num_queues;
    /**
     * The largest ring accepted: a power of two, 32768 at most; 0: 32768.
     */
    uint32_t max_queue_size;
    /**
     * The configuration space at the start, copied; later it is changed with
     * vu_server_set_config().
     */
    const void *config_space;
    /**
     * Its bytes: 0 to 256.
     */
    uint32_t config_size;
    /**
     * config_size bytes, copied: the driver may write the bytes of the config
     * space that are not zero in here. NULL: none.
     */
    const void *config_writable;
    /**
     * Bytes of vu_elem.priv; 0: none.
     */
    uint32_t elem_priv_size;
    /**
     * How many elements vu_vq_stage() gathers before they are published: 1 to
     * 256; 0: 32.
     */
    uint32_t stage_max;
    /**
     * How long stop and disconnect wait for elements in flight before they cut
     * their queues off, in milliseconds; 0: 10000, UINT32_MAX: for ever.
     */
    uint32_t drain_timeout_ms;
    /**
     * One of VU_BROKEN_RING_*.
     */
    uint32_t on_broken_ring;
    /**
     * Log lines up to this level are delivered: VU_LOG_*, or any other level
     * of syslog(3); 0: none.
     */
    uint32_t log_level;
    /**
     * Gets log lines: NUL-terminated UTF-8 without a newline, valid during the
     * call. From any thread that runs code of the library's; must not call
     * the library. NULL: silent. Of VU_LOG_WARNING and VU_LOG_INFO, which a
     * peer can cause without end, 20 lines come in 5 s at most; the next one
     * says how many were left out.
     */
    void (*log)(void *log_opaque, int level, const char *message);
    /**
     * Passed to `log`.
     */
    void *log_opaque;
    /**
     * Called when the server becomes quiesced, has nothing in flight any more
     * or is stopped: something that a loop may wait for has changed. From any
     * thread, at any time; may only wake that loop. NULL: none.
     */
    void (*wake)(void *wake_opaque);
    /**
     * Passed to `wake`.
     */
    void *wake_opaque;
    /**
     * How long a request to the front-end (vu_server_object_add() and its kin)
     * waits for its answer, in milliseconds; 0: 5000, UINT32_MAX: for ever.
     */
    uint32_t reply_timeout_ms;
    /**
     * Shared memory regions of the device (virtio 1.3, 2.10): 0 to 256. Without
     * any the protocol feature SHMEM is not offered.
     */
    uint32_t num_shmem_regions;
    /**
     * Their sizes by their shared memory ID, copied: each a multiple of 4096, 0
     * for one that there is not. vu_server_shmem_map() fills them.
     */
    const uint64_t *shmem_sizes;
    /**
     * Requests of the front-end, by number, that vu_device_ops.message sees
     * before the library, copied.
     */
    const uint32_t *message_requests;
    /**
     * How many: 0 to 256.
     */
    uint32_t num_message_requests;
} vu_server_config;

/**
 * A crypto session that a device is asked to create; see
 * vu_device_ops.create_crypto_session. The library makes it, and later versions
 * may append fields. The numbers are those of the virtio specification (1.3,
 * 5.9); what does not belong to the kind of session is 0.
 */
typedef struct vu_crypto_session {
    /**
     * VIRTIO_CRYPTO_*_CREATE_SESSION. Of the service AKCIPHER: asymmetric.
     */
    uint64_t op_code;
    /**
     * Symmetric: the cipher. Asymmetric: the algorithm.
     */
    uint32_t algo;
    /**
     * Symmetric: the hash or MAC. Asymmetric: the hash.
     */
    uint32_t hash_algo;
    /**
     * Symmetric: bytes of a digest.
     */
    uint32_t digest_len;
    /**
     * Symmetric: bytes of additional authenticated data.
     */
    uint32_t aad_len;
    /**
     * Symmetric: VIRTIO_CRYPTO_SYM_OP_*.
     */
    uint32_t op_type;
    /**
     * Symmetric: VIRTIO_CRYPTO_OP_*.
     */
    uint32_t direction;
    /**
     * Symmetric: VIRTIO_CRYPTO_SYM_HASH_MODE_*.
     */
    uint32_t hash_mode;
    /**
     * Symmetric: VIRTIO_CRYPTO_SYM_ALG_CHAIN_ORDER_*.
     */
    uint32_t chain_order;
    /**
     * Asymmetric: VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_*.
     */
    uint32_t key_type;
    /**
     * Asymmetric: the padding.
     */
    uint32_t padding_algo;
    /**
     * Symmetric: the cipher's key. Asymmetric: the key.
     */
    const void *key;
    /**
     * Its bytes, no more than there were in the request.
     */
    size_t key_len;
    /**
     * Symmetric: the authentication key.
     */
    const void *auth_key;
    /**
     * Its bytes, no more than there were in the request.
     */
    size_t auth_key_len;
    /**
     * The request as it came: nothing in it has been checked but what is above.
     */
    const void *body;
    /**
     * Its bytes: 632 or 1072.
     */
    size_t body_size;
} vu_crypto_session;

/**
 * A message of the front-end as it came: the library has looked at its header
 * only. The library makes it, and later versions may append fields.
 */
typedef struct vu_message {
    /**
     * The request's number, any from 0 on.
     */
    uint32_t request;
    /**
     * 1: the front-end wants an acknowledgement, and REPLY_ACK is negotiated.
     */
    uint32_t need_reply;
    /**
     * The body.
     */
    const void *body;
    /**
     * Its bytes, up to 4096.
     */
    uint32_t body_size;
    /**
     * Descriptors that came with it, up to 32.
     */
    uint32_t num_fds;
    /**
     * The descriptors. One that the device takes it replaces with -1, and
     * closes itself; the others are the library's.
     */
    int *fds;
    /**
     * For VU_MESSAGE_REPLY: room for a body of 4096 bytes.
     */
    void *reply;
    /**
     * The bytes in there; 0 when the function is called.
     */
    uint32_t reply_size;
    /**
     * The descriptors in reply_fds; 0 when the function is called.
     */
    uint32_t num_reply_fds;
    /**
     * Room for 32 descriptors, which the library takes with VU_MESSAGE_REPLY,
     * and closes when they are sent.
     */
    int *reply_fds;
} vu_message;

/**
 * A virtio device.
 *
 * Every function but `kick` may be NULL. Each is called on the thread that
 * owns the context concerned, inside a dispatch of that context (or inside
 * vu_server_stop() or vu_server_detach_ctx() called by that thread): the
 * queue's context for kick, queue_started and queue_stopping, the server's
 * home context for the others. The ones of the home context come in order, and
 * before a queue is started all that precede it have been delivered. While the
 * server is detached none is called; they are delivered later, or dropped by a
 * stop.
 *
 * The functions after `destroy` answer requests of the front-end. One that is
 * NULL is not implemented: its protocol feature is not offered. They return 0
 * or -errno, which refuses the request: the front-end is told, or, where the
 * protocol has no way to tell it, the connection ends. While the server is
 * detached the front-end waits for its answer; a connection that ends
 * meanwhile takes the question with it. What they put out through a pointer
 * counts only if they return 0.
 *
 * A function must return: no longjmp() and no C++ exception may pass through
 * the library.
 */
typedef struct vu_device_ops {
    /**
     * sizeof(vu_device_ops), see VU_DEVICE_OPS_INIT.
     */
    size_t struct_size;
    /**
     * Required. There may be elements to pop; guest notifications are off
     * meanwhile. Returns 0 when everything that the device wants to look at
     * has been looked at (it is called again when the driver makes more
     * available), or VU_AGAIN.
     */
    int (*kick)(void *dev, struct vu_vq *vq);
    /**
     * The queue has arrived in this context and can be popped.
     */
    void (*queue_started)(void *dev, struct vu_vq *vq);
    /**
     * The queue is about to leave this context, for one of VU_STOP_*. Complete
     * or unpop the elements that are merely held (the receive buffers of a
     * network device); requests that are being worked on may be completed
     * later, from any thread. vu_vq_pop() answers -ESHUTDOWN by now.
     */
    void (*queue_stopping)(void *dev, struct vu_vq *vq, uint32_t reason);
    /**
     * Nothing of this queue is in flight any more.
     */
    void (*queue_stopped)(void *dev, uint32_t index);
    /**
     * A front-end has connected.
     */
    void (*connected)(void *dev);
    /**
     * The connection has ended and everything of it is gone. `error` is 0 if
     * the peer closed it between two messages or the server was stopped, else
     * -errno; `reason` says it in words, valid during the call.
     */
    void (*disconnected)(void *dev, int error, const char *reason);
    /**
     * The features that the driver has accepted, and the front-end's protocol
     * features.
     */
    void (*features_acked)(void *dev,
                           uint64_t features,
                           uint64_t protocol_features);
    /**
     * The driver wrote these bytes of the config space (merged over writes
     * that were not delivered yet); read them with vu_server_get_config().
     */
    void (*config_written)(void *dev, uint32_t offset, uint32_t size);
    /**
     * The driver or the front-end reset the device; all its queues are stopped.
     */
    void (*reset)(void *dev);
    /**
     * This ring is broken and stopped, the others go on: -errno, and `reason`
     * in words, valid during the call.
     */
    void (*ring_broken)(void *dev,
                        uint32_t index,
                        int error,
                        const char *reason);
    /**
     * The drain time-out expired with elements of this queue in flight. Its
     * memory stays until the last of them is completed; the device is served
     * by a new queue with this index.
     */
    void (*orphaned)(void *dev, uint32_t index);
    /**
     * The stop that vu_server_request_stop() began is complete; not called if
     * vu_server_stop() began it. vu_server_free() is legal in here.
     */
    void (*stopped)(void *dev);
    /**
     * Called exactly once: inside vu_server_free(), or inside vu_server_new()
     * if that fails after it could read this structure. Nothing of the device
     * is called after it.
     */
    void (*destroy)(void *dev);
    /**
     * Broadcast a fake RARP for the guest with this MAC address, so that the
     * network learns where it is after a migration (SEND_RARP). Returns 0 or
     * -errno, of which a front-end that does not wait learns nothing.
     */
    int (*send_rarp)(void *dev, const uint8_t *mac);
    /**
     * The host's MTU, 68 to 65535, which the driver sees (NET_SET_MTU).
     * Returns 0, or -errno if it does not suit the device.
     */
    int (*net_set_mtu)(void *dev, uint32_t mtu);
    /**
     * The dma-buf of an object that this device has exported, by its UUID of
     * 16 bytes in network byte order (GET_SHARED_OBJECT). Returns 0, with a
     * descriptor in `fd` that the library takes and closes, or -errno if there
     * is no such object.
     */
    int (*shared_object)(void *dev, const uint8_t *uuid, int *fd);
    /**
     * Create a session of a crypto device (CREATE_CRYPTO_SESSION; virtio 1.3,
     * 5.9.7.2); needs close_crypto_session. `session` is valid during the call.
     * Returns 0 with the session's ID in `id`, up to 63 bits, or -errno. All
     * sessions of a connection end with it.
     */
    int (*create_crypto_session)(void *dev,
                                 const struct vu_crypto_session *session,
                                 uint64_t *id);
    /**
     * End a session (CLOSE_CRYPTO_SESSION); needs create_crypto_session.
     * Returns 0, or -errno if there is no such session.
     */
    int (*close_crypto_session)(void *dev, uint64_t id);
    /**
     * The socket on which a GPU device talks to its display (GPU_SET_SOCKET;
     * QEMU's vhost-user-gpu specification says what about). Returns 0, and then
     * the descriptor is the device's to close, or -errno.
     */
    int (*gpu_set_socket)(void *dev, int fd);
    /**
     * Not a question: the driver's device status, as the front-end passes it on
     * (SET_STATUS; virtio 1.3, 2.1). Of several that were not delivered yet,
     * the last one. Zero comes after `reset`, which acts on it.
     */
    void (*status_set)(void *dev, uint8_t status);
    /**
     * A message that the device wants to see before the library, one of
     * vu_server_config.message_requests. The library has checked nothing but
     * its header: not whether its feature is negotiated, nor its size.
     * `message` is valid during the call. Returns one of VU_MESSAGE_*, or
     * -errno, which refuses the message as the library would. The front-end
     * gets exactly one reply where one is due, whatever the answer; a request
     * that the specification gives a reply of its own must get one from a
     * device that takes it. What the library is not shown it does not know: a
     * device that takes a message away from it, about memory or rings for one,
     * answers for what follows.
     */
    int (*message)(void *dev, struct vu_message *message);
    /**
     * Fills `buffer` with the device's state from byte `offset` of it on, for
     * another host to load (SET_DEVICE_STATE_FD; "Migrating back-end state" in
     * the vhost-user specification). Returns how many bytes, up to `size`; 0
     * at the end; or -errno, which fails the transfer. All rings are stopped.
     * Pieces are asked for in order, each once, and 0 begins anew; a transfer
     * that is given up just ends. Needs load_state. A device with the two has
     * no status (SET_STATUS is not offered): QEMU resets a device that has one
     * when the guest stops, before it asks for the state.
     */
    int64_t (*save_state)(void *dev,
                          uint64_t offset,
                          void *buffer,
                          size_t size);
    /**
     * Takes over a state that save_state gave on another host: `size` bytes
     * from `offset` on, in pieces of any size. Size 0 is the end, where the
     * device says whether the state is complete and good. Returns 0 or -errno.
     */
    int (*load_state)(void *dev,
                      uint64_t offset,
                      const void *bytes,
                      size_t size);
} vu_device_ops;

/**
 * Hears what has become of a request to the front-end; see
 * vu_server_object_add(). Called exactly once, in the home context, in order
 * with the device's other callbacks, or at the latest inside vu_server_free().
 *
 * @param error 0; -EREMOTEIO: the front-end refuses; -ETIMEDOUT: it has not
 *        answered within vu_server_config.reply_timeout_ms; -ECANCELED:
 *        disconnect, stop, or the front-end has closed or broken its channel
 * @param fd what was asked for, from here on the program's to close; -1 after
 *        an error, and where no descriptor is asked for
 */
typedef void (*vu_reply_fn)(void *opaque, int error, int fd);

/**
 * A part of a shared memory region of the device's, and the part of a file that
 * is to be seen there; see vu_server_shmem_map().
 */
typedef struct vu_shmem_mapping {
    /**
     * sizeof(vu_shmem_mapping), see VU_SHMEM_MAPPING_INIT.
     */
    size_t struct_size;
    /**
     * The region's shared memory ID: its place in
     * vu_server_config.shmem_sizes.
     */
    uint32_t region;
    /**
     * VU_SHMEM_*; an unknown one is -EINVAL.
     */
    uint32_t flags;
    /**
     * Where in the region, in bytes.
     */
    uint64_t offset;
    /**
     * How many bytes.
     */
    uint64_t len;
    /**
     * Where in the file, in bytes.
     */
    uint64_t fd_offset;
} vu_shmem_mapping;

/**
 * What a server has done since it was made. Counters only grow, but for
 * memory_regions.
 */
typedef struct vu_server_stats {
    /**
     * sizeof(vu_server_stats), see VU_SERVER_STATS_INIT.
     */
    size_t struct_size;
    /**
     * Front-ends served.
     */
    uint64_t connections;
    /**
     * Messages received.
     */
    uint64_t messages;
    /**
     * Messages refused; the connection lived on.
     */
    uint64_t refusals;
    /**
     * Connections ended because of what the peer sent.
     */
    uint64_t protocol_errors;
    /**
     * Rings that broke.
     */
    uint64_t broken_rings;
    /**
     * Queues cut off by a drain time-out.
     */
    uint64_t orphaned_queues;
    /**
     * Configuration changes that the front-end was told of.
     */
    uint64_t config_changes;
    /**
     * Guest memory regions mapped now.
     */
    uint64_t memory_regions;
    /**
     * Messages received, by request id; ids from 64 on are only counted in
     * `messages`.
     */
    uint64_t messages_by_type[64];
    /**
     * Guest pages written to while the front-end wanted to know, for which its
     * dirty log has no bit.
     */
    uint64_t unlogged_pages;
    /**
     * Requests sent to the front-end on the back-end channel.
     */
    uint64_t backend_requests;
    /**
     * Of the requests to the front-end that somebody waited for, those that
     * were refused, not answered in time, or cancelled.
     */
    uint64_t backend_failures;
} vu_server_stats;

/**
 * What a queue has done since its server was made. Counters only grow, but for
 * inflight.
 */
typedef struct vu_vq_stats {
    /**
     * sizeof(vu_vq_stats), see VU_VQ_STATS_INIT.
     */
    size_t struct_size;
    /**
     * Elements popped and not put back.
     */
    uint64_t pops;
    /**
     * Elements completed and published.
     */
    uint64_t completions;
    /**
     * Device-readable bytes of the completed elements.
     */
    uint64_t bytes_out;
    /**
     * Bytes written, as told at completion.
     */
    uint64_t bytes_in;
    /**
     * Calls of vu_device_ops.kick.
     */
    uint64_t kicks;
    /**
     * Notifications sent to the driver.
     */
    uint64_t notifications;
    /**
     * Publications after which the driver did not want one.
     */
    uint64_t notifications_suppressed;
    /**
     * Elements popped and not completed now.
     */
    uint64_t inflight;
    /**
     * Elements that a Rust device dropped; always 0 for a device in C.
     */
    uint64_t dropped;
    /**
     * How often the ring broke.
     */
    uint64_t breaks;
    /**
     * Elements that vu_elem_suspend() left in flight.
     */
    uint64_t suspended;
} vu_vq_stats;

/**
 * One request: a chain of buffers in guest memory.
 *
 * Allocated by the library, read-only to the application, valid from
 * vu_vq_pop() until it is completed. Never copied or put into arrays by value:
 * later versions append fields.
 *
 * The guest can change the bytes behind the iovecs at any time: read each byte
 * once, check the copy. The addresses stay valid until the element is
 * completed, whatever happens to the queue, the connection or the server.
 */
typedef struct vu_elem {
    /**
     * Device-readable buffers: from the guest to the device.
     */
    const struct iovec *out;
    /**
     * How many of them.
     */
    uint32_t out_num;
    /**
     * Device-writable buffers: from the device to the guest.
     */
    const struct iovec *in;
    /**
     * How many of them.
     */
    uint32_t in_num;
    /**
     * Bytes in `out`.
     */
    uint32_t out_len;
    /**
     * Bytes in `in`.
     */
    uint32_t in_len;
    /**
     * vu_server_config.elem_priv_size bytes for the application, 16-aligned,
     * zeroed when first allocated and then left as the previous request left
     * them; NULL if that size is 0.
     */
    void *priv;
} vu_elem;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Wraps a loop of the application's. On the loop's thread, which becomes the
 * owner, or while the loop is not running.
 *
 * @param ops copied
 * @param loop passed to every function of `ops`
 * @return 0; -EINVAL (a required function is NULL), -E2BIG (`ops` uses what
 *         this version does not know), -EMFILE, or what set_watch() answered
 * @since 0.1
 */
VU_MUST_USE
int vu_ctx_new(const struct vu_ctx_ops *ops,
               void *loop,
               struct vu_ctx **ctx,
               struct vu_error **err);

/**
 * Makes a context with a loop of its own, over epoll(7): run it with
 * vu_ctx_run() or vu_ctx_dispatch(), or watch vu_ctx_fd() in another loop. The
 * calling thread becomes the owner.
 *
 * @return 0; -EMFILE, -ENFILE, -ENOMEM, -EINVAL for NULL
 * @since 0.1
 */
VU_MUST_USE
int vu_ctx_new_epoll(struct vu_ctx **ctx,
                     struct vu_error **err);

/**
 * Makes a context without any descriptors, for a thread that polls all the
 * time with vu_ctx_poll(); guest notifications stay off. The calling thread
 * becomes the owner.
 *
 * @return 0; -EMFILE, -ENOMEM, -EINVAL for NULL
 * @since 0.1
 */
VU_MUST_USE int vu_ctx_new_polled(struct vu_ctx **ctx, struct vu_error **err);

/**
 * Frees a context; NULL is fine. On the loop's thread, or while the loop is
 * not running. Removes the watches that are left and calls
 * vu_ctx_ops.destroy.
 *
 * @return 0; -EBUSY while a server or one of its queues is attached, and
 *         during a dispatch: then nothing has happened
 * @since 0.1
 */
int vu_ctx_free(struct vu_ctx *ctx);

/**
 * Makes the calling thread the owner, for a loop whose thread is gone or not
 * running.
 *
 * @return 0; -EBUSY during a dispatch on another thread, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_adopt(struct vu_ctx *ctx);

/**
 * The pollable descriptor of an epoll context: readable (POLLIN) when
 * vu_ctx_dispatch() has something to do. Borrowed, valid until vu_ctx_free().
 *
 * @return the descriptor; -ENOTSUP for other contexts, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_fd(const struct vu_ctx *ctx);

/**
 * Runs one round of an epoll context; the calling thread becomes the owner.
 * May be nested inside a callback.
 *
 * @param timeout_ms how long to wait for something to do; -1: for ever, 0: not
 *        at all
 * @return how many descriptors were ready, 0 also if what was done needed none;
 *         -EBUSY while another thread dispatches, -ENOTSUP for other contexts,
 *         -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_dispatch(struct vu_ctx *ctx,
                    int timeout_ms);

/**
 * Dispatches an epoll context until vu_ctx_quit(); the calling thread becomes
 * the owner.
 *
 * @return 0; as vu_ctx_dispatch()
 * @since 0.1
 */
int vu_ctx_run(struct vu_ctx *ctx);

/**
 * Ends the running vu_ctx_run(), or else the next one, at once. Any thread and
 * any signal handler.
 *
 * @since 0.1
 */
void vu_ctx_quit(struct vu_ctx *ctx);

/**
 * Lets an epoll context look at its rings for a while before it sleeps, with
 * guest notifications off meanwhile. The time adapts to what pays. Owner.
 *
 * @param max_ns the longest time, in nanoseconds; 0 turns it off
 * @return 0; -ENOTSUP for other contexts, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_set_busy_poll(struct vu_ctx *ctx, uint64_t max_ns);

/**
 * Runs one round of a polled context; the calling thread becomes the owner.
 *
 * @return how many queues had work; -EBUSY while another thread polls,
 *         -ENOTSUP for other contexts, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_poll(struct vu_ctx *ctx);

/**
 * Watches a descriptor of the application's in an epoll context, or replaces
 * its watch. Owner, or while the context is not dispatched.
 *
 * @param fd borrowed; must be unwatched before it is closed
 * @param events the whole mask, of poll(2)'s values (POLLIN ...);
 *        level-triggered
 * @param fn called on the owner's thread, in a dispatch: inside it
 *        vu_server_stop() is -EDEADLK and vu_ctx_free() of this context -EBUSY
 * @return 0; -ENOTSUP for other contexts, -EBADF or -EPERM if `fd` is not open
 *         or cannot be watched, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_watch(struct vu_ctx *ctx,
                 int fd,
                 uint32_t events,
                 vu_ctx_watch_fn fn,
                 void *data);

/**
 * Ends a watch that vu_ctx_watch() began. Owner, or while the context is not
 * dispatched; also inside the watch's own function.
 *
 * @return 0; -ENOENT if there is none, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_unwatch(struct vu_ctx *ctx, int fd);

/**
 * Publishes what is staged in the queues of this context; see vu_vq_stage().
 * Owner.
 *
 * @return 0; -EXDEV: the calling thread is not the owner, -EINVAL for NULL
 * @since 0.1
 */
int vu_ctx_flush(struct vu_ctx *ctx);

/**
 * For loops that poll by themselves before they sleep: is there work behind
 * this watch? Does not block. Owner.
 *
 * @param data what set_watch() was given
 * @return 1 or 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_watch_poll(void *data);

/**
 * Makes a server; it does nothing before vu_server_start().
 *
 * @param config copied, with all that it points to
 * @param ops copied
 * @param dev passed to every function of `ops`. ops->destroy is called exactly
 *        once for it, inside this function if it fails (unless `ops` is NULL
 *        or its struct_size is refused), else inside vu_server_free().
 * @return 0; -EINVAL with the field named in `err`, -E2BIG (a structure uses
 *         what this version does not know), -EMFILE, -ENFILE
 * @since 0.1
 */
VU_MUST_USE
int vu_server_new(const struct vu_server_config *config,
                  const struct vu_device_ops *ops,
                  void *dev,
                  struct vu_server **server,
                  struct vu_error **err);

/**
 * Starts serving. Legal while new, and again after a stop.
 *
 * @param address one of:
 *        "unix:PATH" or "PATH": listen there; a socket file that nobody
 *        listens on is replaced, and removed at stop.
 *        "unix-connect:PATH": connect to a front-end that listens there, again
 *        and again.
 *        "fd:N": an inherited UNIX stream socket, which may listen or be
 *        connected; takes ownership on success.
 * @param ctx the home context: where the device and its queues are served.
 *        NULL: detached, until vu_server_attach_ctx().
 * @return 0; -EINVAL, -ENAMETOOLONG or -ENOTSOCK for an address that is none,
 *         -EADDRINUSE if somebody listens there, -EBUSY unless new or stopped,
 *         -EDEADLK inside a callback of the same server, -ENOTRECOVERABLE,
 *         -EMFILE, -EAGAIN, and whatever else the system says about the
 *         socket
 * @since 0.1
 */
VU_MUST_USE
int vu_server_start(struct vu_server *server,
                    const char *address,
                    struct vu_ctx *ctx,
                    struct vu_error **err);

/**
 * Stops, and returns when everything is down: queues handed back, elements in
 * flight drained (or cut off by the drain time-out), guest memory unmapped,
 * the socket closed and its file removed. A second call on another thread
 * joins the first; a new or stopped server is fine.
 *
 * Meanwhile it serves every context that the calling thread owns, so that
 * vu_ctx_run() followed by vu_server_stop() on one thread just works.
 *
 * @return 0; -EDEADLK, with nothing changed, inside any callback, and on a
 *         thread that owns a context of the server's which is a foreign loop
 *         without `poll`: vu_server_request_stop() is for those places.
 *         -EINVAL for NULL
 * @since 0.1
 */
int vu_server_stop(struct vu_server *server);

/**
 * Begins to stop and returns at once. vu_device_ops.stopped tells when it is
 * done, unless a vu_server_stop() was there first; while detached,
 * vu_server_config.wake does. Any thread, any callback.
 *
 * @return 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_server_request_stop(struct vu_server *server);

/**
 * Whether the server is new or stopped. Any thread.
 *
 * @return 1 or 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_server_is_stopped(const struct vu_server *server);

/**
 * Frees a server that is new or stopped; NULL is fine. Calls
 * vu_device_ops.destroy. Legal inside vu_device_ops.stopped; while another
 * thread is in there, it waits for that to return.
 *
 * Afterwards nothing of the server may be used, except that elements of an
 * orphaned queue may be completed, and vu_vq_inflight_dec() and
 * vu_server_inflight_dec() be called as often as is still owed.
 *
 * @return 0; -EBUSY unless new or stopped, and while a vu_server_stop() is
 *         going on, -EDEADLK inside another callback of the same server: then
 *         nothing has happened
 * @since 0.1
 */
int vu_server_free(struct vu_server *server);

/**
 * Attaches a detached server: offers the device and all of its queues to
 * `ctx`, and cancels a detach that is under way. Any thread; what the context
 * is offered it takes at its next dispatch.
 *
 * @return 0; -EBUSY while attached, -ESHUTDOWN unless running,
 *         -ENOTRECOVERABLE, -EINVAL for NULL
 * @since 0.1
 */
int vu_server_attach_ctx(struct vu_server *server, struct vu_ctx *ctx);

/**
 * Takes the device and all of its queues out of their contexts. After it no
 * callback runs and no watch of the server exists; the connection stays,
 * elements in flight stay valid and may be completed from anywhere.
 *
 * @return 0; -EBUSY, with nothing changed, unless the calling thread owns
 *         every context that has anything of the server, -EDEADLK inside a
 *         callback of the same server, -ESHUTDOWN unless running, -EINVAL for
 *         NULL
 * @since 0.1
 */
int vu_server_detach_ctx(struct vu_server *server);

/**
 * As vu_server_detach_ctx(), without waiting: each context gives up what it
 * has at its next dispatch. vu_server_is_quiesced() and vu_server_config.wake
 * tell when that is done. Any thread, any callback.
 *
 * @return 0; -ESHUTDOWN unless running, -EINVAL for NULL
 * @since 0.1
 */
int vu_server_request_detach(struct vu_server *server);

/**
 * Moves one queue to another context. Any thread, any callback; takes effect
 * at the next dispatch of the context that has the queue, and after the
 * queue's own `kick` if that is running. The last call wins. Kicks that come
 * in between are not lost.
 *
 * @param ctx NULL: the queue is detached
 * @return 0; -EINVAL if there is no such queue or for NULL, -ESHUTDOWN unless
 *         running, -ENOTRECOVERABLE
 * @since 0.1
 */
int vu_server_attach_vq_ctx(struct vu_server *server,
                            uint32_t index,
                            struct vu_ctx *ctx);

/**
 * Whether no context has or is offered anything of the server. Any thread.
 *
 * @return 1 or 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_server_is_quiesced(const struct vu_server *server);

/**
 * Whether elements or explicit counts are in flight. Any thread; exact once
 * the server is quiesced.
 *
 * @return 1 or 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_server_has_inflight(const struct vu_server *server);

/**
 * Counts work of the whole device that the library cannot see: the connection
 * is not drained before vu_server_inflight_dec(). Any thread.
 *
 * @return 0; -ESHUTDOWN: it has been drained already, -EINVAL for NULL
 * @since 0.1
 */
int vu_server_inflight_inc(struct vu_server *server);

/**
 * Ends what vu_server_inflight_inc() began. Any thread; legal after
 * vu_server_free() if the drain timed out.
 *
 * @return 0; -EINVAL without an increment or for NULL
 * @since 0.1
 */
int vu_server_inflight_dec(struct vu_server *server);

/**
 * Changes the configuration space and tells the guest. Any thread.
 *
 * @return 0; -EINVAL for bytes outside of it, for none, or for NULL
 * @since 0.1
 */
int vu_server_set_config(struct vu_server *server,
                         uint32_t offset,
                         const void *data,
                         uint32_t size);

/**
 * Reads the configuration space, with what the driver has written. Any thread.
 *
 * @return 0; -EINVAL for bytes outside of it, for none, or for NULL
 * @since 0.1
 */
int vu_server_get_config(const struct vu_server *server,
                         uint32_t offset,
                         void *data,
                         uint32_t size);

/**
 * The virtio features that the driver has accepted. Any thread.
 *
 * @return 0 without a connection, before the driver has, and for NULL
 * @since 0.1
 */
uint64_t vu_server_features(const struct vu_server *server);

/**
 * A queue of the device. Any thread. The pointer stays valid until
 * vu_server_free(); after vu_device_ops.orphaned there is another one for the
 * same index.
 *
 * @return NULL if there is no such queue, and for NULL
 * @since 0.1
 */
struct vu_vq *vu_server_vq(const struct vu_server *server, uint32_t index);

/**
 * Makes an object of this device's known to the other devices of the virtual
 * machine (SHARED_OBJECT_ADD). Who looks it up is referred to
 * vu_device_ops.shared_object.
 *
 * As for every request to the front-end: any thread, any callback; it does not
 * wait. If it returns 0, `done` is called once, with the front-end's answer if
 * REPLY_ACK is negotiated, else as soon as the request is on its way.
 *
 * @param uuid 16 bytes in network byte order
 * @param done NULL: nobody hears of it
 * @return 0; -ENOTCONN without a front-end that listens, -EOPNOTSUPP without
 *         the protocol feature, -EAGAIN when too many requests wait (64 for
 *         their answers, 256 to be sent), -EINVAL for NULL, -ENOTRECOVERABLE
 * @since 0.1
 */
int vu_server_object_add(struct vu_server *server,
                         const uint8_t *uuid,
                         vu_reply_fn done,
                         void *opaque);

/**
 * Withdraws what vu_server_object_add() made known (SHARED_OBJECT_REMOVE).
 *
 * @param uuid 16 bytes in network byte order
 * @param done NULL: nobody hears of it
 * @return as vu_server_object_add()
 * @since 0.1
 */
int vu_server_object_remove(struct vu_server *server,
                            const uint8_t *uuid,
                            vu_reply_fn done,
                            void *opaque);

/**
 * Asks for the dma-buf of an object of any device (SHARED_OBJECT_LOOKUP), which
 * `done` gets. It is answered with or without REPLY_ACK; -EREMOTEIO if there is
 * no such object.
 *
 * @param uuid 16 bytes in network byte order
 * @param done required
 * @return as vu_server_object_add()
 * @since 0.1
 */
int vu_server_object_lookup(struct vu_server *server,
                            const uint8_t *uuid,
                            vu_reply_fn done,
                            void *opaque);

/**
 * Shows a part of a file in a shared memory region of the device's (SHMEM_MAP;
 * virtio 1.3, 2.10). The area must be free, and page-aligned as the front-end
 * sees it.
 *
 * @param fd borrowed; the caller may close it after the return
 * @param done NULL: nobody hears of it
 * @return as vu_server_object_add(); -EINVAL for an area outside of its region,
 *         -EBADF, -EMFILE
 * @since 0.1
 */
int vu_server_shmem_map(struct vu_server *server,
                        const struct vu_shmem_mapping *mapping,
                        int fd,
                        vu_reply_fn done,
                        void *opaque);

/**
 * Ends what vu_server_shmem_map() began (SHMEM_UNMAP).
 *
 * @param mapping region, offset and len are those of a whole mapping
 * @param done NULL: nobody hears of it
 * @return as vu_server_object_add(); -EINVAL for an area outside of its region
 * @since 0.1
 */
int vu_server_shmem_unmap(struct vu_server *server,
                          const struct vu_shmem_mapping *mapping,
                          vu_reply_fn done,
                          void *opaque);

/**
 * Lets the driver ring a queue's doorbell in a file that the front-end maps for
 * it, a page of hardware for one, in place of the kick descriptor
 * (VRING_HOST_NOTIFIER_MSG).
 *
 * @param index the queue, up to 255
 * @param fd borrowed; the caller may close it after the return. -1: the
 *        doorbell is withdrawn
 * @param offset where in the file, in bytes
 * @param size how many bytes, the host's page size for QEMU
 * @param done NULL: nobody hears of it
 * @return as vu_server_object_add(); -EINVAL if there is no such queue, -EBADF,
 *         -EMFILE
 * @since 0.1
 */
int vu_server_host_notifier(struct vu_server *server,
                            uint32_t index,
                            int fd,
                            uint64_t offset,
                            uint64_t size,
                            vu_reply_fn done,
                            void *opaque);

/**
 * Statistics of a server. Any thread.
 *
 * @param stats its struct_size says how much the caller knows; that much is
 *        filled in
 * @return 0; -EINVAL for NULL or a struct_size that is none, -E2BIG for one
 *         over 4096
 * @since 0.1
 */
int vu_server_get_stats(const struct vu_server *server,
                        struct vu_server_stats *stats);

/**
 * Statistics of a queue. Any thread; numbers that the owner is just changing
 * may be a moment old.
 *
 * @param stats its struct_size says how much the caller knows; that much is
 *        filled in
 * @return 0; -EINVAL for NULL or a struct_size that is none, -E2BIG for one
 *         over 4096
 * @since 0.1
 */
int vu_vq_get_stats(const struct vu_vq *vq, struct vu_vq_stats *stats);

/**
 * Takes up to `max` elements that the driver has made available. Owner, inside
 * a dispatch or between two; also outside of `kick`.
 *
 * 0 means that the ring is empty now, and publishes what is staged. Each
 * element must be completed exactly once, or put back with vu_vq_unpop().
 *
 * @param elems where to put them
 * @return how many there are; -EBADMSG: the ring is broken, -ESHUTDOWN: the
 *         queue is leaving its context, -EXDEV: the calling thread is not the
 *         owner (a queue that is not started has none), -EINVAL for NULL
 * @since 0.1
 */
VU_MUST_USE
int vu_vq_pop(struct vu_vq *vq,
              struct vu_elem **elems,
              size_t max);

/**
 * Puts back the `n` newest elements that were popped and not completed; the
 * next pop returns them again. Owner.
 *
 * @param elems in the order in which they were popped
 * @return 0; -EINVAL if they are not the newest ones of this queue (nothing is
 *         put back), -ESHUTDOWN: the queue is not started, -EXDEV: the calling
 *         thread is not the owner
 * @since 0.1
 */
int vu_vq_unpop(struct vu_vq *vq,
                struct vu_elem **elems,
                size_t n);

/**
 * Completes an element as vu_elem_complete() does, but leaves publishing it to
 * a batch: by vu_vq_flush() or vu_ctx_flush(), when
 * vu_server_config.stage_max elements are staged, when vu_vq_pop() finds the
 * ring empty, or at the end of the running dispatch, or of the next one. The
 * element must not be used afterwards.
 *
 * Meant for the thread that owns the queue; elsewhere, and for an element that
 * was popped before the queue moved, it is vu_elem_complete().
 *
 * @param written how many bytes the device wrote, from the first
 *        device-writable byte on
 * @return 0; -EINVAL if `written` exceeds in_len (the element stays live), the
 *         element is completed already or of another queue, or for NULL
 * @since 0.1
 */
int vu_vq_stage(struct vu_vq *vq,
                struct vu_elem *elem,
                uint32_t written);

/**
 * Publishes what is staged: one write of the used index, at most one of the
 * call eventfd. Owner.
 *
 * @return 0; -EXDEV: the calling thread is not the owner, -EINVAL for NULL
 * @since 0.1
 */
int vu_vq_flush(struct vu_vq *vq);

/**
 * The queue's number in the device, from 0.
 *
 * @return UINT32_MAX for NULL
 * @since 0.1
 */
uint32_t vu_vq_index(const struct vu_vq *vq);

/**
 * How many descriptors the ring has.
 *
 * @return 0 while the front-end has not set the ring up, and for NULL
 * @since 0.1
 */
uint32_t vu_vq_size(const struct vu_vq *vq);

/**
 * The server that the queue belongs to.
 *
 * @return NULL for NULL, and when the server is freed
 * @since 0.1
 */
struct vu_server *vu_vq_server(const struct vu_vq *vq);

/**
 * Whether the front-end has enabled the queue. Only a device with
 * VU_SERVER_RUN_DISABLED_QUEUES ever sees one that is not.
 *
 * @return 1 or 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_vq_enabled(const struct vu_vq *vq);

/**
 * Whether the guest is a legacy one and big-endian: so are the device's own
 * structures in the elements then. Those of a modern device are always
 * little-endian (virtio 1.3, 2.6.1.1). Any thread.
 *
 * @return 1 or 0; -EINVAL for NULL
 * @since 0.1
 */
int vu_vq_big_endian(const struct vu_vq *vq);

/**
 * Stores a pointer of the application's in the queue. Any thread.
 *
 * @since 0.1
 */
void vu_vq_set_data(struct vu_vq *vq, void *data);

/**
 * What vu_vq_set_data() stored.
 *
 * @return NULL if nothing was, and for NULL
 * @since 0.1
 */
void *vu_vq_data(const struct vu_vq *vq);

/**
 * Counts work on this queue's memory that the library cannot see: the queue is
 * not drained before vu_vq_inflight_dec(). Any thread.
 *
 * @return 0; -ESHUTDOWN: it has been drained already, -EINVAL for NULL
 * @since 0.1
 */
int vu_vq_inflight_inc(struct vu_vq *vq);

/**
 * Ends what vu_vq_inflight_inc() began. Any thread; legal after
 * vu_server_free() if the queue was orphaned.
 *
 * @return 0; -EINVAL without an increment or for NULL
 * @since 0.1
 */
int vu_vq_inflight_dec(struct vu_vq *vq);

/**
 * Gives an element back to the driver. Any thread.
 *
 * Published at once, with at most one write to the call eventfd; on the thread
 * that owns the queue while its `kick` runs, with the rest of that kick. The
 * element must not be used afterwards. After a disconnect, a stop or a drain
 * time-out the call is as legal as ever and just frees the element.
 *
 * @param written how many bytes the device wrote, from the first
 *        device-writable byte on
 * @return 0; -EINVAL if `written` exceeds in_len (the element stays live), or
 *         the element is NULL or completed already
 * @since 0.1
 */
int vu_elem_complete(struct vu_elem *elem,
                     uint32_t written);

/**
 * Lets go of an element without completing it: it stays in flight, and whoever
 * starts the ring next does it. Any thread. For a device that set
 * VU_SERVER_SUSPENDS, while the front-end stops the ring: from
 * vu_device_ops.queue_stopping with VU_STOP_VRING_BASE until queue_stopped.
 * Nothing of the request may be going on any more (vhost-user specification,
 * VHOST_USER_GET_VRING_BASE).
 *
 * @return 0: the element must not be used afterwards. Else it stays live:
 *         -ENOTSUP if the front-end does not take requests over, -EBUSY while
 *         the ring is not being stopped; -EINVAL if the element is NULL or
 *         completed already
 * @since 0.1
 */
int vu_elem_suspend(struct vu_elem *elem);

/**
 * Copies bytes out of the device-readable buffers.
 *
 * @param offset counted over all device-readable buffers
 * @return how many bytes were copied: less than `len` if the buffers end
 *         before, 0 for NULL
 * @since 0.1
 */
size_t vu_elem_read(const struct vu_elem *elem,
                    size_t offset,
                    void *buf,
                    size_t len);

/**
 * Copies bytes into the device-writable buffers.
 *
 * @param offset counted over all device-writable buffers
 * @return how many bytes were copied: less than `len` if the buffers end
 *         before, 0 for NULL
 * @since 0.1
 */
size_t vu_elem_write(const struct vu_elem *elem,
                     size_t offset,
                     const void *buf,
                     size_t len);

/**
 * Describes `len` bytes of `iov`, from `offset` on, with iovecs of the
 * caller's: for preadv() and the like, without the request's header or status.
 *
 * @param dst where to put them, room for `dst_num`; not overlapping `iov`.
 *        What it holds after a failure is unspecified.
 * @return how many entries of `dst` were filled, none of them empty; -ERANGE
 *         if the bytes are not all there, -ENOBUFS if they need more than
 *         `dst_num` entries, -EINVAL for NULL
 * @since 0.1
 */
VU_MUST_USE
int vu_elem_iov_slice(const struct iovec *iov,
                      uint32_t num,
                      size_t offset,
                      size_t len,
                      struct iovec *dst,
                      uint32_t dst_num);

/**
 * Says that the device wrote device-writable bytes outside of the first
 * `written` ones that it is going to complete the element with, so that they
 * are not lost when the guest is migrated.
 *
 * @param offset counted over all device-writable buffers
 * @return 0; -ERANGE if the bytes are not all there, -EINVAL for an element
 *         that is NULL or completed already
 * @since 0.1
 */
int vu_elem_mark_dirty(struct vu_elem *elem, size_t offset, size_t len);

/**
 * The queue that an element was popped from.
 *
 * @return NULL for NULL
 * @since 0.1
 */
struct vu_vq *vu_elem_vq(const struct vu_elem *elem);

/**
 * The error number.
 *
 * @return the negative errno that the failed call returned; -EINVAL for NULL
 * @since 0.1
 */
int vu_error_code(const struct vu_error *err);

/**
 * The sentence, in English, without a newline.
 *
 * @return valid until vu_error_free(); never NULL, a fixed text for a NULL
 *         error
 * @since 0.1
 */
const char *vu_error_message(const struct vu_error *err);

/**
 * Frees an error; NULL is fine.
 *
 * @since 0.1
 */
void vu_error_free(struct vu_error *err);

/**
 * The version of the library that is loaded, to compare with
 * VU_SERVER_VERSION, the one of the header.
 *
 * @return 0xMMmmpp: major, minor, patch
 * @since 0.1
 */
uint32_t vu_version(void);

/**
 * The same as text.
 *
 * @return "major.minor.patch"; static
 * @since 0.1
 */
const char *vu_version_string(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VU_SERVER_H */

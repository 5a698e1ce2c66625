/* The functions that libvhost-user exports, and that QEMU has linked in. X(name) for each. */
#ifndef TEST_LIBVHOST_USER_NAMES_H
#define TEST_LIBVHOST_USER_NAMES_H

#define LIBVHOST_USER_NAMES(X)       \
    X(vu_init)                       \
    X(vu_deinit)                     \
    X(vu_dispatch)                   \
    X(vu_gpa_to_va)                  \
    X(vu_get_queue)                  \
    X(vu_set_queue_handler)          \
    X(vu_set_queue_host_notifier)    \
    X(vu_config_change_msg)          \
    X(vu_request_to_string)          \
    X(vu_add_shared_object)          \
    X(vu_get_shared_object)          \
    X(vu_lookup_shared_object)       \
    X(vu_rm_shared_object)           \
    X(vu_queue_set_notification)     \
    X(vu_queue_enabled)              \
    X(vu_queue_started)              \
    X(vu_queue_empty)                \
    X(vu_queue_notify)               \
    X(vu_queue_notify_sync)          \
    X(vu_queue_pop)                  \
    X(vu_queue_unpop)                \
    X(vu_queue_detach_element)       \
    X(vu_queue_rewind)               \
    X(vu_queue_fill)                 \
    X(vu_queue_push)                 \
    X(vu_queue_flush)                \
    X(vu_queue_get_avail_bytes)      \
    X(vu_queue_avail_bytes)

#endif

/* What a C compiler makes of the structures is what 0.1 promised. */
#include <stddef.h>
#include <vu_server.h>

#define AT(type, field, offset) \
    _Static_assert(offsetof(type, field) == (offset), #type "." #field)
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)

AT(vu_ctx_ops, struct_size, 0);
AT(vu_ctx_ops, set_watch, 8);
AT(vu_ctx_ops, remove_watch, 16);
AT(vu_ctx_ops, poll, 24);
AT(vu_ctx_ops, destroy, 32);
SIZE(vu_ctx_ops, 40);

AT(vu_server_config, struct_size, 0);
AT(vu_server_config, name, 8);
AT(vu_server_config, flags, 16);
AT(vu_server_config, features, 24);
AT(vu_server_config, features_masked, 32);
AT(vu_server_config, num_queues, 40);
AT(vu_server_config, max_queue_size, 44);
AT(vu_server_config, config_space, 48);
AT(vu_server_config, config_size, 56);
AT(vu_server_config, config_writable, 64);
AT(vu_server_config, elem_priv_size, 72);
AT(vu_server_config, stage_max, 76);
AT(vu_server_config, drain_timeout_ms, 80);
AT(vu_server_config, on_broken_ring, 84);
AT(vu_server_config, log_level, 88);
AT(vu_server_config, log, 96);
AT(vu_server_config, log_opaque, 104);
AT(vu_server_config, wake, 112);
AT(vu_server_config, wake_opaque, 120);
AT(vu_server_config, reply_timeout_ms, 128);
AT(vu_server_config, num_shmem_regions, 132);
AT(vu_server_config, shmem_sizes, 136);
AT(vu_server_config, message_requests, 144);
AT(vu_server_config, num_message_requests, 152);
SIZE(vu_server_config, 160);

AT(vu_crypto_session, op_code, 0);
AT(vu_crypto_session, algo, 8);
AT(vu_crypto_session, hash_algo, 12);
AT(vu_crypto_session, digest_len, 16);
AT(vu_crypto_session, aad_len, 20);
AT(vu_crypto_session, op_type, 24);
AT(vu_crypto_session, direction, 28);
AT(vu_crypto_session, hash_mode, 32);
AT(vu_crypto_session, chain_order, 36);
AT(vu_crypto_session, key_type, 40);
AT(vu_crypto_session, padding_algo, 44);
AT(vu_crypto_session, key, 48);
AT(vu_crypto_session, key_len, 56);
AT(vu_crypto_session, auth_key, 64);
AT(vu_crypto_session, auth_key_len, 72);
AT(vu_crypto_session, body, 80);
AT(vu_crypto_session, body_size, 88);
SIZE(vu_crypto_session, 96);

AT(vu_device_ops, struct_size, 0);
AT(vu_device_ops, kick, 8);
AT(vu_device_ops, queue_started, 16);
AT(vu_device_ops, queue_stopping, 24);
AT(vu_device_ops, queue_stopped, 32);
AT(vu_device_ops, connected, 40);
AT(vu_device_ops, disconnected, 48);
AT(vu_device_ops, features_acked, 56);
AT(vu_device_ops, config_written, 64);
AT(vu_device_ops, reset, 72);
AT(vu_device_ops, ring_broken, 80);
AT(vu_device_ops, orphaned, 88);
AT(vu_device_ops, stopped, 96);
AT(vu_device_ops, destroy, 104);
AT(vu_device_ops, send_rarp, 112);
AT(vu_device_ops, net_set_mtu, 120);
AT(vu_device_ops, shared_object, 128);
AT(vu_device_ops, create_crypto_session, 136);
AT(vu_device_ops, close_crypto_session, 144);
AT(vu_device_ops, gpu_set_socket, 152);
AT(vu_device_ops, status_set, 160);
AT(vu_device_ops, message, 168);
AT(vu_device_ops, save_state, 176);
AT(vu_device_ops, load_state, 184);
SIZE(vu_device_ops, 192);

AT(vu_message, request, 0);
AT(vu_message, need_reply, 4);
AT(vu_message, body, 8);
AT(vu_message, body_size, 16);
AT(vu_message, num_fds, 20);
AT(vu_message, fds, 24);
AT(vu_message, reply, 32);
AT(vu_message, reply_size, 40);
AT(vu_message, num_reply_fds, 44);
AT(vu_message, reply_fds, 48);
SIZE(vu_message, 56);

AT(vu_shmem_mapping, struct_size, 0);
AT(vu_shmem_mapping, region, 8);
AT(vu_shmem_mapping, flags, 12);
AT(vu_shmem_mapping, offset, 16);
AT(vu_shmem_mapping, len, 24);
AT(vu_shmem_mapping, fd_offset, 32);
SIZE(vu_shmem_mapping, 40);

AT(vu_server_stats, struct_size, 0);
AT(vu_server_stats, connections, 8);
AT(vu_server_stats, messages, 16);
AT(vu_server_stats, refusals, 24);
AT(vu_server_stats, protocol_errors, 32);
AT(vu_server_stats, broken_rings, 40);
AT(vu_server_stats, orphaned_queues, 48);
AT(vu_server_stats, config_changes, 56);
AT(vu_server_stats, memory_regions, 64);
AT(vu_server_stats, messages_by_type, 72);
AT(vu_server_stats, unlogged_pages, 584);
AT(vu_server_stats, backend_requests, 592);
AT(vu_server_stats, backend_failures, 600);
SIZE(vu_server_stats, 608);

AT(vu_vq_stats, struct_size, 0);
AT(vu_vq_stats, pops, 8);
AT(vu_vq_stats, completions, 16);
AT(vu_vq_stats, bytes_out, 24);
AT(vu_vq_stats, bytes_in, 32);
AT(vu_vq_stats, kicks, 40);
AT(vu_vq_stats, notifications, 48);
AT(vu_vq_stats, notifications_suppressed, 56);
AT(vu_vq_stats, inflight, 64);
AT(vu_vq_stats, dropped, 72);
AT(vu_vq_stats, breaks, 80);
AT(vu_vq_stats, suspended, 88);
SIZE(vu_vq_stats, 96);

AT(vu_elem, out, 0);
AT(vu_elem, out_num, 8);
AT(vu_elem, in, 16);
AT(vu_elem, in_num, 24);
AT(vu_elem, out_len, 28);
AT(vu_elem, in_len, 32);
AT(vu_elem, priv, 40);
SIZE(vu_elem, 48);

_Static_assert(VU_AGAIN == 1, "kick");
_Static_assert(VU_STOP_RECALL == 1 && VU_STOP_VRING_BASE == 2 && VU_STOP_DISABLED == 3 &&
               VU_STOP_DETACH == 4 && VU_STOP_MOVE == 5 && VU_STOP_RESET == 6 &&
               VU_STOP_DISCONNECT == 7 && VU_STOP_SERVER == 8 && VU_STOP_BROKEN == 9, "reasons");
_Static_assert(VU_LOG_ERROR == 3 && VU_LOG_WARNING == 4 && VU_LOG_INFO == 6 &&
               VU_LOG_DEBUG == 7, "syslog levels");
_Static_assert(VU_BROKEN_RING_STOP == 0 && VU_BROKEN_RING_DISCONNECT == 1, "broken rings");
_Static_assert(VU_SERVER_RUN_DISABLED_QUEUES == 1u << 0 &&
               VU_SERVER_REQUIRE_SEALED_MEMORY == 1u << 1 &&
               VU_SERVER_NO_INFLIGHT_AREA == 1u << 2 && VU_SERVER_SUSPENDS == 1u << 3 &&
               VU_SERVER_INBAND_NOTIFICATIONS == 1u << 4, "flags");
_Static_assert(VU_MESSAGE_NOT_MINE == 0 && VU_MESSAGE_HANDLED == 1 && VU_MESSAGE_REPLY == 2,
               "messages");
_Static_assert(VU_SHMEM_WRITABLE == 1, "mappings");

int main(void)
{
    return 0;
}

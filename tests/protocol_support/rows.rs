//! What is served, and how one can see it. A row is added together with its handler.

/// A request or a feature.
pub struct Row {
    /// The specification's name, without its prefix.
    pub name: &'static str,
    /// What a device has to do, beside being there.
    pub device: &'static str,
    /// When a feature is offered.
    pub offered: &'static str,
    /// The name of a test.
    pub test: &'static str,
}

const fn row(name: &'static str, device: &'static str, test: &'static str) -> Row {
    Row {
        name,
        device,
        offered: "",
        test,
    }
}

const fn feature(
    name: &'static str,
    offered: &'static str,
    device: &'static str,
    test: &'static str,
) -> Row {
    Row {
        name,
        device,
        offered,
        test,
    }
}

#[rustfmt::skip]
pub const REQUESTS: &[Row] = &[
    row("GET_FEATURES", "name the features of its class", "what_is_offered"),
    row("SET_FEATURES", "may hear `features_acked`", "case_52_features_on_started_rings"),
    row("SET_OWNER", "", "case_92_owner_twice_and_after_a_reconnect"),
    row("RESET_OWNER", "may hear `reset`", "case_93_resets_with_requests_in_flight"),
    row("SET_MEM_TABLE", "", "case_34_overlaps_and_an_unsorted_table"),
    row("SET_LOG_BASE", "mark what it writes beyond the first `written` bytes", "case_58_logs_that_cannot_be_used"),
    row("SET_LOG_FD", "", "case_59_descriptors_of_the_log"),
    row("SET_VRING_NUM", "may limit the size", "case_44_sizes_of_rings"),
    row("SET_VRING_ADDR", "", "case_47_areas_partly_outside"),
    row("SET_VRING_BASE", "", "case_51_bases"),
    row("GET_VRING_BASE", "complete what it has popped", "the_reply_waits_for_what_is_in_flight_on_that_queue"),
    row("SET_VRING_KICK", "", "case_27_a_kick_descriptor_replaced_on_a_running_ring"),
    row("SET_VRING_CALL", "", "a_call_descriptor_swapped_under_load"),
    row("SET_VRING_ERR", "", "the_err_descriptor_may_be_missing"),
    row("GET_PROTOCOL_FEATURES", "", "what_is_offered"),
    row("SET_PROTOCOL_FEATURES", "may hear `features_acked`", "case_54_protocol_features_that_are_not_offered"),
    row("GET_QUEUE_NUM", "say how many queues it has", "what_is_offered"),
    row("SET_VRING_ENABLE", "", "case_50_buffers_before_the_ring_is_enabled"),
    row("SEND_RARP", "implement `send_rarp`", "the_device_answers"),
    row("NET_SET_MTU", "implement `net_set_mtu`", "an_mtu_beyond_the_limits_never_reaches_the_device"),
    row("SET_BACKEND_REQ_FD", "", "case_28_wrong_descriptors_for_the_back_end_channel"),
    row("IOTLB_MSG", "", "rings_and_buffers_are_translated"),
    row("SET_VRING_ENDIAN", "", "a_big_endian_ring_works_beside_a_little_endian_one"),
    row("GET_CONFIG", "give its config space", "reading"),
    row("SET_CONFIG", "say what the driver may write; may hear `config_written`", "case_57_writing"),
    row("CREATE_CRYPTO_SESSION", "implement `create_crypto_session`", "crypto_sessions_are_created_and_closed"),
    row("CLOSE_CRYPTO_SESSION", "implement `close_crypto_session`", "crypto_sessions_are_created_and_closed"),
    row("POSTCOPY_ADVISE", "", "case_68_postcopy_out_of_order"),
    row("POSTCOPY_LISTEN", "", "a_guest_is_served_while_it_arrives"),
    row("POSTCOPY_END", "", "the_end_frees_who_waits"),
    row("GET_INFLIGHT_FD", "allow that requests are done twice after a crash", "a_successor_does_what_was_in_flight"),
    row("SET_INFLIGHT_FD", "allow that requests are done twice after a crash", "a_successor_does_what_was_in_flight"),
    row("GPU_SET_SOCKET", "implement `gpu_set_socket`", "a_gpu_device_gets_its_socket"),
    row("RESET_DEVICE", "may hear `reset`", "case_93_resets_with_requests_in_flight"),
    row("VRING_KICK", "want in-band notifications", "rings_without_descriptors_are_kicked_and_called_by_messages"),
    row("GET_MAX_MEM_SLOTS", "", "case_41_as_many_slots_as_advertised"),
    row("ADD_MEM_REG", "", "a_buffer_in_memory_added_just_now"),
    row("REM_MEM_REG", "", "case_39_memory_that_goes_under_requests_in_flight"),
    row("SET_STATUS", "may hear `status_set`, `reset`", "case_66_the_status_is_one_byte"),
    row("GET_STATUS", "", "case_66_the_status_is_one_byte"),
    row("GET_SHARED_OBJECT", "implement `shared_object`", "the_device_answers"),
    row("SET_DEVICE_STATE_FD", "implement `save_state` and `load_state`", "states_of_any_size_are_saved"),
    row("CHECK_DEVICE_STATE", "implement `save_state` and `load_state`", "the_check_waits_for_the_device"),
    row("GET_SHMEM_CONFIG", "have shared memory regions", "shared_memory_regions_are_told_and_filled"),
];

#[rustfmt::skip]
pub const BACKEND_REQUESTS: &[Row] = &[
    row("IOTLB_MSG", "", "a_miss_pauses_its_queue_and_no_other"),
    row("CONFIG_CHANGE_MSG", "change its config space", "changes_are_announced"),
    row("VRING_HOST_NOTIFIER_MSG", "have doorbell pages", "a_host_notifier_is_set_and_withdrawn"),
    row("VRING_CALL", "want in-band notifications", "rings_without_descriptors_are_kicked_and_called_by_messages"),
    row("VRING_ERR", "want in-band notifications", "a_broken_ring_without_an_err_descriptor_says_so_in_a_message"),
    row("SHARED_OBJECT_ADD", "have objects to share", "an_object_is_added_and_removed"),
    row("SHARED_OBJECT_REMOVE", "have objects to share", "an_object_is_added_and_removed"),
    row("SHARED_OBJECT_LOOKUP", "want an object of another device", "an_object_is_looked_up"),
    row("SHMEM_MAP", "have shared memory regions", "shared_memory_regions_are_told_and_filled"),
    row("SHMEM_UNMAP", "have shared memory regions", "shared_memory_regions_are_told_and_filled"),
];

#[rustfmt::skip]
pub const FEATURES: &[Row] = &[
    feature("MQ", "always", "", "what_is_offered"),
    feature("LOG_SHMFD", "always", "", "case_58_logs_that_cannot_be_used"),
    feature("RARP", "if the device can", "implement `send_rarp`", "the_device_answers"),
    feature("REPLY_ACK", "always", "", "case_12_a_failure_is_acknowledged_with_a_failure"),
    feature("MTU", "if the device can", "implement `net_set_mtu`", "the_device_answers"),
    feature("BACKEND_REQ", "always", "", "changes_are_announced"),
    feature("CROSS_ENDIAN", "always", "", "byte_orders_that_are_refused"),
    feature("CRYPTO_SESSION", "if the device can", "implement `create_crypto_session`", "a_device_without_crypto_is_not_asked_for_sessions"),
    feature("PAGEFAULT", "if the system lets the process", "", "what_the_system_forbids_is_not_offered"),
    feature("CONFIG", "with a config space", "give its config space", "reading"),
    feature("BACKEND_SEND_FD", "always", "", "a_host_notifier_is_set_and_withdrawn"),
    feature("HOST_NOTIFIER", "always", "", "a_host_notifier_is_set_and_withdrawn"),
    feature("INFLIGHT_SHMFD", "unless the device does without", "allow that requests are done twice after a crash", "a_device_can_do_without_an_area"),
    feature("RESET_DEVICE", "always", "may hear `reset`", "a_reset_of_the_device_resets_the_status"),
    feature("INBAND_NOTIFICATIONS", "if the device wants it", "want in-band notifications", "it_is_not_offered_unless_the_device_wants_it"),
    feature("CONFIGURE_MEM_SLOTS", "always", "", "case_41_as_many_slots_as_advertised"),
    feature("STATUS", "unless the device has a state to save", "may hear `status_set`", "the_device_hears_the_status_and_the_reset_before_it"),
    feature("SHARED_OBJECT", "if the device can", "implement `shared_object`", "what_a_device_does_not_implement_is_neither_offered_nor_asked"),
    feature("DEVICE_STATE", "if the device can", "implement `save_state` and `load_state`", "case_67_malformed_transfers"),
    feature("GET_VRING_BASE_INFLIGHT", "if the device suspends", "suspend what is in flight when a ring is stopped", "a_stop_leaves_in_flight_what_the_device_suspends"),
    feature("GPA_ADDRESSES", "always", "", "memory_and_rings_are_named_by_the_guests_addresses"),
    feature("SHMEM", "with shared memory regions", "have shared memory regions", "without_regions_there_is_no_shared_memory"),
];

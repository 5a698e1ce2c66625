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
    row("SET_BACKEND_REQ_FD", "", "case_28_wrong_descriptors_for_the_back_end_channel"),
    row("SET_VRING_ENDIAN", "", "a_big_endian_ring_works_beside_a_little_endian_one"),
    row("GET_CONFIG", "give its config space", "reading"),
    row("SET_CONFIG", "say what the driver may write; may hear `config_written`", "case_57_writing"),
    row("GET_INFLIGHT_FD", "allow that requests are done twice after a crash", "a_successor_does_what_was_in_flight"),
    row("SET_INFLIGHT_FD", "allow that requests are done twice after a crash", "a_successor_does_what_was_in_flight"),
    row("RESET_DEVICE", "may hear `reset`", "case_93_resets_with_requests_in_flight"),
    row("GET_MAX_MEM_SLOTS", "", "case_41_as_many_slots_as_advertised"),
    row("ADD_MEM_REG", "", "a_buffer_in_memory_added_just_now"),
    row("REM_MEM_REG", "", "case_39_memory_that_goes_under_requests_in_flight"),
    row("SET_STATUS", "may hear `reset`", "case_66_the_status_is_one_byte"),
    row("GET_STATUS", "", "case_66_the_status_is_one_byte"),
];

#[rustfmt::skip]
pub const BACKEND_REQUESTS: &[Row] = &[
    row("CONFIG_CHANGE_MSG", "change its config space", "changes_are_announced"),
];

#[rustfmt::skip]
pub const FEATURES: &[Row] = &[
    feature("MQ", "always", "", "what_is_offered"),
    feature("LOG_SHMFD", "always", "", "case_58_logs_that_cannot_be_used"),
    feature("REPLY_ACK", "always", "", "case_12_a_failure_is_acknowledged_with_a_failure"),
    feature("BACKEND_REQ", "always", "", "changes_are_announced"),
    feature("CROSS_ENDIAN", "always", "", "byte_orders_that_are_refused"),
    feature("CONFIG", "with a config space", "give its config space", "reading"),
    feature("INFLIGHT_SHMFD", "unless the device does without", "allow that requests are done twice after a crash", "a_device_can_do_without_an_area"),
    feature("RESET_DEVICE", "always", "may hear `reset`", "a_reset_of_the_device_resets_the_status"),
    feature("CONFIGURE_MEM_SLOTS", "always", "", "case_41_as_many_slots_as_advertised"),
    feature("STATUS", "always", "", "case_66_the_status_is_one_byte"),
    feature("GET_VRING_BASE_INFLIGHT", "if the device suspends", "suspend what is in flight when a ring is stopped", "a_stop_leaves_in_flight_what_the_device_suspends"),
];

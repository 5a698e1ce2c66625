/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* meson links a shared library from at least one source: the code itself is all Rust. */
typedef int vu_server_has_no_c_code;

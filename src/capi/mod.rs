//! The C ABI and nothing else: argument checks, ownership, and calls into the crate.
//!
//! One file for each C type, three that have no API of their own: [`guard`] (panics), [`structs`]
//! (size-prefixed structures) and [`config`] (the server's). Their comments are the C reference: cbindgen
//! copies them into `include/vu_server.h`, so they speak C.
//!
//! # Safety
//! Every exported function is `unsafe` for the same reasons, which are not repeated: a pointer is NULL or
//! what the header says it is, handles were made by this library and are not freed yet, buffers are as long
//! as said, and nothing is freed while another thread uses it. NULL is an answer everywhere, never undefined
//! behaviour. Handles are lent as `&T` only; what changes behind them is atomic or locked.

// The one place of the crate that talks to C.
#![allow(unsafe_code, non_camel_case_types, clippy::missing_safety_doc)]

mod config;
mod crypto;
mod ctx;
mod device;
mod elem;
mod error;
mod front_end;
mod guard;
mod message;
mod server;
mod stats;
mod structs;
mod version;
mod vq;

//! The guest's memory and its requests in the types of the rust-vmm crates, so that device code written for
//! them can be used as it is. Needs the cargo feature `rust-vmm`; the installed C library is built without.
//!
//! * [`MappedMemory`] is a [`vm_memory::GuestMemory`]: [`Server::guest_memory`](crate::Server::guest_memory)
//!   and [`Element::guest_memory`](crate::Element::guest_memory).
//! * [`GuestSlice::volatile`](crate::GuestSlice::volatile) gives an element's buffers as
//!   [`vm_memory::VolatileSlice`]s, without a copy or an allocation.
//! * [`Element::chain_memory`](crate::Element::chain_memory) shows an element as a
//!   [`virtio_queue::DescriptorChain`], with its `Reader` and `Writer`.
//!
//! The library keeps the rings to itself: it pops, publishes and notifies, and the chain that it shows has the
//! buffers that it has read and checked, whatever the guest has written over its descriptors since. Showing
//! one costs an allocation, and virtio-queue's `Reader` and `Writer` cost more; the slices cost nothing.
//!
//! Bytes are written from the first device-writable one on, and `Writer::bytes_written` is the number to
//! complete the element with; bytes behind that many are named by
//! [`Element::mark_dirty`](crate::Element::mark_dirty).
//!
//! # Example
//! A function of a device for any `DescriptorChain`, in a device of this library's:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::ops::Deref;
//!
//! use virtio_queue::DescriptorChain;
//! use vm_memory::bitmap::WithBitmapSlice;
//! use vm_memory::GuestMemory;
//! use vu_server::{Device, Element, Kick, Virtqueue};
//!
//! /// Writes back what it reads, in capitals.
//! fn shout<T>(chain: DescriptorChain<T>) -> std::io::Result<usize>
//! where
//!     T: Clone + Deref,
//!     T::Target: GuestMemory + Sized,
//!     for<'a> <T::Target as GuestMemory>::Bitmap: WithBitmapSlice<'a>,
//! {
//!     let memory = chain.memory();
//!     let mut text = String::new();
//!     chain.clone().reader(memory).map_err(std::io::Error::other)?.read_to_string(&mut text)?;
//!     let mut writer = chain.clone().writer(memory).map_err(std::io::Error::other)?;
//!     writer.write_all(text.to_uppercase().as_bytes())?;
//!     Ok(writer.bytes_written())
//! }
//!
//! struct Shouter;
//!
//! impl Shouter {
//!     fn serve(&self, element: &Element) -> std::io::Result<usize> {
//!         let memory = element.chain_memory().map_err(std::io::Error::other)?;
//!         shout(memory.chain().map_err(std::io::Error::other)?)
//!     }
//! }
//!
//! impl Device for Shouter {
//!     fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
//!         while let Ok(Some(element)) = vq.pop_one() {
//!             let written = self.serve(&element).unwrap_or(0) as u32;
//!             vq.stage(element, written).expect("written fits");
//!         }
//!         Kick::Done
//!     }
//! }
//! ```

pub use crate::memory::{MappedMemory, MappedRegion};
pub use crate::virtqueue::ChainMemory;

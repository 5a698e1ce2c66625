//! Single requests that `virtio-driver`'s block queue has no call for, on its generic virtqueue.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use virtio_driver::virtqueue::{Virtqueue, VirtqueueLayout};
use virtio_driver::{
    Le32, Le64, VhostUser, VirtioBlkConfig, VirtioFeatureFlags, VirtioTransport, iovec,
};

use super::blk_client::wanted_features;
use super::{Deadline, wait_readable};

pub const TYPE_IN: u32 = 0;
pub const TYPE_GET_ID: u32 = 8;

/// A request whose header, data and status lie in the queue's own memory.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawRequest {
    kind: Le32,
    reserved: Le32,
    sector: Le64,
    data: [u8; 20],
    status: u8,
}

/// Sends one request of type `kind` with 20 bytes for the device to write, on a connection of its
/// own; returns its status and these bytes.
pub fn raw_request(socket: &str, kind: u32, sector: u64) -> io::Result<(u8, [u8; 20])> {
    const QUEUE_SIZE: u16 = 16;
    let mut transport: VhostUser<VirtioBlkConfig, RawRequest> =
        VhostUser::new(socket, wanted_features(false))?;
    let features = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
    let layout = VirtqueueLayout::new::<RawRequest>(1, QUEUE_SIZE.into(), features)?;
    let translator = transport.iova_translator();
    let memory = transport.alloc_queue_mem(&layout)?;
    // SAFETY: the transport keeps the memory at its place until it is dropped, after the queue,
    // and hands it out once only.
    let memory = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), memory.len()) };
    let mut queues = [Virtqueue::new(translator, memory, QUEUE_SIZE, features)?];
    transport.setup_queues(&queues)?;

    add(&mut queues[0], kind, sector)?;
    transport.get_submission_notifier(0).notify()?;
    let call = transport.get_completion_fd(0);
    let deadline = Deadline::after(Duration::from_secs(10));
    loop {
        if let Some(completion) = queues[0].completions().next() {
            return Ok((completion.req.status, completion.req.data));
        }
        if !wait_readable(call.as_fd(), &deadline) {
            let text = format!("no completion of a request of type {kind}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        call.read()?;
    }
}

fn add(queue: &mut Virtqueue<'_, RawRequest>, kind: u32, sector: u64) -> io::Result<()> {
    queue.add_request(|request, add_descriptor| {
        *request = RawRequest {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
            data: [0xff; 20],
            status: 0xff,
        };
        let base = std::ptr::from_mut(request).cast::<u8>();
        let mut part = |offset: usize, len, from_device| {
            let iov_base = base.wrapping_add(offset).cast::<c_void>();
            let iov_len = len;
            add_descriptor(iovec { iov_base, iov_len }, from_device)
        };
        part(0, 16, false)?;
        part(std::mem::offset_of!(RawRequest, data), 20, true)?;
        part(std::mem::offset_of!(RawRequest, status), 1, true)
    })?;
    Ok(())
}

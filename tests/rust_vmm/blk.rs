//! A block device in the style of rust-vmm, whose functions know a `DescriptorChain` and nothing of this library,
//! with the `virtio-driver` crate as its front-end.

use std::io::{self, Read, Write};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::bitmap::WithBitmapSlice;
use vm_memory::{ByteValued, GuestMemory, Le32, Le64};
use vu_server::{Address, Context, Device, Kick, Server, Virtqueue};

use crate::clients::{BLOCK, BlkClient, BlkQueue, Pattern, Setup, TempDir, Wait, scattered};
use crate::stop::*;

const SECTOR: usize = 512;
const BLOCKS: u64 = 256;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const F_FLUSH: u64 = 1 << 9;
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    kind: Le32,
    reserved: Le32,
    sector: Le64,
}

// SAFETY: numbers only, and no padding.
unsafe impl ByteValued for Header {}

/// One request of any device that has its chains from virtio-queue.
fn serve<T>(disk: &mut [u8], chain: DescriptorChain<T>) -> io::Result<usize>
where
    T: Clone + Deref,
    T::Target: GuestMemory + Sized,
    for<'a> <T::Target as GuestMemory>::Bitmap: WithBitmapSlice<'a, S = ()>,
{
    let memory = chain.memory();
    let mut reader: Reader<'_> = chain.clone().reader(memory).map_err(io::Error::other)?;
    let mut data: Writer<'_> = chain.clone().writer(memory).map_err(io::Error::other)?;
    let mut status = data
        .split_at(data.available_bytes().saturating_sub(1))
        .map_err(io::Error::other)?;
    let header: Header = reader.read_obj()?;
    let result = transfer(disk, header, &mut reader, &mut data);
    status.write_all(&[if result.is_ok() { S_OK } else { S_IOERR }])?;
    Ok(data.bytes_written() + 1)
}

fn transfer(
    disk: &mut [u8],
    header: Header,
    reader: &mut Reader<'_>,
    data: &mut Writer<'_>,
) -> io::Result<()> {
    let start = u64::from(header.sector) as usize * SECTOR;
    let place = disk.get_mut(start..).ok_or(io::ErrorKind::InvalidInput)?;
    match u32::from(header.kind) {
        T_IN => data.write_all(
            place
                .get(..data.available_bytes())
                .ok_or(io::ErrorKind::InvalidInput)?,
        ),
        T_OUT => {
            let len = reader.available_bytes();
            reader.read_exact(place.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?)
        }
        _ => Ok(()),
    }
}

struct Disk(Mutex<Vec<u8>>);

impl Device for Disk {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        while let Ok(Some(element)) = vq.pop_one() {
            let written = {
                let memory = element.chain_memory().unwrap();
                serve(&mut lock(&self.0), memory.chain().unwrap()).unwrap()
            };
            vq.stage(element, written as u32).unwrap();
        }
        Kick::Done
    }
}

fn start(dir: &TempDir, context: &Arc<Context>) -> (Server, String) {
    let size = BLOCKS * BLOCK as u64;
    let mut config = vec![0; 60];
    config[0..8].copy_from_slice(&(size / SECTOR as u64).to_le_bytes());
    let server = Server::builder()
        .features(F_FLUSH)
        .config_space(config, Vec::new())
        .build(Disk(Mutex::new(vec![0; size as usize])))
        .unwrap();
    let path = dir.join("sock");
    server
        .start(Address::Listen(path.clone()), Some(context))
        .unwrap();
    (server, path.to_str().unwrap().to_owned())
}

/// Runs one request at a time for each of `blocks`.
fn run(
    client: &mut BlkClient,
    mut submit: impl FnMut(&mut BlkQueue, u64),
    mut done: impl FnMut(&mut BlkQueue, u64),
) {
    for block in scattered(BLOCKS) {
        submit(&mut client.queues()[0], block);
        client.queues()[0].kick().unwrap();
        client.wait().unwrap();
        let mut results = Vec::new();
        client.queues()[0].take_completions(|_, result| results.push(result));
        assert_eq!(results, [0], "block {block}");
        done(&mut client.queues()[0], block);
    }
}

#[test]
fn device_code_for_virtio_queue_serves_the_virtio_driver_crate() {
    let _guard = guard("rust-vmm blk", 120);
    let dir = TempDir::new();
    let looper = Looper::new();
    let (server, socket) = start(&dir, &looper.ctx);
    let mut client = BlkClient::connect(
        &socket,
        Setup {
            queues: 1,
            queue_size: 64,
            depth: 1,
            buffer_len: BLOCK,
            event_idx: true,
            wait: Wait::EventFd,
        },
    )
    .unwrap();
    let pattern = Pattern { seed: 7 };
    let at = |block: u64| block * BLOCK as u64;
    run(
        &mut client,
        |queue, block| {
            queue.buffer(0).copy_from_slice(&pattern.block(block));
            queue.write(0, at(block)).unwrap();
        },
        |_, _| {},
    );
    run(
        &mut client,
        |queue, block| {
            queue.buffer(0).fill(0);
            queue.read(0, at(block)).unwrap();
        },
        |queue, block| pattern.verify(block, queue.buffer(0)),
    );
    drop(client);
    server.stop().unwrap();
    drop(server);
    looper.finish();
}

//! `vu-blk` serving the `virtio-driver` crate: every request type at queue depth 1 and 128, with
//! notifications and with polling, and the configuration space field by field.

#[path = "clients/mod.rs"]
mod clients;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use clients::{
    BLOCK, Backend, BlkClient, BlkQueue, Disk, Options, Pattern, Setup, TYPE_GET_ID, TYPE_IN,
    TempDir, Wait, raw_request, scattered,
};
use virtio_driver::VirtioBlkFeatureFlags as Blk;

const BLOCKS: u64 = 4096;

const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPP: u8 = 2;

fn offset(block: u64) -> u64 {
    block * BLOCK as u64
}

/// An image of `blocks` blocks in which every block holds its pattern.
fn image(dir: &TempDir, blocks: u64, pattern: Pattern) -> PathBuf {
    let path = dir.join("disk.img");
    let file = File::create(&path).expect("create the image");
    for block in 0..blocks {
        let bytes = pattern.block(block);
        file.write_all_at(&bytes, offset(block)).expect("fill");
    }
    path
}

/// Three descriptors a request: the ring is large enough for 128 of them.
fn setup(depth: usize, wait: Wait, event_idx: bool) -> Setup {
    Setup {
        queues: 1,
        queue_size: 512,
        depth,
        buffer_len: BLOCK,
        event_idx,
        wait,
    }
}

fn connect(backend: &Backend, setup: Setup) -> BlkClient {
    BlkClient::connect(backend.socket_str(), setup).expect("connect")
}

/// Runs one request for each of `blocks`, `depth` at a time; every one must succeed, once.
fn run(
    client: &mut BlkClient,
    depth: usize,
    blocks: impl Iterator<Item = u64>,
    submit: impl Fn(&mut BlkQueue, usize, u64),
    complete: impl Fn(&mut BlkQueue, usize, u64),
) {
    let mut blocks = blocks.fuse();
    let mut free: Vec<usize> = (0..depth).collect();
    let mut busy: Vec<Option<u64>> = vec![None; depth];
    loop {
        let queue = &mut client.queues()[0];
        while let Some(slot) = free.pop() {
            let Some(block) = blocks.next() else {
                free.push(slot);
                break;
            };
            submit(queue, slot, block);
            busy[slot] = Some(block);
        }
        if free.len() == depth {
            return;
        }
        queue.kick().expect("kick");
        client.wait().expect("completions");
        let queue = &mut client.queues()[0];
        let mut done = Vec::new();
        queue.take_completions(|slot, result| done.push((slot, result)));
        for (slot, result) in done {
            let block = busy[slot].take().expect("a request completed twice");
            assert_eq!(result, 0, "request for block {block}");
            complete(queue, slot, block);
            free.push(slot);
        }
    }
}

fn verify(client: &mut BlkClient, depth: usize, pattern: Pattern, blocks: u64) {
    run(
        client,
        depth,
        scattered(blocks),
        |queue, slot, block| {
            queue.buffer(slot).fill(0xaa);
            queue.read(slot, offset(block)).expect("read");
        },
        |queue, slot, block| pattern.verify(block, queue.buffer(slot)),
    );
}

fn overwrite(client: &mut BlkClient, depth: usize, pattern: Pattern, blocks: u64) {
    run(
        client,
        depth,
        scattered(blocks),
        |queue, slot, block| {
            queue.buffer(slot).copy_from_slice(&pattern.block(block));
            queue.write(slot, offset(block)).expect("write");
        },
        |_, _, _| {},
    );
}

/// One request by itself, in slot 0; its result.
fn once(client: &mut BlkClient, submit: impl FnOnce(&mut BlkQueue)) -> i32 {
    let queue = &mut client.queues()[0];
    submit(queue);
    queue.kick().expect("kick");
    client.wait().expect("completion");
    let mut results = Vec::new();
    client.queues()[0].take_completions(|_, result| results.push(result));
    assert_eq!(results.len(), 1, "completions of one request");
    results[0]
}

fn read_write_verify(depth: usize, wait: Wait, event_idx: bool) {
    let dir = TempDir::new();
    let (before, after) = (Pattern { seed: 1 }, Pattern { seed: 2 });
    let path = image(&dir, BLOCKS, before);
    let backend = Backend::start(&Options::new(Disk::Image(path.clone())));
    let mut client = connect(&backend, setup(depth, wait, event_idx));

    verify(&mut client, depth, before, BLOCKS);
    overwrite(&mut client, depth, after, BLOCKS);
    client.remap().expect("remove and add the buffers' memory");
    verify(&mut client, depth, after, BLOCKS);
    let flushed = once(&mut client, |queue| queue.flush(0).expect("flush"));
    assert_eq!(flushed, 0, "flush");

    let file = File::open(&path).expect("open the image");
    let mut bytes = [0; BLOCK];
    for block in 0..BLOCKS {
        file.read_exact_at(&mut bytes, offset(block)).expect("read");
        after.verify(block, &bytes);
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn depth_1_with_notifications() {
    read_write_verify(1, Wait::EventFd, false);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn depth_128_with_notifications() {
    read_write_verify(128, Wait::EventFd, false);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn depth_1_with_event_idx() {
    read_write_verify(1, Wait::EventFd, true);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn depth_128_with_event_idx() {
    read_write_verify(128, Wait::EventFd, true);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn depth_1_polling() {
    read_write_verify(1, Wait::Polling, true);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn depth_128_polling() {
    read_write_verify(128, Wait::Polling, true);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn a_null_disk_completes_everything() {
    const DEPTH: usize = 128;
    let mut backend = Backend::start(&Options::new(Disk::Null(1 << 30)));
    let mut client = connect(&backend, setup(DEPTH, Wait::EventFd, true));
    let config = client.config().expect("config");
    assert_eq!({ config.capacity }.to_native(), (1 << 30) / 512, "capacity");
    let read = |queue: &mut BlkQueue, slot, block| queue.read(slot, offset(block)).expect("read");
    run(&mut client, DEPTH, scattered(BLOCKS), read, |_, _, _| {});
    let write =
        |queue: &mut BlkQueue, slot, block| queue.write(slot, offset(block)).expect("write");
    run(&mut client, DEPTH, scattered(BLOCKS), write, |_, _, _| {});
    let flushed = once(&mut client, |queue| queue.flush(0).expect("flush"));
    assert_eq!(flushed, 0, "flush");
    // Under valgrind, the status tells of its findings.
    let status = backend.end_with(libc::SIGTERM, Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn configuration_space() {
    let dir = TempDir::new();
    let path = image(&dir, 256, Pattern { seed: 0 });
    let mut options = Options::new(Disk::Image(path));
    options.queues = 4;
    let backend = Backend::start(&options);
    let client = connect(&backend, setup(1, Wait::EventFd, true));

    let features = Blk::from_bits_truncate(client.features());
    let wanted = [
        ("SEG_MAX", Blk::SEG_MAX),
        ("BLK_SIZE", Blk::BLK_SIZE),
        ("FLUSH", Blk::FLUSH),
        ("TOPOLOGY", Blk::TOPOLOGY),
        ("CONFIG_WCE", Blk::CONFIG_WCE),
        ("MQ", Blk::MQ),
        ("DISCARD", Blk::DISCARD),
        ("WRITE_ZEROES", Blk::WRITE_ZEROES),
    ];
    for (name, bit) in wanted {
        assert!(features.contains(bit), "VIRTIO_BLK_F_{name} is not offered");
    }
    assert!(!features.contains(Blk::RO), "VIRTIO_BLK_F_RO is offered");

    let config = client.config().expect("config");
    let blk_size = { config.blk_size }.to_native();
    assert_eq!({ config.capacity }.to_native(), 256 * BLOCK as u64 / 512);
    // A request takes a header and a status descriptor beside its segments.
    let seg_max = { config.seg_max }.to_native();
    let most = u32::from(options.queue_size) - 2;
    assert!((1..=most).contains(&seg_max), "seg_max {seg_max}");
    assert!([512, 4096].contains(&blk_size), "blk_size {blk_size}");
    let exponent = config.physical_block_exp;
    assert!(exponent <= 8, "physical_block_exp {exponent}");
    let alignment = config.alignment_offset;
    assert_eq!(alignment, 0, "alignment_offset");
    // In units of blk_size; 0 means not reported.
    let min_io = u32::from({ config.min_io_size }.to_native());
    let opt_io = { config.opt_io_size }.to_native();
    assert!(min_io * blk_size <= 1 << 20, "min_io_size {min_io}");
    assert!(opt_io == 0 || opt_io >= min_io, "opt_io_size {opt_io}");
    assert_eq!(config.writeback, 1, "writeback");
    assert_eq!({ config.num_queues }.to_native(), 4, "num_queues");

    let discard = { config.max_discard_sectors }.to_native();
    assert!(discard >= 2048, "max_discard_sectors {discard}");
    let segments = { config.max_discard_seg }.to_native();
    assert!(segments >= 1, "max_discard_seg {segments}");
    let alignment = { config.discard_sector_alignment }.to_native();
    assert!(
        alignment > 0 && alignment * 512 % blk_size == 0,
        "discard_sector_alignment {alignment}"
    );
    let zeroes = { config.max_write_zeroes_sectors }.to_native();
    assert!(zeroes >= 2048, "max_write_zeroes_sectors {zeroes}");
    let segments = { config.max_write_zeroes_seg }.to_native();
    assert!(segments >= 1, "max_write_zeroes_seg {segments}");
    assert!(config.write_zeroes_may_unmap <= 1, "may_unmap");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn write_zeroes_and_discard() {
    let dir = TempDir::new();
    let pattern = Pattern { seed: 0xd0 };
    let path = image(&dir, 64, pattern);
    let backend = Backend::start(&Options::new(Disk::Image(path)));
    let mut client = connect(&backend, setup(1, Wait::EventFd, true));

    let zeroed = once(&mut client, |queue| {
        let accepted = queue.write_zeroes(0, offset(8), offset(8));
        accepted.expect("write zeroes");
    });
    assert_eq!(zeroed, 0, "write zeroes");
    let discarded = once(&mut client, |queue| {
        queue.discard(0, offset(32), offset(32)).expect("discard");
    });
    assert_eq!(discarded, 0, "discard");

    for block in 0..32 {
        let result = once(&mut client, |queue| {
            queue.buffer(0).fill(0xaa);
            queue.read(0, offset(block)).expect("read");
        });
        assert_eq!(result, 0, "read of block {block}");
        let bytes = client.queues()[0].buffer(0);
        if (8..16).contains(&block) {
            let zeroes = bytes.iter().all(|&byte| byte == 0);
            assert!(zeroes, "block {block} does not read as zeroes");
        } else {
            pattern.verify(block, bytes);
        }
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn writes_to_a_read_only_disk_fail() {
    let dir = TempDir::new();
    let pattern = Pattern { seed: 0x20 };
    let path = image(&dir, 64, pattern);
    let mut options = Options::new(Disk::Image(path.clone()));
    options.read_only = true;
    let backend = Backend::start(&options);
    let mut client = connect(&backend, setup(4, Wait::EventFd, true));
    let features = Blk::from_bits_truncate(client.features());
    assert!(features.contains(Blk::RO), "VIRTIO_BLK_F_RO is not offered");

    let written = once(&mut client, |queue| {
        queue.buffer(0).fill(0xee);
        queue.write(0, offset(3)).expect("write");
    });
    assert_eq!(written, -libc::EIO, "write");
    let zeroed = once(&mut client, |queue| {
        let accepted = queue.write_zeroes(0, offset(4), offset(1));
        accepted.expect("write zeroes");
    });
    assert!(zeroed < 0, "write zeroes: {zeroed}");
    let discarded = once(&mut client, |queue| {
        queue.discard(0, offset(5), offset(1)).expect("discard");
    });
    assert!(discarded < 0, "discard: {discarded}");
    verify(&mut client, 4, pattern, 64);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn serial_number() {
    // 20 bytes, without a terminator when all of them are used.
    for serial in ["vu-0815", "12345678901234567890"] {
        let mut options = Options::new(Disk::Null(1 << 20));
        options.serial = Some(serial.to_owned());
        let backend = Backend::start(&options);
        let (status, id) = raw_request(backend.socket_str(), TYPE_GET_ID, 0).expect("get id");
        assert_eq!(status, STATUS_OK, "status of get id");
        let mut expected = [0; 20];
        expected[..serial.len()].copy_from_slice(serial.as_bytes());
        assert_eq!(id, expected, "{}", String::from_utf8_lossy(&id));
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn requests_that_the_device_does_not_know() {
    let backend = Backend::start(&Options::new(Disk::Null(1 << 20)));
    for kind in [2, 99, u32::MAX] {
        let (status, _) = raw_request(backend.socket_str(), kind, 0).expect("request");
        assert_eq!(status, STATUS_UNSUPP, "status of a request of type {kind}");
    }
    // 20 bytes are no whole sector.
    let (status, _) = raw_request(backend.socket_str(), TYPE_IN, 0).expect("request");
    assert_eq!(status, STATUS_IOERR, "status of a read of 20 bytes");
}

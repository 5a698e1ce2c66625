//! `vu-blk` serving the `blkio` crate, the driver that QEMU and fio use for vhost-user-blk disks.

#[path = "clients/mod.rs"]
mod clients;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blkio::{Errno, ReqFlags};
use clients::{
    BLOCK, Backend, BlkioDisk, BlkioQueue, Deadline, Disk, Options, Pattern, QUEUE_DEPTH, TempDir,
    scattered, wait_until,
};

const SIZE: u64 = 256 << 20;
const BLOCKS: u64 = SIZE / BLOCK as u64;

/// An empty image of `size` bytes.
fn image(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.join("disk.img");
    let file = File::create(&path).expect("create the image");
    file.set_len(size).expect("size of the image");
    path
}

fn offset(block: u64) -> u64 {
    block * BLOCK as u64
}

fn write_blocks(queue: &mut BlkioQueue, pattern: Pattern, blocks: &[u64]) {
    queue.run(
        blocks.len() as u64,
        |request, i| {
            let block = blocks[i as usize];
            request.write(offset(block), &pattern.block(block));
        },
        |_, _| {},
    );
}

fn verify_blocks(queue: &mut BlkioQueue, pattern: Pattern, blocks: &[u64]) {
    queue.run(
        blocks.len() as u64,
        |request, i| {
            request.buffer().fill(0xaa);
            request.read(offset(blocks[i as usize]));
        },
        |i, buffer| pattern.verify(blocks[i as usize], buffer),
    );
}

fn flush(queue: &mut BlkioQueue) {
    assert_eq!(queue.once(|request| request.flush()), 0, "flush");
}

fn verify_image(path: &Path, pattern: Pattern, blocks: u64) {
    let file = File::open(path).expect("open the image");
    let mut bytes = [0; BLOCK];
    for block in 0..blocks {
        file.read_exact_at(&mut bytes, offset(block))
            .expect("read the image");
        pattern.verify(block, &bytes);
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn whole_disk_at_queue_depth_64() {
    let dir = TempDir::new();
    let path = image(&dir, SIZE);
    let backend = Backend::start(&Options::new(Disk::Image(path.clone())));
    let (disk, mut queues) = BlkioDisk::start(backend.socket_str(), 1);
    assert_eq!(disk.blkio.get_u64("capacity").expect("capacity"), SIZE);

    let pattern = Pattern { seed: 0x51 };
    let blocks: Vec<u64> = scattered(BLOCKS).collect();
    write_blocks(&mut queues[0], pattern, &blocks);
    flush(&mut queues[0]);
    verify_blocks(&mut queues[0], pattern, &blocks);
    verify_image(&path, pattern, BLOCKS);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn whole_disk_on_four_queues() {
    four_queues(1);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn whole_disk_on_four_queues_and_two_threads() {
    four_queues(2);
}

/// Each queue writes every fourth block and verifies what its neighbour wrote.
fn four_queues(iothreads: u16) {
    const QUEUES: usize = 4;
    let dir = TempDir::new();
    let path = image(&dir, SIZE);
    let mut options = Options::new(Disk::Image(path.clone()));
    options.queues = QUEUES as u16;
    options.iothreads = iothreads;
    let backend = Backend::start(&options);
    let (disk, mut queues) = BlkioDisk::start(backend.socket_str(), QUEUES);
    let max = disk.blkio.get_i32("max-queues").expect("max-queues");
    assert_eq!(max, QUEUES as i32, "max-queues");

    let pattern = Pattern { seed: 0x40 };
    let mut shares = vec![Vec::new(); QUEUES];
    for block in scattered(BLOCKS) {
        shares[(block % QUEUES as u64) as usize].push(block);
    }
    on_each(&mut queues, |queue, i| {
        write_blocks(queue, pattern, &shares[i]);
        flush(queue);
    });
    on_each(&mut queues, |queue, i| {
        verify_blocks(queue, pattern, &shares[(i + 1) % QUEUES]);
    });
    verify_image(&path, pattern, BLOCKS);
}

/// Runs `work` on all queues at the same time, each on a thread.
fn on_each(queues: &mut [BlkioQueue], work: impl Fn(&mut BlkioQueue, usize) + Sync) {
    std::thread::scope(|scope| {
        for (i, queue) in queues.iter_mut().enumerate() {
            let work = &work;
            scope.spawn(move || work(queue, i));
        }
    });
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn properties_of_the_disk() {
    let dir = TempDir::new();
    let size = 12 << 20;
    let mut options = Options::new(Disk::Image(image(&dir, size)));
    options.queues = 3;
    let backend = Backend::start(&options);
    let blkio = BlkioDisk::connect(backend.socket_str(), false).expect("connect");

    assert_eq!(blkio.get_u64("capacity").expect("capacity"), size);
    assert_eq!(blkio.get_i32("max-queues").expect("max-queues"), 3);
    let alignment = blkio.get_i32("request-alignment").expect("alignment");
    assert!(
        [512, 4096].contains(&alignment),
        "request-alignment {alignment}"
    );
    let segments = blkio.get_i32("max-segments").expect("max-segments");
    assert!(segments >= 1, "max-segments {segments}");
    for limit in ["max-discard-len", "max-write-zeroes-len"] {
        let value = blkio.get_u64(limit).expect(limit);
        assert!(value >= 1 << 20, "{limit} {value}");
    }
    let slots = blkio.get_u64("max-mem-regions").expect("max-mem-regions");
    assert!(slots >= 32, "max-mem-regions {slots}");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn discard_and_write_zeroes_touch_their_range_only() {
    const COUNT: u64 = 256;
    let dir = TempDir::new();
    let path = image(&dir, offset(COUNT));
    let backend = Backend::start(&Options::new(Disk::Image(path)));
    let (_disk, mut queues) = BlkioDisk::start(backend.socket_str(), 1);
    let queue = &mut queues[0];
    let pattern = Pattern { seed: 0xd15c };
    let all: Vec<u64> = (0..COUNT).collect();
    write_blocks(queue, pattern, &all);

    let kept_mapped = ReqFlags::NO_UNMAP;
    let zeroed = queue.once(|r| r.write_zeroes(offset(16), offset(16), kept_mapped));
    assert_eq!(zeroed, 0, "write zeroes without unmap");
    let zeroed = queue.once(|r| r.write_zeroes(offset(64), offset(32), ReqFlags::empty()));
    assert_eq!(zeroed, 0, "write zeroes with unmap");
    let discarded = queue.once(|r| r.discard(offset(128), offset(64)));
    assert_eq!(discarded, 0, "discard");

    let zero: Vec<u64> = (16..32).chain(64..96).collect();
    for &block in &zero {
        queue.buffer().fill(0xaa);
        assert_eq!(queue.once(|r| r.read(offset(block))), 0, "read");
        let zeroes = queue.buffer().iter().all(|&byte| byte == 0);
        assert!(zeroes, "block {block} does not read as zeroes");
    }
    // What a discarded range reads as is not defined.
    let discarded = 128..192;
    let kept: Vec<u64> = all
        .into_iter()
        .filter(|block| !zero.contains(block) && !discarded.contains(block))
        .collect();
    verify_blocks(queue, pattern, &kept);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn requests_outside_the_disk_fail_alone() {
    const COUNT: u64 = 64;
    let dir = TempDir::new();
    let path = image(&dir, offset(COUNT));
    let backend = Backend::start(&Options::new(Disk::Image(path.clone())));
    let (_disk, mut queues) = BlkioDisk::start(backend.socket_str(), 1);
    let queue = &mut queues[0];
    let pattern = Pattern { seed: 0 };
    let all: Vec<u64> = scattered(COUNT).collect();
    write_blocks(queue, pattern, &all);

    let error = -Errno::IO.raw_os_error();
    let last_sector = offset(COUNT) - 512;
    let far = u64::MAX - 511 - offset(1);
    for start in [offset(COUNT), last_sector, far] {
        assert_eq!(queue.once(|r| r.read(start)), error, "read at {start}");
        let written = queue.once(|r| r.write(start, &[0xee; BLOCK]));
        assert_eq!(written, error, "write at {start}");
    }
    let no_flags = ReqFlags::empty();
    let zeroed = queue.once(|r| r.write_zeroes(last_sector, offset(1), no_flags));
    assert_eq!(zeroed, error, "write zeroes beyond the end");
    let discarded = queue.once(|r| r.discard(last_sector, offset(1)));
    assert_eq!(discarded, error, "discard beyond the end");

    verify_blocks(queue, pattern, &all);
    flush(queue);
    let length = std::fs::metadata(&path).expect("image").len();
    assert_eq!(length, offset(COUNT), "length of the image");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn a_read_only_disk_is_known_as_such() {
    const COUNT: u64 = 64;
    let dir = TempDir::new();
    let path = image(&dir, offset(COUNT));
    let pattern = Pattern { seed: 0x12 };
    let file = File::options().write(true).open(&path).expect("image");
    for block in 0..COUNT {
        let bytes = pattern.block(block);
        file.write_all_at(&bytes, offset(block)).expect("fill");
    }
    let mut options = Options::new(Disk::Image(path));
    options.read_only = true;
    let backend = Backend::start(&options);

    let mut writer = BlkioDisk::connect(backend.socket_str(), false).expect("connect");
    let refused = writer.start().err().expect("start for writing must fail");
    assert_eq!(refused.errno(), Errno::ROFS, "{refused}");
    drop(writer);

    let reader = BlkioDisk::connect(backend.socket_str(), true).expect("connect");
    let (_disk, mut queues) = BlkioDisk::start_connected(reader, 1);
    let all: Vec<u64> = scattered(COUNT).collect();
    verify_blocks(&mut queues[0], pattern, &all);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn clients_one_after_the_other_find_the_data() {
    const ROUNDS: u64 = 50;
    const COUNT: u64 = 64;
    let dir = TempDir::new();
    let path = image(&dir, offset(COUNT));
    let mut options = Options::new(Disk::Image(path));
    options.queues = 2;
    let backend = Backend::start(&options);
    let all: Vec<u64> = scattered(COUNT).collect();
    for round in 0..ROUNDS {
        let (mut disk, mut queues) = BlkioDisk::start(backend.socket_str(), 2);
        if let Some(last) = round.checked_sub(1) {
            verify_blocks(&mut queues[1], Pattern { seed: last }, &all);
        }
        disk.remap();
        write_blocks(&mut queues[0], Pattern { seed: round }, &all);
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn a_second_client_waits_for_the_first() {
    const COUNT: u64 = 64;
    let dir = TempDir::new();
    let path = image(&dir, offset(COUNT));
    let backend = Backend::start(&Options::new(Disk::Image(path)));
    let pattern = Pattern { seed: 2 };
    let all: Vec<u64> = scattered(COUNT).collect();

    let (disk, mut queues) = BlkioDisk::start(backend.socket_str(), 1);
    let first_gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let (_disk, mut queues) = BlkioDisk::start(backend.socket_str(), 1);
            // Acquire: pairs with the Release below; the first client has begun to leave.
            let was_gone = first_gone.load(Ordering::Acquire);
            verify_blocks(&mut queues[0], pattern, &all);
            was_gone
        });
        for _ in 0..20 {
            write_blocks(&mut queues[0], pattern, &all);
        }
        // Release: pairs with the Acquire above.
        first_gone.store(true, Ordering::Release);
        drop(queues);
        drop(disk);
        let in_order = second.join().expect("the second client");
        assert!(in_order, "the second client was served beside the first");
    });
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn sigterm_under_load_ends_the_program() {
    signal_under_load(libc::SIGTERM);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn sigint_under_load_ends_the_program() {
    signal_under_load(libc::SIGINT);
}

/// The signal comes while 64 requests are in flight all the time.
fn signal_under_load(signal: i32) {
    const LIMIT: Duration = Duration::from_secs(2);
    let dir = TempDir::new();
    let path = image(&dir, SIZE);
    let mut backend = Backend::start(&Options::new(Disk::Image(path)));
    let socket = backend.socket().to_owned();
    let (_disk, mut queues) = BlkioDisk::start(backend.socket_str(), 1);
    let completed = AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| keep_busy(&mut queues[0], &completed, &ended));
        wait_until(Duration::from_secs(10), "load", || {
            // Relaxed: only a progress counter.
            completed.load(Ordering::Relaxed) > 1000 || load.is_finished()
        });
        let status = backend.end_with(signal, LIMIT);
        // Relaxed: nothing but the flag itself is read.
        ended.store(true, Ordering::Relaxed);
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(!socket.exists(), "{} is left behind", socket.display());
    });
}

/// Keeps all buffers in flight until the program has ended; what completes has succeeded.
fn keep_busy(queue: &mut BlkioQueue, completed: &AtomicU64, ended: &AtomicBool) {
    let deadline = Deadline::after(Duration::from_secs(30));
    let mut blocks = std::iter::repeat_with(|| scattered(BLOCKS)).flatten();
    let mut in_flight = [false; QUEUE_DEPTH];
    // Relaxed: nothing but the flag itself is read.
    while !ended.load(Ordering::Relaxed) {
        deadline.check("end of the program");
        for (slot, busy) in in_flight.iter_mut().enumerate() {
            if !std::mem::replace(busy, true) {
                let block = blocks.next().expect("an endless sequence");
                queue.submit(slot, |request| request.read(offset(block)));
            }
        }
        for completion in queue.try_reap(Duration::from_millis(50)) {
            assert_eq!(completion.ret, 0, "a request failed");
            in_flight[completion.user_data] = false;
            // Relaxed: only a progress counter.
            completed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

//! The `blkio` crate's vhost-user-blk driver keeps 64 requests in flight while the server moves between
//! contexts of every kind, 10,000 times: as a whole, and queue by queue. Every request completes once, and
//! every block reads back as it was written.

#[path = "clients/mod.rs"]
mod clients;
#[path = "common/move_loops.rs"]
mod move_loops;
#[path = "common/move_pool.rs"]
mod move_pool;
#[path = "common/ramdisk.rs"]
mod ramdisk;
#[path = "sim/mod.rs"]
mod sim;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clients::{BLOCK, BlkioDisk, BlkioQueue, Pattern, QUEUE_DEPTH, TempDir};
use move_loops::{Kind, Looper};
use move_pool::Random;
use ramdisk::{Disk, RamDisk};
use sim::HangGuard;
use vu_server::{Address, Server};

const MOVES: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(20);
const KINDS: [Kind; 4] = [Kind::Epoll, Kind::Foreign, Kind::Polled, Kind::Epoll];

/// Blocks that each buffer writes and reads in turn.
const BLOCKS_PER_SLOT: u64 = 4;
const BLOCKS_PER_QUEUE: u64 = BLOCKS_PER_SLOT * QUEUE_DEPTH as u64;

#[derive(Default)]
struct Wake {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Wake {
    fn ring(&self) {
        let _lock = self.lock.lock().unwrap();
        self.changed.notify_all();
    }

    /// Looks now and after each wake-up, never in between.
    #[track_caller]
    fn wait(&self, done: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut lock = self.lock.lock().unwrap();
        while !done() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no wake-up within {LIMIT:?}");
            lock = self.changed.wait_timeout(lock, left).unwrap().0;
        }
        drop(lock);
    }
}

/// A disk, its server and the contexts it wanders between. Dropped in order.
struct Fixture {
    server: Arc<Server>,
    disk: Arc<Disk>,
    wake: Arc<Wake>,
    loops: Vec<Looper>,
    dir: TempDir,
}

impl Fixture {
    fn new(queues: usize) -> Self {
        let disk = Disk::new(queues as u64 * BLOCKS_PER_QUEUE * BLOCK as u64, queues);
        let wake = Arc::new(Wake::default());
        let woken = wake.clone();
        let loops: Vec<_> = KINDS.map(Looper::start).into_iter().collect();
        let server = disk
            .configure(Server::builder().name("ramdisk"))
            .wake(move || woken.ring())
            .build(RamDisk::new(&disk))
            .unwrap();
        let dir = TempDir::new();
        let socket = dir.join("blk.sock");
        server
            .start(Address::Listen(socket), Some(&loops[0].ctx))
            .unwrap();
        Fixture {
            server: Arc::new(server),
            disk,
            wake,
            loops,
            dir,
        }
    }

    /// Runs `moves` while every queue has QUEUE_DEPTH requests in flight, then checks the books.
    fn under_load(&self, queues: usize, moves: impl FnOnce(&AtomicU64)) {
        let socket = self.dir.join("blk.sock");
        let socket = socket.to_str().expect("a path in UTF-8");
        let (disk, mut blkio_queues) = BlkioDisk::start(socket, queues);
        let (progress, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let counts: Vec<u64> = thread::scope(|scope| {
            let loads: Vec<_> = (0..)
                .zip(&mut blkio_queues)
                .map(|(number, queue)| {
                    let (progress, stop) = (&progress, &stop);
                    scope.spawn(move || Load::new(queue, number).run(progress, stop))
                })
                .collect();
            {
                let _stop = SetOnDrop(&stop);
                moves(&progress);
            }
            loads
                .into_iter()
                .map(|load| load.join().expect("the load"))
                .collect()
        });
        for (queue, count) in (0..).zip(counts) {
            let stats = self.server.queue_stats(queue).unwrap();
            let seen = (stats.pops, stats.completions, stats.dropped, stats.breaks);
            assert_eq!(seen, (count, count, 0, 0), "queue {queue}");
            assert!(count > 1000, "queue {queue}: only {count} requests");
        }
        assert_eq!(self.disk.failures.load(Ordering::Relaxed), 0);
        drop(blkio_queues);
        drop(disk);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.server.stop().unwrap();
        }
    }
}

/// Sets the flag also when the test fails, so that the load ends.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        // Relaxed: the flag carries nothing with it.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a buffer is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Writing,
    Reading,
}

/// Each buffer writes a block with something new, reads it back and goes on to its next block.
struct Load<'a> {
    queue: &'a mut BlkioQueue,
    first_block: u64,
    slots: [(Doing, u64); QUEUE_DEPTH],
}

impl<'a> Load<'a> {
    fn new(queue: &'a mut BlkioQueue, number: u64) -> Self {
        Load {
            queue,
            first_block: number * BLOCKS_PER_QUEUE,
            slots: [(Doing::Nothing, 0); QUEUE_DEPTH],
        }
    }

    fn block(&self, slot: usize, turn: u64) -> (u64, Pattern) {
        let block = self.first_block + slot as u64 * BLOCKS_PER_SLOT + turn % BLOCKS_PER_SLOT;
        (block, Pattern { seed: turn })
    }

    fn write(&mut self, slot: usize, turn: u64) {
        let (block, pattern) = self.block(slot, turn);
        self.slots[slot] = (Doing::Writing, turn);
        self.queue.submit(slot, |r| {
            r.write(block * BLOCK as u64, &pattern.block(block))
        });
    }

    fn read(&mut self, slot: usize, turn: u64) {
        let (block, _) = self.block(slot, turn);
        self.slots[slot] = (Doing::Reading, turn);
        self.queue.submit(slot, |r| {
            r.buffer().fill(0xaa);
            r.read(block * BLOCK as u64);
        });
    }

    fn verify(&mut self, slot: usize, turn: u64) {
        let (block, pattern) = self.block(slot, turn);
        self.queue
            .submit(slot, |r| pattern.verify(block, r.buffer()));
    }

    /// Until `stop`, then nothing is left in flight; how many requests completed.
    fn run(mut self, progress: &AtomicU64, stop: &AtomicBool) -> u64 {
        let (mut completed, mut in_flight) = (0, QUEUE_DEPTH);
        for slot in 0..QUEUE_DEPTH {
            self.write(slot, 0);
        }
        while in_flight > 0 {
            let completions = self.queue.try_reap(LIMIT);
            assert!(
                !completions.is_empty(),
                "no completion within {LIMIT:?}, {in_flight} in flight"
            );
            for completion in completions {
                let slot = completion.user_data;
                assert_eq!(completion.ret, 0, "a request failed");
                completed += 1;
                // Relaxed: only a progress counter, and a flag that carries nothing with it.
                progress.fetch_add(1, Ordering::Relaxed);
                let stopping = stop.load(Ordering::Relaxed);
                let (doing, turn) = self.slots[slot];
                self.slots[slot].0 = Doing::Nothing;
                match doing {
                    Doing::Nothing => panic!("the request of buffer {slot} completed twice"),
                    Doing::Writing => self.read(slot, turn),
                    Doing::Reading => {
                        self.verify(slot, turn);
                        if stopping {
                            in_flight -= 1;
                        } else {
                            self.write(slot, turn + 1);
                        }
                    }
                }
            }
        }
        completed
    }
}

/// Detach, wait until nobody holds anything, attach elsewhere. Most times a third thread asks; every 16th
/// time the owner's thread detaches, and it is over when that returns.
#[test]
fn the_whole_server_moves_ten_thousand_times() {
    let _guard = HangGuard::secs("the_whole_server_moves_ten_thousand_times", 240);
    let fixture = Fixture::new(1);
    fixture.under_load(1, |progress| {
        let mut random = Random::new(1);
        let mut here = 0;
        let start = Instant::now();
        for round in 0..MOVES {
            if round % 64 == 0 {
                wait_progress(progress, 1);
            }
            fixture.disk.wait_place(0, fixture.loops[here].thread_id);
            if round % 16 == 15 {
                let server = fixture.server.clone();
                fixture.loops[here].on(move || server.detach().unwrap());
                assert!(fixture.server.is_quiesced());
            } else {
                fixture.server.request_detach().unwrap();
                fixture.wake.wait(|| fixture.server.is_quiesced());
            }
            here = (here + 1 + random.below(KINDS.len() as u64 - 1) as usize) % KINDS.len();
            fixture.server.attach(&fixture.loops[here].ctx).unwrap();
        }
        eprintln!("{MOVES} moves in {:?}", start.elapsed());
    });
    assert!(fixture.disk.arrivals(0) > MOVES);
}

/// A third thread moves one of two queues at a time. Most times it waits for the arrival; sometimes it
/// changes its mind before.
#[test]
fn single_queues_move_ten_thousand_times() {
    const QUEUES: usize = 2;
    let _guard = HangGuard::secs("single_queues_move_ten_thousand_times", 240);
    let fixture = Fixture::new(QUEUES);
    fixture.under_load(QUEUES, |progress| {
        let mut random = Random::new(2);
        let start = Instant::now();
        let arrivals = || {
            (0..QUEUES)
                .map(|queue| fixture.disk.arrivals(queue))
                .sum::<u64>()
        };
        let mut round = 0;
        while arrivals() < MOVES {
            if round % 64 == 0 {
                wait_progress(progress, 1);
            }
            round += 1;
            let queue = random.below(QUEUES as u64) as usize;
            for _ in 0..random.below(3) {
                let passing = &fixture.loops[random.below(KINDS.len() as u64) as usize];
                fixture
                    .server
                    .attach_queue(queue as u32, Some(&passing.ctx))
                    .unwrap();
            }
            let there = &fixture.loops[random.below(KINDS.len() as u64) as usize];
            fixture
                .server
                .attach_queue(queue as u32, Some(&there.ctx))
                .unwrap();
            if random.below(4) != 0 {
                fixture.disk.wait_place(queue, there.thread_id);
            }
        }
        eprintln!("{MOVES} moves in {:?}", start.elapsed());
    });
}

#[track_caller]
fn wait_progress(progress: &AtomicU64, more: u64) {
    let deadline = Instant::now() + LIMIT;
    let goal = progress.load(Ordering::Relaxed) + more;
    while progress.load(Ordering::Relaxed) < goal {
        assert!(Instant::now() < deadline, "no progress within {LIMIT:?}");
        thread::sleep(Duration::from_micros(50));
    }
}

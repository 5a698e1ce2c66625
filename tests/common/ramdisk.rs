//! A virtio-blk device (virtio 1.3, 5.2) over memory, which answers inside its kick, staged, and from other
//! threads in random order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use vu_server::{Device, Element, Kick, ServerBuilder, StopReason, Virtqueue};

use super::move_pool::{Pool, Random};

const SECTOR: u64 = 512;
const HEADER: usize = 16;
const CONFIG_SPACE: usize = 60;

const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

const LIMIT: Duration = Duration::from_secs(20);

/// What tests see of the disk.
pub struct Disk {
    data: Mutex<Vec<u8>>,
    places: Mutex<Vec<Place>>,
    arrived: Condvar,
    /// Requests that failed, and callbacks on the wrong thread.
    pub failures: AtomicU64,
}

#[derive(Clone, Default)]
struct Place {
    arrivals: u64,
    /// The thread that has the queue.
    thread: Option<ThreadId>,
}

impl Disk {
    pub fn new(size: u64, queues: usize) -> Arc<Self> {
        Arc::new(Disk {
            data: Mutex::new(vec![0; size as usize]),
            places: Mutex::new(vec![Place::default(); queues]),
            arrived: Condvar::new(),
            failures: AtomicU64::new(0),
        })
    }

    /// Describes the disk to the driver.
    pub fn configure(&self, builder: ServerBuilder) -> ServerBuilder {
        let queues = self.places.lock().unwrap().len() as u16;
        let sectors = self.data.lock().unwrap().len() as u64 / SECTOR;
        let mut config = vec![0; CONFIG_SPACE];
        config[0..8].copy_from_slice(&sectors.to_le_bytes());
        config[12..16].copy_from_slice(&126u32.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        config[34..36].copy_from_slice(&queues.to_le_bytes());
        builder
            .queues(queues.into())
            .features(F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_MQ)
            .config_space(config, Vec::new())
    }

    /// How often a queue has arrived in a context.
    pub fn arrivals(&self, queue: usize) -> u64 {
        self.places.lock().unwrap()[queue].arrivals
    }

    /// Waits until the queue is in the context of `thread`.
    #[track_caller]
    pub fn wait_place(&self, queue: usize, thread: ThreadId) {
        let deadline = Instant::now() + LIMIT;
        let mut places = self.places.lock().unwrap();
        while places[queue].thread != Some(thread) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "queue {queue} does not arrive within {LIMIT:?}"
            );
            places = self.arrived.wait_timeout(places, left).unwrap().0;
        }
    }

    /// Does the request; how many bytes were written, the status with them.
    fn serve(&self, element: &Element) -> u32 {
        let mut header = [0; HEADER];
        element.read(0, &mut header);
        let [a, b, c, d, .., s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let (status, read) = match kind {
            T_IN => self.read(element, sector),
            T_OUT => (self.write(element, sector), 0),
            T_FLUSH => (S_OK, 0),
            _ => (S_UNSUPP, 0),
        };
        if status != S_OK {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        let last = element.writable_len() as usize - 1;
        element.write(last, &[status]);
        // A failed read says nothing of its buffer, and nothing before the status was written.
        if status == S_OK { read + 1 } else { 0 }
    }

    fn read(&self, element: &Element, sector: u64) -> (u8, u32) {
        let len = element.writable_len() as usize - 1;
        let data = self.data.lock().unwrap();
        let start = (sector * SECTOR) as usize;
        match data.get(start..start + len) {
            Some(bytes) => (S_OK, element.write(0, bytes) as u32),
            None => (S_IOERR, 0),
        }
    }

    fn write(&self, element: &Element, sector: u64) -> u8 {
        let len = element.readable_len() as usize - HEADER;
        let mut data = self.data.lock().unwrap();
        let start = (sector * SECTOR) as usize;
        let copied = data
            .get_mut(start..start + len)
            .map(|bytes| element.read(HEADER, bytes));
        if copied == Some(len) { S_OK } else { S_IOERR }
    }

    fn finish(&self, element: Element) -> vu_server::Result<()> {
        let written = self.serve(&element);
        element.complete(written)
    }
}

/// The device; clones of its disk stay with the test.
pub struct RamDisk {
    disk: Arc<Disk>,
    pool: Pool,
    kicks: AtomicU64,
}

impl RamDisk {
    pub fn new(disk: &Arc<Disk>) -> Self {
        let worker = disk.clone();
        let pool = Pool::start(2, move |element| {
            if worker.finish(element).is_err() {
                worker.failures.fetch_add(1, Ordering::Relaxed);
            }
        });
        RamDisk {
            disk: disk.clone(),
            pool,
            kicks: AtomicU64::new(0),
        }
    }
}

impl Device for RamDisk {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let here = thread::current().id();
        if self.disk.places.lock().unwrap()[vq.index() as usize].thread != Some(here) {
            self.disk.failures.fetch_add(1, Ordering::Relaxed);
        }
        let mut random = Random::new(self.kicks.fetch_add(1, Ordering::Relaxed));
        let mut batch: [Option<Element>; 16] = Default::default();
        while let Ok(1..) = vq.pop(&mut batch) {
            for element in batch.iter_mut().filter_map(Option::take) {
                let done = match random.below(3) {
                    0 => self.disk.finish(element),
                    1 => {
                        let written = self.disk.serve(&element);
                        vq.stage(element, written)
                    }
                    _ => {
                        self.pool.push(element);
                        Ok(())
                    }
                };
                if done.is_err() {
                    self.disk.failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Kick::Done
    }

    fn queue_started(&self, vq: &mut Virtqueue<'_>) {
        let mut places = self.disk.places.lock().unwrap();
        let place = &mut places[vq.index() as usize];
        place.arrivals += 1;
        if place.thread.replace(thread::current().id()).is_some() {
            self.disk.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.disk.arrived.notify_all();
    }

    fn queue_stopping(&self, vq: &mut Virtqueue<'_>, _reason: StopReason) {
        self.disk.places.lock().unwrap()[vq.index() as usize].thread = None;
    }
}

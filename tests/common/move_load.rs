//! Requests whose buffers lie in chosen regions, and a driver thread that takes them in beside its own load.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sim::echo::pattern;
use crate::sim::{Deadline, Region, Seg, SplitDriver, Used};

const LIMIT: Duration = Duration::from_secs(10);

/// An echo request in one region.
pub struct RegionRequest {
    region: Arc<Region>,
    out: Seg,
    back: Seg,
    sent: Vec<u8>,
}

impl RegionRequest {
    #[track_caller]
    pub fn new(region: &Arc<Region>, len: u32) -> Self {
        let alloc = || region.alloc(len.into(), 8).unwrap();
        RegionRequest {
            region: Arc::clone(region),
            out: Seg::readable(alloc(), len),
            back: Seg::writable(alloc(), len),
            sent: Vec::new(),
        }
    }

    /// Fills the buffers; the chain to submit.
    pub fn prepare(&mut self, seed: u64) -> [Seg; 2] {
        self.sent = pattern(seed, self.out.len as usize);
        self.region.write(self.out.gpa, &self.sent).unwrap();
        self.region
            .write(self.back.gpa, &vec![0; self.back.len as usize])
            .unwrap();
        [self.out, self.back]
    }

    #[track_caller]
    pub fn check(&self, used: Used) {
        assert_eq!(used.len, self.back.len, "length in {used:?}");
        let mut got = vec![0; self.sent.len()];
        self.region.read_into(self.back.gpa, &mut got).unwrap();
        assert!(
            got == self.sent,
            "the echo in region {:x?} differs",
            self.region.spec()
        );
    }
}

enum Order {
    /// One request in this region, and word when it was answered.
    Use(Arc<Region>, Sender<()>),
    Stop,
}

/// A driver in a thread of its own: keeps `depth` requests in a region of its own in flight and does what it
/// is told beside that.
pub struct DriverThread {
    orders: Sender<Order>,
    thread: JoinHandle<(SplitDriver, u64)>,
}

impl DriverThread {
    pub fn start(driver: SplitDriver, own: &Arc<Region>, depth: usize) -> Self {
        let (orders, inbox) = channel();
        let requests = (0..depth).map(|_| RegionRequest::new(own, 256)).collect();
        let worker = Worker {
            driver,
            inbox,
            idle: requests,
            busy: HashMap::new(),
            submitted: 0,
        };
        DriverThread {
            orders,
            thread: thread::spawn(move || worker.run()),
        }
    }

    /// Echoes once through `region`, at once.
    #[track_caller]
    pub fn use_region(&self, region: &Arc<Region>) {
        let (reply, answered) = channel();
        self.orders
            .send(Order::Use(region.clone(), reply))
            .expect("the driver's thread");
        answered
            .recv_timeout(LIMIT)
            .expect("no echo through the region");
    }

    /// Ends with nothing in flight; how many requests were answered.
    #[track_caller]
    pub fn stop(self) -> (SplitDriver, u64) {
        self.orders.send(Order::Stop).expect("the driver's thread");
        self.thread.join().expect("the driver's thread")
    }
}

struct Worker {
    driver: SplitDriver,
    inbox: Receiver<Order>,
    idle: Vec<RegionRequest>,
    busy: HashMap<u16, (RegionRequest, Option<Sender<()>>)>,
    submitted: u64,
}

impl Worker {
    fn run(mut self) -> (SplitDriver, u64) {
        let mut stopping = false;
        while !stopping || !self.busy.is_empty() {
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    Order::Use(region, reply) => {
                        let request = RegionRequest::new(&region, 128);
                        self.submit(request, Some(reply));
                    }
                    Order::Stop => stopping = true,
                }
            }
            while !stopping && let Some(request) = self.idle.pop() {
                self.submit(request, None);
            }
            if self.busy.is_empty() {
                continue;
            }
            let mut next = Some(self.driver.wait_used(Deadline::after(LIMIT)).unwrap());
            while let Some(used) = next {
                self.finish(used);
                next = self.driver.poll_used().unwrap();
            }
        }
        (self.driver, self.submitted)
    }

    fn submit(&mut self, mut request: RegionRequest, reply: Option<Sender<()>>) {
        self.submitted += 1;
        let segs = request.prepare(self.submitted);
        let head = self.driver.submit(&segs).unwrap();
        self.busy.insert(head, (request, reply));
    }

    fn finish(&mut self, used: Used) {
        let (request, reply) = self.busy.remove(&used.head).expect("a head that is out");
        request.check(used);
        match reply {
            // The test may have given up already.
            Some(reply) => drop(reply.send(())),
            None => self.idle.push(request),
        }
    }
}

/// How often this process maps the region's file; the region's own mapping is one of them.
pub fn mappings_of(region: &Region) -> usize {
    let inode = inode(region).to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("reading /proc/self/maps");
    maps.lines()
        .filter(|line| line.contains("memfd:sim-guest"))
        .filter(|line| line.split_whitespace().nth(4) == Some(&inode))
        .count()
}

/// How many descriptors of the region's file are open; the region's own is one of them.
pub fn descriptors_of(region: &Region) -> usize {
    let inode = inode(region);
    std::fs::read_dir("/proc/self/fd")
        .expect("listing /proc/self/fd")
        .flatten()
        // Another thread's descriptor may be closed by now.
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .filter(|file| file.ino() == inode && file.file_type().is_file())
        .count()
}

fn inode(region: &Region) -> u64 {
    let path = format!("/proc/self/fd/{}", region.raw_fd().as_raw_fd());
    std::fs::metadata(path).expect("the region's file").ino()
}

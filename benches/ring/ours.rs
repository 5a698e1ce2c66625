//! This library, through its public API: a device whose `kick` plays the driver too, so that both are one thread.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vu_server::{Address, Context, Device, Element, Kick, Server, Virtqueue};

use super::sim::{RegionSpec, RingLayout, Session, SplitDriver};
use super::workload::{RING_SIZE, Row};
use super::{Engine, Round, measure};

/// Elements popped at a time, and in the batch that comes before the measurement.
const BURST: usize = 32;
const DEADLINE: Duration = Duration::from_secs(120);

struct Bench {
    row: Row,
    rounds: Arc<Mutex<Vec<Round>>>,
}

impl Device for Bench {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let Ok(mut rounds) = self.rounds.lock() else {
            return Kick::Done;
        };
        if rounds.is_empty() {
            *rounds = measure(&self.row, &mut Ours::new(&self.row, vq));
        }
        Kick::Done
    }
}

struct Ours<'a, 'q> {
    vq: &'a mut Virtqueue<'q>,
    elements: [Option<Element>; BURST],
    batch: u16,
    /// The driver's words, where the library has mapped them: the same memory at a second address is a slow thing for a
    /// processor's cache, and no driver has both.
    avail_index: *mut u16,
    used_event: *mut u16,
    position: u16,
    sum: usize,
}

impl<'a, 'q> Ours<'a, 'q> {
    /// Takes the first chains through the ring. The first one's buffer tells where the first region is mapped.
    fn new(row: &Row, vq: &'a mut Virtqueue<'q>) -> Self {
        let mut ours = Ours {
            vq,
            elements: Default::default(),
            batch: row.batch as u16,
            avail_index: std::ptr::null_mut(),
            used_event: std::ptr::null_mut(),
            position: 0,
            sum: 0,
        };
        let count = ours.vq.pop(&mut ours.elements).expect("the first batch");
        assert_eq!(count, BURST, "the first batch is all there");
        let first = ours.elements[0].as_ref().expect("an element");
        let buffer = first
            .readable()
            .chain(first.writable())
            .next()
            .expect("a buffer");
        let region = buffer
            .as_ptr()
            .wrapping_sub((row.first_buffer() - row.gpa(0, 0)) as usize);
        let avail = region
            .wrapping_add((row.avail() - row.gpa(0, 0)) as usize)
            .cast::<u16>();
        ours.avail_index = avail.wrapping_add(1);
        ours.used_event = avail.wrapping_add(2 + usize::from(RING_SIZE));
        ours.complete(count);
        ours.position = BURST as u16;
        ours
    }

    #[inline(always)]
    fn complete(&mut self, count: usize) {
        for element in self.elements[..count].iter_mut().filter_map(Option::take) {
            if let Some(buffer) = element.readable().chain(element.writable()).next() {
                self.sum = self.sum.wrapping_add(buffer.as_ptr().addr());
            }
            self.vq.stage(element, 0).expect("nothing written");
        }
        self.vq.flush();
    }
}

impl Engine for Ours<'_, '_> {
    fn run(&mut self, batches: usize) {
        // SAFETY: aligned words of the available ring, which stays mapped while `kick` runs.
        let (avail_index, used_event) = unsafe {
            (
                AtomicU16::from_ptr(self.avail_index),
                AtomicU16::from_ptr(self.used_event),
            )
        };
        for _ in 0..batches {
            used_event.store(self.position.wrapping_add(30_000), Ordering::Relaxed);
            self.position = self.position.wrapping_add(self.batch);
            avail_index.store(self.position, Ordering::Release);
            let mut left = usize::from(self.batch);
            while left > 0 {
                let burst = left.min(BURST);
                let count = self
                    .vq
                    .pop(&mut self.elements[..burst])
                    .expect("a good ring");
                assert_ne!(count, 0, "the batch is all there");
                self.complete(count);
                left -= count;
            }
        }
        std::hint::black_box(self.sum);
    }
}

/// Connects a front-end with the row's ring to a server of its own, and measures in the first kick.
pub fn rounds(row: &Row) -> Result<Vec<Round>, Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("vu-bench-ring-{}.sock", std::process::id()));
    let rounds = Arc::new(Mutex::new(Vec::new()));
    let bench = Bench {
        row: *row,
        rounds: rounds.clone(),
    };
    let context = Context::epoll()?;
    let server = Server::builder().name("bench").build(bench)?;
    server.start(Address::Listen(path.clone()), Some(&context))?;
    let row = *row;
    let frontend = thread::spawn(move || connect(&row, &path));
    let start = Instant::now();
    while rounds.lock().map_err(|e| e.to_string())?.is_empty() {
        if start.elapsed() > DEADLINE {
            return Err("no kick within two minutes".into());
        }
        context.dispatch(Some(Duration::from_millis(100)))?;
    }
    let session = frontend.join().map_err(|_| "the front-end failed")?;
    drop(session);
    server.stop()?;
    let rounds = rounds.lock().map_err(|e| e.to_string())?;
    Ok(rounds.clone())
}

fn connect(row: &Row, path: &std::path::Path) -> Session {
    let regions: Vec<RegionSpec> = (0..row.regions)
        .map(|region| RegionSpec::new(row.gpa(region, 0), row.region_size()))
        .collect();
    let mut session = Session::builder()
        .queue_size(RING_SIZE)
        .regions(&regions)
        .not_started()
        .connect(path);
    let layout = RingLayout {
        size: RING_SIZE,
        desc: row.desc(),
        avail: row.avail(),
        used: row.used(),
    };
    let memory = session.memory.clone();
    session.queues[0] = SplitDriver::with_layout(&memory, layout, true).expect("a driver");
    row.write(|gpa, bytes| memory.write(gpa, bytes).expect("guest memory"));
    session.queues[0]
        .ring
        .set_avail_idx(BURST as u16)
        .expect("the first batch");
    session.start_all();
    session
}

//! The front-end of a guest that is still arriving: its memory is empty at first, and a thread supplies each
//! page when the back-end faults on it.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use super::deadline::Deadline;
use super::error::{Error, Result};
use super::eventfd::EventFd;
use super::frontend::{Frontend, Reply, TIMEOUT};
use super::memory::Region;
use super::wire::{self, MemRegion, req};

pub const PAGE: u64 = 4096;

const UFFD_MSG_SIZE: usize = 32;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
/// `_IOR(0xaa, 2, struct uffdio_range)`
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;

impl Frontend {
    pub fn postcopy_advise(&self) -> Result<OwnedFd> {
        let mut reply = self.request(req::POSTCOPY_ADVISE, &[], &[])?;
        match reply.fds.pop() {
            Some(fd) if reply.body.is_empty() && reply.fds.is_empty() => Ok(fd),
            _ => Err(Error::Refused {
                request: "POSTCOPY_ADVISE",
                value: 0,
            }),
        }
    }

    pub fn postcopy_listen(&self) -> Result<()> {
        self.set(req::POSTCOPY_LISTEN, &[], &[])
    }

    pub fn postcopy_end(&self) -> Result<u64> {
        self.request(req::POSTCOPY_END, &[], &[])?.u64()
    }

    /// SET_MEM_TABLE without its end; where the back-end has mapped each region.
    pub fn offer_mem_table(&self, regions: &[&Region]) -> Result<Vec<u64>> {
        let table: Vec<MemRegion> = regions.iter().map(|region| region.wire()).collect();
        let fds: Vec<RawFd> = regions.iter().map(|region| region.raw_fd()).collect();
        let reply = self.request(req::SET_MEM_TABLE, &wire::mem_table(&table), &fds)?;
        regions
            .iter()
            .enumerate()
            .map(|(index, region)| address_in(&reply, 8 + 32 * index, region))
            .collect()
    }

    /// ADD_MEM_REG without its end.
    pub fn offer_mem_reg(&self, region: &Region) -> Result<u64> {
        let body = region.wire().encode_single();
        let reply = self.request(req::ADD_MEM_REG, &body, &[region.raw_fd()])?;
        address_in(&reply, 8, region)
    }

    /// Ends an update of the memory: from here on the back-end may fault in it.
    pub fn end_update(&self, request: u32) -> Result<()> {
        self.send(request, 0, &0u64.to_ne_bytes(), &[])
    }
}

/// The address in a region of a reply, whose other fields are those of the request.
fn address_in(reply: &Reply, at: usize, region: &Region) -> Result<u64> {
    let word = |index: usize| {
        let field = at + 8 * index;
        let bytes = reply.body.get(field..field + 8);
        bytes.map_or(0, |bytes| {
            u64::from(wire::u32_at(bytes, 0)) | u64::from(wire::u32_at(bytes, 4)) << 32
        })
    };
    let sent = region.wire();
    if (word(0), word(1), word(3)) != (sent.gpa, sent.size, sent.mmap_offset) {
        return Err(Error::Broken(format!(
            "postcopy reply {:x?} to region {sent:x?}",
            reply.body
        )));
    }
    Ok(word(2))
}

/// One region that is arriving.
struct Arriving {
    region: Arc<Region>,
    /// The back-end's address of it.
    base: u64,
    /// What the other host has.
    source: Vec<u8>,
}

#[derive(Default)]
struct State {
    regions: Vec<Arriving>,
    supplied: BTreeSet<u64>,
    /// Pages, as guest addresses, that somebody waits for.
    wanted: BTreeSet<u64>,
    holding: bool,
}

/// The pages of a guest, and the thread that supplies them.
pub struct Pages {
    shared: Arc<(Mutex<State>, Condvar, OwnedFd)>,
    quit: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pages {
    /// Serves the faults that `uffd` tells of.
    pub fn serve(uffd: OwnedFd) -> Self {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new(), uffd));
        let quit = Arc::new(EventFd::new().unwrap());
        let (serving, quitting) = (shared.clone(), quit.clone());
        let thread = thread::Builder::new()
            .name("sim-pages".into())
            .spawn(move || {
                while wait(serving.2.as_raw_fd(), quitting.as_raw_fd()) {
                    while let Some(address) = read_fault(serving.2.as_raw_fd()) {
                        let mut state = lock(&serving.0);
                        let page = state.page_at(address);
                        state.wanted.insert(page);
                        if !state.holding {
                            state.supply(page, serving.2.as_raw_fd());
                        }
                        serving.1.notify_all();
                    }
                }
            })
            .unwrap();
        Pages {
            shared,
            quit,
            thread: Some(thread),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.0)
    }

    /// The region is still on the other host: what is in it is put aside, and its file is empty.
    pub fn evacuate(&self, region: &Arc<Region>, base: u64) {
        let spec = region.spec();
        let mut source = vec![0; spec.size as usize];
        region.read_into(spec.gpa, &mut source).unwrap();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, size) = (spec.mmap_offset as libc::off_t, spec.size as libc::off_t);
        // SAFETY: the call takes no pointers.
        let status = unsafe { libc::fallocate(region.raw_fd(), mode, offset, size) };
        assert_eq!(status, 0, "emptying a region");
        self.state().regions.push(Arriving {
            region: region.clone(),
            base,
            source,
        });
    }

    /// From here on faults are noted and not answered, or (`false`) answered, also those that were noted.
    pub fn hold(&self, hold: bool) {
        let mut state = self.state();
        state.holding = hold;
        if !hold {
            for page in state.wanted.clone() {
                state.supply(page, self.shared.2.as_raw_fd());
            }
        }
    }

    /// Supplies the page at a guest address whether anybody wants it or not.
    pub fn supply(&self, gpa: u64) {
        self.state()
            .supply(gpa / PAGE * PAGE, self.shared.2.as_raw_fd());
    }

    /// Supplies everything that is left; those who wait are told or not.
    pub fn supply_all(&self, wake: bool) {
        let mut state = self.state();
        let pages: Vec<u64> = state
            .regions
            .iter()
            .map(|arriving| arriving.region.spec())
            .flat_map(|spec| (spec.gpa..spec.gpa + spec.size).step_by(PAGE as usize))
            .collect();
        for page in pages {
            state.put(page);
            if wake {
                state.wake(page, self.shared.2.as_raw_fd());
            }
        }
    }

    /// Waits until somebody is stuck on the page at a guest address.
    #[track_caller]
    pub fn wait_wanted(&self, gpa: u64) {
        let (page, deadline) = (gpa / PAGE * PAGE, Deadline::after(TIMEOUT));
        let mut state = self.state();
        while !state.wanted.contains(&page) {
            assert!(
                !deadline.expired(),
                "nobody faults at {page:#x}: {:x?}",
                state.wanted
            );
            let waited = self.shared.1.wait_timeout(state, deadline.remaining());
            state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// Pages that somebody has faulted on so far.
    pub fn wanted(&self) -> Vec<u64> {
        self.state().wanted.iter().copied().collect()
    }

    /// The page at a guest address has not arrived, and nobody has put anything else in its place.
    pub fn is_missing(&self, gpa: u64) -> bool {
        let state = self.state();
        let region = &state.arriving(gpa).region;
        let offset = (gpa - region.spec().gpa + region.spec().mmap_offset) as libc::off_t;
        // SAFETY: the call takes no pointers.
        let data = unsafe { libc::lseek(region.raw_fd(), offset, libc::SEEK_DATA) };
        data < 0 || data >= offset + PAGE as libc::off_t
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = self.quit.signal();
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed, and fails the test by what it leaves undone.
            let _ = thread.join();
        }
    }
}

impl State {
    fn arriving(&self, gpa: u64) -> &Arriving {
        let holds = |arriving: &&Arriving| arriving.region.host(gpa, 1).is_ok();
        self.regions.iter().find(holds).expect("a guest address")
    }

    /// The guest page of a faulting address.
    fn page_at(&self, address: u64) -> u64 {
        let inside = |arriving: &&Arriving| {
            address >= arriving.base && address - arriving.base < arriving.source.len() as u64
        };
        let arriving = self.regions.iter().find(inside);
        let arriving = arriving.unwrap_or_else(|| panic!("fault at {address:#x}, in no region"));
        let offset = (address - arriving.base) / PAGE * PAGE;
        arriving.region.spec().gpa + offset
    }

    fn supply(&mut self, page: u64, uffd: RawFd) {
        self.put(page);
        self.wake(page, uffd);
    }

    /// The page arrives in the file.
    fn put(&mut self, page: u64) {
        if !self.supplied.insert(page) {
            return;
        }
        let arriving = self.arriving(page);
        let spec = arriving.region.spec();
        let offset = page - spec.gpa;
        let bytes = &arriving.source[offset as usize..][..PAGE as usize];
        let at = (offset + spec.mmap_offset) as libc::off_t;
        let file = arriving.region.raw_fd();
        // SAFETY: `bytes` is readable for its length.
        let written = unsafe { libc::pwrite(file, bytes.as_ptr().cast(), bytes.len(), at) };
        assert_eq!(written, PAGE as isize, "supplying page {page:#x}");
    }

    /// Those who wait for the page look again.
    fn wake(&self, page: u64, uffd: RawFd) {
        let arriving = self.arriving(page);
        let range = [arriving.base + page - arriving.region.spec().gpa, PAGE];
        // SAFETY: the request reads two words.
        let status = unsafe { libc::ioctl(uffd, UFFDIO_WAKE, range.as_ptr()) };
        assert_eq!(status, 0, "waking those who wait for page {page:#x}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// False when it is time to quit.
fn wait(uffd: RawFd, quit: RawFd) -> bool {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(uffd), entry(quit)];
    // SAFETY: two valid entries.
    unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
    entries[1].revents == 0
}

fn read_fault(uffd: RawFd) -> Option<u64> {
    let mut message = [0u8; UFFD_MSG_SIZE];
    // SAFETY: `message` is writable for its length; the descriptor does not block.
    let read = unsafe { libc::read(uffd, message.as_mut_ptr().cast(), message.len()) };
    if read != UFFD_MSG_SIZE as isize {
        return None;
    }
    assert_eq!(message[0], UFFD_EVENT_PAGEFAULT, "userfaultfd event");
    Some(u64::from(wire::u32_at(&message, 16)) | u64::from(wire::u32_at(&message, 20)) << 32)
}

//! Guest memory: regions of memfds, mapped here and described to the back-end.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::error::{Error, Result};
use super::wire::MemRegion;

const PAGE: u64 = 4096;

/// User addresses are made up: a back-end that takes one for an address in
/// some process is wrong, and this makes it visible.
pub const USER_BASE: u64 = 0x7000_0000_0000;

#[derive(Clone, Copy, Debug)]
pub struct RegionSpec {
    pub gpa: u64,
    pub size: u64,
    pub user_addr: u64,
    /// Where the region starts in its file, which is that much longer.
    pub mmap_offset: u64,
    /// Seal the file against shrinking.
    pub sealed: bool,
}

impl RegionSpec {
    /// A region whose user address is its guest address plus a constant.
    pub fn new(gpa: u64, size: u64) -> Self {
        RegionSpec {
            gpa,
            size,
            user_addr: USER_BASE + gpa,
            mmap_offset: 0,
            sealed: false,
        }
    }

    pub fn user_addr(self, user_addr: u64) -> Self {
        RegionSpec { user_addr, ..self }
    }

    pub fn mmap_offset(self, mmap_offset: u64) -> Self {
        RegionSpec {
            mmap_offset,
            ..self
        }
    }

    pub fn sealed(self) -> Self {
        RegionSpec {
            sealed: true,
            ..self
        }
    }
}

/// One region: its file and our mapping of it, unmapped when dropped.
pub struct Region {
    spec: RegionSpec,
    file: OwnedFd,
    mapping: NonNull<u8>,
    mapping_len: usize,
    /// Where byte 0 of the region is in our mapping.
    host: NonNull<u8>,
    /// Bytes handed out from the start of the region.
    allocated: AtomicU64,
}

// SAFETY: the mapping lives as long as the region, and all access to it goes
// through volatile or atomic operations on raw pointers.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    pub fn new(spec: RegionSpec) -> Result<Self> {
        let file = memfd(spec.mmap_offset + spec.size, spec.sealed)?;
        // An offset inside a page is legal in the message, not for mmap.
        let slack = spec.mmap_offset % PAGE;
        let mapping_len = (slack + spec.size) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapping_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                (spec.mmap_offset - slack) as libc::off_t,
            )
        };
        let mapping = match NonNull::new(address.cast::<u8>()) {
            Some(mapping) if address != libc::MAP_FAILED => mapping,
            _ => return Err(Error::last_os(format!("mapping region {spec:x?}"))),
        };
        // SAFETY: `slack` is less than the mapping's length.
        let host = unsafe { mapping.add(slack as usize) };
        Ok(Region {
            spec,
            file,
            mapping,
            mapping_len,
            host,
            allocated: AtomicU64::new(0),
        })
    }

    pub fn spec(&self) -> RegionSpec {
        self.spec
    }

    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn wire(&self) -> MemRegion {
        MemRegion {
            gpa: self.spec.gpa,
            size: self.spec.size,
            user_addr: self.spec.user_addr,
            mmap_offset: self.spec.mmap_offset,
        }
    }

    /// Changes the file's length behind the back-end's back.
    pub fn truncate_file(&self, length: u64) -> Result<()> {
        truncate(&self.file, length)
    }

    /// The next free bytes of this region, as a guest address.
    pub fn alloc(&self, size: u64, align: u64) -> Result<u64> {
        let gpa = self.spec.gpa;
        let fit = |allocated: u64| {
            let start = (gpa + allocated).next_multiple_of(align) - gpa;
            (start, start + size)
        };
        let take = |allocated| {
            let (_, end) = fit(allocated);
            (end <= self.spec.size).then_some(end)
        };
        // Relaxed: the counter orders nothing but itself.
        self.allocated
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map(|before| gpa + fit(before).0)
            .map_err(|used| {
                Error::Broken(format!(
                    "guest memory: {size} bytes wanted, {used} of {} used in region {gpa:#x}",
                    self.spec.size
                ))
            })
    }

    fn contains(&self, gpa: u64, len: u64) -> bool {
        gpa >= self.spec.gpa && len <= self.spec.size && gpa - self.spec.gpa <= self.spec.size - len
    }

    /// Our address of `len` bytes at `gpa`.
    pub fn host(&self, gpa: u64, len: u64) -> Result<NonNull<u8>> {
        if !self.contains(gpa, len) {
            return Err(outside(gpa, len));
        }
        // SAFETY: the offset is inside the region, which is mapped whole.
        Ok(unsafe { self.host.add((gpa - self.spec.gpa) as usize) })
    }

    /// The 16-bit field at `gpa`, which must be aligned.
    pub fn atomic_u16(&self, gpa: u64) -> Result<&AtomicU16> {
        let host = self.host(gpa, 2)?.cast::<u16>();
        if !host.is_aligned() {
            return Err(Error::Broken(format!("guest address {gpa:#x} is odd")));
        }
        // SAFETY: aligned, inside the mapping, which lives as long as `self`;
        // nobody in this process accesses index fields but atomically.
        Ok(unsafe { AtomicU16::from_ptr(host.as_ptr()) })
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let to = self.host(gpa, bytes.len() as u64)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            // SAFETY: `host` checked that so many bytes are mapped here.
            let to = unsafe { to.add(bytes.len() - rest.len()) };
            match rest.split_first_chunk::<8>() {
                Some((word, tail)) if to.cast::<u64>().is_aligned() => {
                    // SAFETY: aligned, and eight of the checked bytes.
                    unsafe { to.cast().write_volatile(u64::from_ne_bytes(*word)) };
                    rest = tail;
                }
                _ => {
                    // SAFETY: one of the checked bytes.
                    unsafe { to.write_volatile(rest[0]) };
                    rest = &rest[1..];
                }
            }
        }
        Ok(())
    }

    pub fn read_into(&self, gpa: u64, bytes: &mut [u8]) -> Result<()> {
        let length = bytes.len();
        let from = self.host(gpa, length as u64)?;
        let mut done = 0;
        while done < length {
            // SAFETY: `host` checked that so many bytes are mapped here.
            let from = unsafe { from.add(done) };
            match bytes[done..].first_chunk_mut::<8>() {
                Some(chunk) if from.cast::<u64>().is_aligned() => {
                    // SAFETY: aligned, and eight of the checked bytes.
                    let word: u64 = unsafe { from.cast().read_volatile() };
                    *chunk = word.to_ne_bytes();
                    done += 8;
                }
                _ => {
                    // SAFETY: one of the checked bytes.
                    bytes[done] = unsafe { from.read_volatile() };
                    done += 1;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned; no pointer into it is left.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_len) };
    }
}

fn memfd(length: u64, sealed: bool) -> Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a terminated string.
    let fd = unsafe { libc::memfd_create(c"sim-guest".as_ptr(), flags) };
    if fd < 0 {
        return Err(Error::last_os("memfd_create"));
    }
    // SAFETY: `fd` is new and owned by nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    truncate(&file, length)?;
    // SAFETY: the call takes no pointers.
    if sealed && unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } < 0 {
        return Err(Error::last_os("sealing a memfd"));
    }
    Ok(file)
}

fn truncate(file: &OwnedFd, length: u64) -> Result<()> {
    // SAFETY: the call takes no pointers.
    if unsafe { libc::ftruncate(file.as_raw_fd(), length as libc::off_t) } < 0 {
        return Err(Error::last_os(format!(
            "setting a file's length to {length}"
        )));
    }
    Ok(())
}

fn outside(gpa: u64, len: u64) -> Error {
    Error::Broken(format!(
        "guest memory: {len} bytes at {gpa:#x} are not mapped"
    ))
}

/// The guest's RAM. Regions come and go while drivers run: a driver keeps
/// the regions that its ring lies in.
pub struct GuestMemory {
    regions: RwLock<Vec<Arc<Region>>>,
}

impl GuestMemory {
    pub fn new(specs: &[RegionSpec]) -> Result<Arc<Self>> {
        let memory = GuestMemory {
            regions: RwLock::new(Vec::new()),
        };
        for spec in specs {
            memory.add(*spec)?;
        }
        Ok(Arc::new(memory))
    }

    /// One region from guest address 0.
    pub fn flat(size: u64) -> Result<Arc<Self>> {
        Self::new(&[RegionSpec::new(0, size)])
    }

    /// Adds a region here; telling the back-end is the caller's business.
    pub fn add(&self, spec: RegionSpec) -> Result<Arc<Region>> {
        let region = Arc::new(Region::new(spec)?);
        self.lock_mut().push(Arc::clone(&region));
        Ok(region)
    }

    /// Takes the region that starts at `gpa` out of the guest.
    pub fn remove(&self, gpa: u64) -> Result<Arc<Region>> {
        let mut regions = self.lock_mut();
        match regions.iter().position(|region| region.spec.gpa == gpa) {
            Some(index) => Ok(regions.remove(index)),
            None => Err(outside(gpa, 0)),
        }
    }

    pub fn regions(&self) -> Vec<Arc<Region>> {
        self.lock().clone()
    }

    /// The region that holds all of `len` bytes at `gpa`.
    pub fn region_at(&self, gpa: u64, len: u64) -> Result<Arc<Region>> {
        self.lock()
            .iter()
            .find(|region| region.contains(gpa, len))
            .cloned()
            .ok_or_else(|| outside(gpa, len))
    }

    pub fn user_addr(&self, gpa: u64) -> Result<u64> {
        let spec = self.region_at(gpa, 1)?.spec;
        Ok(gpa - spec.gpa + spec.user_addr)
    }

    /// Bytes from the first region with room. Never given back.
    pub fn alloc(&self, size: u64, align: u64) -> Result<u64> {
        let mut failure = outside(0, size);
        for region in self.lock().iter() {
            match region.alloc(size, align) {
                Ok(gpa) => return Ok(gpa),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Writes guest-physically contiguous bytes, across regions if need be.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (region, count) = self.stretch(gpa + done as u64, bytes.len() - done)?;
            region.write(gpa + done as u64, &bytes[done..done + count])?;
            done += count;
        }
        Ok(())
    }

    /// Reads guest-physically contiguous bytes, across regions if need be.
    pub fn read(&self, gpa: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let (region, count) = self.stretch(gpa + done as u64, len - done)?;
            region.read_into(gpa + done as u64, &mut bytes[done..done + count])?;
            done += count;
        }
        Ok(bytes)
    }

    /// The region at `gpa`, and how many of `len` bytes from there are in it.
    fn stretch(&self, gpa: u64, len: usize) -> Result<(Arc<Region>, usize)> {
        let region = self.region_at(gpa, 1)?;
        let inside = region.spec.size - (gpa - region.spec.gpa);
        let count = len.min(usize::try_from(inside).unwrap_or(usize::MAX));
        Ok((region, count))
    }

    pub fn fill(&self, gpa: u64, len: usize, byte: u8) -> Result<()> {
        self.write(gpa, &vec![byte; len])
    }

    fn lock(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Region>>> {
        // A panicking test leaves the list as it was.
        self.regions
            .read()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn lock_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<Region>>> {
        self.regions
            .write()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}

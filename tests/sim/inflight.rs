//! The in-flight area as the front-end keeps it.

use super::error::{Error, Result};
use super::frontend::Frontend;
use super::shared::SharedFile;
use super::wire::{self, req};

const HEAD: usize = 16;
const ENTRY: usize = 16;

pub struct Inflight {
    pub file: SharedFile,
    pub queues: u16,
    pub queue_size: u16,
}

impl Inflight {
    /// An area of zeroes that the front-end made by itself.
    pub fn new(queues: u16, queue_size: u16) -> Result<Self> {
        let len = usize::from(queues) * Self::region_size(queue_size);
        Ok(Inflight {
            file: SharedFile::new(len)?,
            queues,
            queue_size,
        })
    }

    pub fn region_size(queue_size: u16) -> usize {
        (HEAD + ENTRY * usize::from(queue_size)).next_multiple_of(64)
    }

    pub fn body(&self) -> Vec<u8> {
        wire::inflight(self.file.len() as u64, 0, self.queues, self.queue_size)
    }

    fn region(&self, queue: usize) -> usize {
        queue * Self::region_size(self.queue_size)
    }

    /// One of the four fields before the entries: 8 version, 10 desc_num, 12 last_batch_head, 14 used_idx.
    pub fn set_field(&self, queue: usize, at: usize, value: u16) {
        self.file
            .write(self.region(queue) + at, &value.to_ne_bytes());
    }

    pub fn field(&self, queue: usize, at: usize) -> u16 {
        let bytes = self.file.read(self.region(queue) + at, 2);
        u16::from_ne_bytes([bytes[0], bytes[1]])
    }

    pub fn set_entry(&self, queue: usize, head: u16, in_flight: u8, next: u16, counter: u64) {
        let at = self.region(queue) + HEAD + ENTRY * usize::from(head);
        self.file.write(at, &[in_flight]);
        self.file.write(at + 6, &next.to_ne_bytes());
        self.file.write(at + 8, &counter.to_ne_bytes());
    }

    /// Heads that are marked, in the order of their counters.
    pub fn marked(&self, queue: usize) -> Vec<u16> {
        let mut marked: Vec<(u64, u16)> = (0..self.queue_size)
            .filter_map(|head| {
                let at = self.region(queue) + HEAD + ENTRY * usize::from(head);
                let entry = self.file.read(at, ENTRY);
                let counter = entry[8..16].try_into().map(u64::from_ne_bytes);
                (entry[0] != 0).then(|| (counter.unwrap_or(0), head))
            })
            .collect();
        marked.sort_unstable();
        marked.into_iter().map(|(_, head)| head).collect()
    }
}

impl Frontend {
    pub fn get_inflight_fd(&self, queues: u16, queue_size: u16) -> Result<Inflight> {
        let body = wire::inflight(0, 0, queues, queue_size);
        let mut reply = self.request(req::GET_INFLIGHT_FD, &body, &[])?;
        let len = usize::from(queues) * Inflight::region_size(queue_size);
        let wanted = wire::inflight(len as u64, 0, queues, queue_size);
        match reply.fds.pop() {
            Some(fd) if reply.body == wanted && reply.fds.is_empty() => Ok(Inflight {
                file: SharedFile::over(fd, len)?,
                queues,
                queue_size,
            }),
            _ => Err(Error::Broken(format!(
                "reply to GET_INFLIGHT_FD: {:x?}, want {wanted:x?} and one fd",
                reply.body
            ))),
        }
    }

    pub fn set_inflight_fd(&self, area: &Inflight) -> Result<()> {
        self.set(req::SET_INFLIGHT_FD, &area.body(), &[area.file.raw_fd()])
    }
}

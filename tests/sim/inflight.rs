//! The in-flight area as the front-end keeps it.

use super::error::{Error, Result};
use super::frontend::Frontend;
use super::shared::SharedFile;
use super::wire::{self, req};

/// Bytes before the entries of a region and of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    head: usize,
    entry: usize,
}

impl Form {
    pub const SPLIT: Form = Form {
        head: 16,
        entry: 16,
    };
    pub const PACKED: Form = Form {
        head: 32,
        entry: 32,
    };

    pub fn region_size(self, queue_size: u16) -> usize {
        (self.head + self.entry * usize::from(queue_size)).next_multiple_of(64)
    }
}

pub struct Inflight {
    pub file: SharedFile,
    pub queues: u16,
    pub queue_size: u16,
    form: Form,
}

impl Inflight {
    /// An area of zeroes that the front-end made by itself.
    pub fn new(queues: u16, queue_size: u16) -> Result<Self> {
        let len = usize::from(queues) * Self::region_size(queue_size);
        Ok(Inflight {
            file: SharedFile::new(len)?,
            queues,
            queue_size,
            form: Form::SPLIT,
        })
    }

    /// Of a split ring.
    pub fn region_size(queue_size: u16) -> usize {
        Form::SPLIT.region_size(queue_size)
    }

    pub fn body(&self) -> Vec<u8> {
        wire::inflight(self.file.len() as u64, 0, self.queues, self.queue_size)
    }

    fn region(&self, queue: usize) -> usize {
        queue * self.form.region_size(self.queue_size)
    }

    fn entry(&self, queue: usize, index: u16) -> usize {
        self.region(queue) + self.form.head + self.form.entry * usize::from(index)
    }

    /// As a front-end's that has just got it: nobody has used it.
    pub fn clear(&self) {
        self.file.write(0, &vec![0; self.file.len()]);
    }

    /// A field before the entries. Split: 8 version, 10 desc_num, 12 last_batch_head, 14 used_idx. Packed: 8 version,
    /// 10 desc_num, 12 free_head, 14 old_free_head, 16 used_idx, 18 old_used_idx, 20 both wrap counters.
    pub fn set_field(&self, queue: usize, at: usize, value: u16) {
        self.file
            .write(self.region(queue) + at, &value.to_ne_bytes());
    }

    pub fn field(&self, queue: usize, at: usize) -> u16 {
        let bytes = self.file.read(self.region(queue) + at, 2);
        u16::from_ne_bytes([bytes[0], bytes[1]])
    }

    /// Of a split ring.
    pub fn set_entry(&self, queue: usize, head: u16, in_flight: u8, next: u16, counter: u64) {
        let at = self.entry(queue, head);
        self.file.write(at, &[in_flight]);
        self.file.write(at + 6, &next.to_ne_bytes());
        self.file.write(at + 8, &counter.to_ne_bytes());
    }

    /// Of a packed ring: a chain of `num` descriptors of which this is the first and the last; its buffer is writable.
    pub fn set_desc(&self, queue: usize, entry: u16, in_flight: u8, num: u16, addr: u64) {
        let at = self.entry(queue, entry);
        let [last, num, id, flags] = [entry, num, entry, 2].map(u16::to_ne_bytes);
        self.file.write(at, &[in_flight]);
        for (field, value) in [(4, last), (6, num), (16, id), (18, flags)] {
            self.file.write(at + field, &value);
        }
        self.file.write(at + 20, &8u32.to_ne_bytes());
        self.file.write(at + 24, &addr.to_ne_bytes());
    }

    /// Heads that are marked, in the order of their counters.
    pub fn marked(&self, queue: usize) -> Vec<u16> {
        let mut marked: Vec<(u64, u16)> = (0..self.queue_size)
            .filter_map(|head| {
                let at = self.entry(queue, head);
                let entry = self.file.read(at, 16);
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
        self.get_inflight_fd_of(Form::SPLIT, queues, queue_size)
    }

    pub fn get_inflight_fd_of(&self, form: Form, queues: u16, queue_size: u16) -> Result<Inflight> {
        let body = wire::inflight(0, 0, queues, queue_size);
        let mut reply = self.request(req::GET_INFLIGHT_FD, &body, &[])?;
        let len = usize::from(queues) * form.region_size(queue_size);
        let wanted = wire::inflight(len as u64, 0, queues, queue_size);
        match reply.fds.pop() {
            Some(fd) if reply.body == wanted && reply.fds.is_empty() => Ok(Inflight {
                file: SharedFile::over(fd, len)?,
                queues,
                queue_size,
                form,
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

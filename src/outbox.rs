//! Requests of this back-end to the front-end, from any thread, on their way to the internal thread.
//!
//! Nobody waits here: a request is queued or refused at once. What wants an answer is bounded in number, by a
//! permit that it holds until its answer was heard in the home context, and in time.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::protocol::features::ProtocolFeatures;
use crate::protocol::requests::{backend_id, backend_request_name};
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering};

/// Requests that wait to be sent.
const MAX_QUEUED: usize = 256;
/// Requests whose answer has not been heard.
pub(crate) const MAX_AWAITED: usize = 64;

type Done = dyn FnOnce(Result<Option<OwnedFd>>) + Send;

/// The application's function that hears the answer, once.
pub(crate) struct Completion {
    done: Box<Done>,
    /// `None`: there is no limit.
    pub(crate) deadline: Option<Instant>,
    permit: Permit,
}

impl Completion {
    pub(crate) fn with(self, result: Result<Option<OwnedFd>>) -> Finished {
        Finished {
            completion: self,
            result,
        }
    }

    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// An answer that has not been heard yet.
pub(crate) struct Finished {
    completion: Completion,
    result: Result<Option<OwnedFd>>,
}

impl Finished {
    /// The owner of the home context, inside a callback.
    pub(crate) fn tell(self) {
        let Completion { done, permit, .. } = self.completion;
        // Before: who asks again in there finds room.
        drop(permit);
        done(self.result);
    }
}

impl std::fmt::Debug for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Finished({:?})", self.result)
    }
}

/// One of [`MAX_AWAITED`].
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        // Relaxed: a number that orders nothing.
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < MAX_AWAITED).then_some(n + 1)
            })
            .ok()
            .map(|_| Permit(taken.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request asks the front-end for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nothing,
    /// An acknowledgement, if that is negotiated.
    Ack,
    /// Its own reply, which brings a descriptor.
    Descriptor,
}

pub(crate) struct Request {
    pub(crate) id: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) reply: Reply,
    pub(crate) completion: Option<Completion>,
}

/// The protocol feature without which a request must not be sent.
fn needed(id: u32) -> ProtocolFeatures {
    match id {
        backend_id::CONFIG_CHANGE_MSG => ProtocolFeatures::CONFIG,
        backend_id::VRING_HOST_NOTIFIER_MSG => ProtocolFeatures::HOST_NOTIFIER,
        backend_id::VRING_CALL | backend_id::VRING_ERR => ProtocolFeatures::INBAND_NOTIFICATIONS,
        backend_id::SHARED_OBJECT_ADD
        | backend_id::SHARED_OBJECT_REMOVE
        | backend_id::SHARED_OBJECT_LOOKUP => ProtocolFeatures::SHARED_OBJECT,
        backend_id::SHMEM_MAP | backend_id::SHMEM_UNMAP => ProtocolFeatures::SHMEM,
        _ => ProtocolFeatures::empty(),
    }
}

struct Inner {
    /// What the front-end has negotiated; `None` without a channel.
    channel: Option<ProtocolFeatures>,
    queue: VecDeque<Request>,
}

pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    awaited: Arc<AtomicUsize>,
    /// More notices than this have no ring or config space to speak of.
    max_notices: usize,
}

impl Outbox {
    pub(crate) fn new(num_queues: u32) -> Self {
        Outbox {
            inner: Mutex::new(Inner {
                channel: None,
                queue: VecDeque::new(),
            }),
            awaited: Arc::new(AtomicUsize::new(0)),
            // Each queue may have a call, an error and a translation to ask for.
            max_notices: MAX_QUEUED + 4 * num_queues as usize,
        }
    }

    // ---- any thread -------------------------------------------------------------------------------------

    /// Queues a notice: a request of which nobody hears the end. One that waits already is enough.
    pub(crate) fn notice(&self, id: u32, body: &[u8], reply: Reply) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.check(id, false)?;
        if inner
            .queue
            .iter()
            .any(|waiting| waiting.is_notice(id, body))
        {
            return Ok(());
        }
        if inner.queue.len() >= self.max_notices {
            return Err(full(id));
        }
        inner.queue.push_back(Request {
            id,
            body: body.to_vec(),
            fds: Vec::new(),
            reply,
            completion: None,
        });
        Ok(())
    }

    /// Queues a request; `done` is called in the home context.
    pub(crate) fn request(
        &self,
        id: u32,
        body: Vec<u8>,
        fd: Option<OwnedFd>,
        reply: Reply,
        timeout: Option<Duration>,
        done: Box<Done>,
    ) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.check(id, fd.is_some())?;
        if inner.queue.len() >= MAX_QUEUED {
            return Err(full(id));
        }
        let permit = Permit::take(&self.awaited).ok_or_else(|| full(id))?;
        inner.queue.push_back(Request {
            id,
            body,
            fds: fd.into_iter().collect(),
            reply,
            completion: Some(Completion {
                done,
                deadline: timeout.map(|timeout| Instant::now() + timeout),
                permit,
            }),
        });
        Ok(())
    }

    // ---- the internal thread ----------------------------------------------------------------------------

    /// There is a channel (a new one, or other features for the one that there was).
    pub(crate) fn open(&self, features: ProtocolFeatures) {
        self.inner.lock().channel = Some(features);
    }

    /// There is none any more.
    pub(crate) fn close(&self) -> Vec<Completion> {
        let mut inner = self.inner.lock();
        inner.channel = None;
        let dropped = std::mem::take(&mut inner.queue);
        drop(inner);
        dropped.into_iter().filter_map(|r| r.completion).collect()
    }

    /// Another one takes its place: notices move there.
    pub(crate) fn reopen(&self) -> Vec<Completion> {
        self.remove(|request| request.completion.is_some())
    }

    /// What has waited too long.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<Completion> {
        self.remove(|request| {
            let completion = request.completion.as_ref();
            completion.is_some_and(|completion| completion.is_overdue(now))
        })
    }

    fn remove(&self, which: impl Fn(&Request) -> bool) -> Vec<Completion> {
        let mut inner = self.inner.lock();
        let (gone, kept): (VecDeque<_>, _) = inner.queue.drain(..).partition(which);
        inner.queue = kept;
        drop(inner);
        gone.into_iter().filter_map(|r| r.completion).collect()
    }

    pub(crate) fn next(&self) -> Option<Request> {
        self.inner.lock().queue.pop_front()
    }

    pub(crate) fn earliest_deadline(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        let completions = inner.queue.iter().filter_map(|r| r.completion.as_ref());
        completions.filter_map(|c| c.deadline).min()
    }
}

impl Request {
    fn is_notice(&self, id: u32, body: &[u8]) -> bool {
        self.completion.is_none() && self.id == id && self.body == body
    }
}

impl Inner {
    fn check(&self, id: u32, with_fd: bool) -> Result<()> {
        let name = backend_request_name(id);
        let Some(negotiated) = self.channel else {
            return Err(Error::new(
                libc::ENOTCONN,
                format!("{name}: the front-end has given no channel"),
            ));
        };
        let fd = if with_fd {
            ProtocolFeatures::BACKEND_SEND_FD
        } else {
            ProtocolFeatures::empty()
        };
        let missing = (needed(id) | fd).difference(negotiated);
        if !missing.is_empty() {
            return Err(Error::new(
                libc::EOPNOTSUPP,
                format!("{name}: protocol feature {missing:?}: not negotiated"),
            ));
        }
        Ok(())
    }
}

fn full(id: u32) -> Error {
    Error::new(
        libc::EAGAIN,
        format!("{}: too many requests wait", backend_request_name(id)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(features: ProtocolFeatures) -> Outbox {
        let outbox = Outbox::new(2);
        outbox.open(features);
        outbox
    }

    fn add(outbox: &Outbox) -> Result<()> {
        let done = Box::new(|_| {});
        let id = backend_id::SHARED_OBJECT_ADD;
        outbox.request(id, vec![0; 16], None, Reply::Ack, None, done)
    }

    #[test]
    fn what_cannot_be_sent_is_refused_at_once() {
        let closed = Outbox::new(1);
        assert_eq!(add(&closed).unwrap_err().errno(), libc::ENOTCONN);
        let without = outbox(ProtocolFeatures::SHMEM);
        assert_eq!(add(&without).unwrap_err().errno(), libc::EOPNOTSUPP);
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let error = without
            .request(
                backend_id::SHMEM_MAP,
                Vec::new(),
                Some(fd),
                Reply::Ack,
                None,
                Box::new(|_| {}),
            )
            .unwrap_err();
        assert!(error.message().contains("BACKEND_SEND_FD"), "{error}");
    }

    #[test]
    fn answers_are_bounded_until_they_are_heard() {
        let outbox = outbox(ProtocolFeatures::SHARED_OBJECT);
        for _ in 0..MAX_AWAITED {
            add(&outbox).unwrap();
        }
        assert_eq!(add(&outbox).unwrap_err().errno(), libc::EAGAIN);
        let sent = outbox.next().unwrap();
        assert_eq!(add(&outbox).unwrap_err().errno(), libc::EAGAIN);
        let finished = sent.completion.map(|c| c.with(Ok(None))).unwrap();
        assert_eq!(add(&outbox).unwrap_err().errno(), libc::EAGAIN);
        finished.tell();
        add(&outbox).unwrap();
        assert_eq!(outbox.close().len(), MAX_AWAITED);
        assert!(outbox.next().is_none());
    }

    #[test]
    fn notices_merge_while_they_wait_and_are_bounded() {
        let outbox = outbox(ProtocolFeatures::INBAND_NOTIFICATIONS);
        let call =
            |index: u32| outbox.notice(backend_id::VRING_CALL, &index.to_ne_bytes(), Reply::Ack);
        for index in [0, 1, 0, 1] {
            call(index).unwrap();
        }
        let bodies: Vec<_> = std::iter::from_fn(|| outbox.next().map(|r| r.body)).collect();
        assert_eq!(bodies, [0u32.to_ne_bytes(), 1u32.to_ne_bytes()]);
        let full = (0..).find(|&index| call(index).is_err());
        assert_eq!(full, Some(MAX_QUEUED as u32 + 8));
    }

    #[test]
    fn a_new_channel_gets_the_notices_and_not_the_requests() {
        let outbox = outbox(ProtocolFeatures::SHARED_OBJECT | ProtocolFeatures::CONFIG);
        add(&outbox).unwrap();
        outbox
            .notice(backend_id::CONFIG_CHANGE_MSG, &[], Reply::Nothing)
            .unwrap();
        assert_eq!(outbox.reopen().len(), 1);
        let next = outbox.next().unwrap();
        assert_eq!(next.id, backend_id::CONFIG_CHANGE_MSG);
        assert!(outbox.next().is_none());
    }
}

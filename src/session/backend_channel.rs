//! The channel on which this back-end sends requests to the front-end.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::socket::{SockType, UnixAddr, getpeername, getsockname, getsockopt, sockopt};
use nix::sys::stat::fstat;

use crate::error::{Error, Result};
use crate::outbox::{Completion, MAX_AWAITED, Reply, Request};
use crate::protocol::features::ProtocolFeatures;
use crate::protocol::messages::decode_u64;
use crate::protocol::requests::{backend_id, backend_request_name};
use crate::stats::count;
use crate::stream::Event;
use crate::transport::{Expect, Message, Transport};

use super::Session;
use super::dispatch::{Answer, Handled};

pub(super) struct BackendChannel {
    transport: Transport,
    /// Requests that the front-end has to answer, in the order in which they were sent.
    awaited: VecDeque<Awaited>,
}

struct Awaited {
    id: u32,
    reply: Reply,
    /// Who hears the answer; `None` also when the time for it is over.
    completion: Option<Completion>,
}

impl BackendChannel {
    /// Accepts a connected UNIX stream socket that is not `connection` itself.
    fn new(fd: OwnedFd, connection: BorrowedFd<'_>) -> Result<Self> {
        let invalid = |what: &str| Error::invalid(format!("back-end channel descriptor: {what}"));
        let kind = getsockopt(&fd, sockopt::SockType).map_err(|_| invalid("not a socket"))?;
        let local = getsockname::<UnixAddr>(fd.as_raw_fd()).ok();
        if kind != SockType::Stream || local.is_none() {
            return Err(invalid("not a UNIX stream socket"));
        }
        if getpeername::<UnixAddr>(fd.as_raw_fd()).is_err() {
            return Err(invalid("not connected"));
        }
        if is_an_end_of(fd.as_fd(), connection)? {
            return Err(invalid("the connection itself"));
        }
        Ok(BackendChannel {
            transport: Transport::new(fd, Expect::Replies),
            awaited: VecDeque::new(),
        })
    }

    pub(super) fn interest(&self) -> PollFlags {
        if self.transport.wants_write() {
            PollFlags::POLLIN | PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        }
    }

    /// The front-end reads, and does not owe more answers than we remember.
    fn has_room(&mut self) -> Result<bool> {
        let flushed = self
            .transport
            .flush()
            .map_err(|e| Error::new(e.errno(), e.to_string()))?;
        Ok(flushed && self.awaited.len() < MAX_AWAITED)
    }

    /// Hands a request to the socket. The completion comes back if no answer will come.
    fn send(&mut self, request: Request, reply_ack: bool) -> Option<Completion> {
        let Request {
            id,
            body,
            fds,
            reply,
            completion,
        } = request;
        let need_reply = reply_ack && reply != Reply::Nothing;
        self.transport
            .enqueue(Message::request(id, need_reply, body, fds));
        if !need_reply && reply != Reply::Descriptor {
            return completion;
        }
        self.awaited.push_back(Awaited {
            id,
            reply,
            completion,
        });
        None
    }

    /// The answer to the oldest request, or the end of the channel.
    fn answered(
        &mut self,
        message: Message,
    ) -> Result<Option<(Completion, Result<Option<OwnedFd>>)>> {
        let id = message.header.request;
        let wrong = |what: String| Error::new(libc::EPROTO, format!("reply {id}: {what}"));
        let Some(awaited) = self.awaited.front() else {
            return Err(wrong("nobody asked".into()));
        };
        if awaited.id != id {
            let due = backend_request_name(awaited.id);
            return Err(wrong(format!("the one to {due} is due")));
        }
        let value = decode_u64(&message.body).map_err(|e| wrong(e.to_string()))?;
        let wanted = awaited.reply == Reply::Descriptor;
        let most = usize::from(wanted && value == 0);
        if message.fds.len() > most {
            let fds = message.fds.len();
            return Err(wrong(format!("{fds} descriptors, at most {most}")));
        }
        let completion = self.awaited.pop_front().and_then(|a| a.completion);
        let refused = |what: String| {
            let name = backend_request_name(id);
            Err(Error::new(libc::EREMOTEIO, format!("{name}: {what}")))
        };
        let result = match (value, message.fds.into_iter().next()) {
            // QEMU says that it has found an object and yet sends no descriptor on this socket.
            (0, None) if wanted => refused("the front-end sent no descriptor".into()),
            (0, fd) => Ok(fd),
            (value, _) => refused(format!("the front-end answered {value:#x}")),
        };
        Ok(completion.map(|completion| (completion, result)))
    }

    /// The answers are still awaited, since they come in order; but nobody hears them any more.
    fn overdue(&mut self, now: Instant) -> Vec<Completion> {
        self.awaited
            .iter_mut()
            .filter_map(|awaited| awaited.completion.take_if(|c| c.is_overdue(now)))
            .collect()
    }

    fn earliest_deadline(&self) -> Option<Instant> {
        let completions = self.awaited.iter().filter_map(|a| a.completion.as_ref());
        completions.filter_map(|c| c.deadline).min()
    }
}
/// Whether `fd` is one of the two ends of `connection`. Ours is the same file; the front-end's has the names of ours
/// the other way round, and one of them is the path at which the connection was made.
fn is_an_end_of(fd: BorrowedFd<'_>, connection: BorrowedFd<'_>) -> Result<bool> {
    let (own, other) = (fstat(connection)?, fstat(fd)?);
    if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino) {
        return Ok(true);
    }
    let names = |fd: BorrowedFd<'_>| -> Result<(UnixAddr, UnixAddr)> {
        Ok((getsockname(fd.as_raw_fd())?, getpeername(fd.as_raw_fd())?))
    };
    let ((local, peer), (other_local, other_peer)) = (names(connection)?, names(fd)?);
    let is_named = |name: &UnixAddr| name.path().is_some() || name.as_abstract().is_some();
    Ok((is_named(&local) && local == other_peer) || (is_named(&peer) && peer == other_local))
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

impl Session {
    pub(super) fn set_backend_req_fd(&mut self, message: &mut Message) -> Handled {
        if let Some(fd) = message.fds.pop() {
            let channel = BackendChannel::new(fd, self.transport.as_fd())?;
            if let Some(old) = self.backend.replace(channel) {
                let waiting = old.awaited.into_iter().filter_map(|a| a.completion);
                self.cancel(waiting.chain(self.shared.outbox.reopen()), libc::ECANCELED);
            }
            self.shared.outbox.open(self.protocol_features);
            self.call_all_in_band();
            self.ask_again();
        }
        Ok(Answer::Done)
    }

    /// The front-end has negotiated other features.
    pub(super) fn refresh_channel(&self) {
        if self.backend.is_some() {
            self.shared.outbox.open(self.protocol_features);
        }
    }

    /// Sends what waits, as far as the front-end takes it.
    pub(super) fn serve_channel(&mut self) {
        self.expire();
        if let Err(error) = self.try_send() {
            self.lose_channel(&error);
        }
    }

    fn try_send(&mut self) -> Result<()> {
        let reply_ack = self.protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        let Some(channel) = &mut self.backend else {
            return Ok(());
        };
        while channel.has_room()? {
            let Some(request) = self.shared.outbox.next() else {
                break;
            };
            self.shared.logger.debug(format_args!(
                "to the front-end: {} ({}), {} bytes, {} descriptors",
                backend_request_name(request.id),
                request.id,
                request.body.len(),
                request.fds.len()
            ));
            count(&self.shared.counters.backend_requests);
            if request.id == backend_id::CONFIG_CHANGE_MSG {
                count(&self.shared.counters.config_changes);
            }
            if let Some(completion) = channel.send(request, reply_ack) {
                let finished = completion.with(Ok(None));
                self.shared.stream.push(Event::Completed(finished));
            }
        }
        Ok(())
    }

    /// Takes in the front-end's answers. What is not one ends the channel; the connection goes on without.
    pub(super) fn read_backend(&mut self) {
        while let Some(channel) = &mut self.backend {
            let received = channel.transport.receive();
            let answered = match received {
                Ok(None) => return,
                Ok(Some(message)) => channel.answered(message),
                Err(error) => Err(Error::new(error.errno(), error.to_string())),
            };
            match answered {
                Ok(Some((completion, result))) => {
                    if let Err(error) = &result {
                        count(&self.shared.counters.backend_failures);
                        self.shared.logger.warning(format_args!("{error}"));
                    }
                    let finished = completion.with(result);
                    self.shared.stream.push(Event::Completed(finished));
                }
                Ok(None) => {}
                Err(error) => self.lose_channel(&error),
            }
        }
    }

    fn lose_channel(&mut self, why: &Error) {
        self.shared
            .logger
            .info(format_args!("the back-end channel has ended: {why}"));
        self.close_channel();
    }

    /// There is no channel any more: whoever waits for an answer hears that none will come.
    pub(super) fn close_channel(&mut self) {
        let unsent = self.shared.outbox.close();
        let sent = self.backend.take().map(|channel| channel.awaited);
        let sent = sent.into_iter().flatten().filter_map(|a| a.completion);
        self.cancel(sent.chain(unsent), libc::ECANCELED);
    }

    fn expire(&mut self) {
        let now = Instant::now();
        if self
            .channel_deadline()
            .is_none_or(|deadline| deadline > now)
        {
            return;
        }
        let sent = self.backend.as_mut().map(|channel| channel.overdue(now));
        let unsent = self.shared.outbox.overdue(now);
        self.cancel(sent.into_iter().flatten().chain(unsent), libc::ETIMEDOUT);
    }

    /// When the next answer is overdue.
    pub(super) fn channel_deadline(&self) -> Option<Instant> {
        let channel = self.backend.as_ref()?;
        let unsent = self.shared.outbox.earliest_deadline();
        channel.earliest_deadline().into_iter().chain(unsent).min()
    }

    fn cancel(&self, completions: impl Iterator<Item = Completion>, errno: i32) {
        let why = match errno {
            libc::ETIMEDOUT => "the front-end has not answered in time",
            _ => "the channel to the front-end has ended",
        };
        for completion in completions {
            count(&self.shared.counters.backend_failures);
            let finished = completion.with(Err(Error::new(errno, why)));
            self.shared.stream.push(Event::Completed(finished));
        }
    }
}

//! A transfer of the device's state through a pipe, piece by piece. Nothing here waits: not for the peer, not for the device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::protocol::messages::DeviceStateTransfer as Direction;
use crate::question::{Answer, Question};
use crate::shared::Shared;
use crate::stream::Event;
use crate::sync::Arc;
use crate::virtqueue::signal::set_nonblocking;

/// All that there is of the state in this process's memory, whatever its size.
const PIECE: usize = 256 << 10;

pub(super) struct Transfer {
    channel: OwnedFd,
    direction: Direction,
    /// How much of the state has passed.
    offset: u64,
    stage: Stage,
}

enum Stage {
    /// The device has a piece to fill or to read.
    Asked { number: u64, piece: Answer<Piece> },
    /// A piece goes through the channel: so many bytes of it have.
    Moving { buffer: Vec<u8>, moved: usize },
}

/// What the device gives back.
struct Piece {
    buffer: Vec<u8>,
    /// How much of it is filled; when loading, all.
    result: Result<usize>,
}

impl Transfer {
    /// # Errors
    /// The channel is not one that this side can use as `direction` says.
    pub(super) fn begin(
        direction: Direction,
        channel: OwnedFd,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        check(direction, channel.as_fd())?;
        set_nonblocking(channel.as_fd())?;
        let buffer = vec![0; PIECE];
        let stage = match direction {
            Direction::Save => ask(shared, direction, 0, buffer),
            Direction::Load => Stage::Moving { buffer, moved: 0 },
        };
        Ok(Transfer {
            channel,
            direction,
            offset: 0,
            stage,
        })
    }

    /// What to wait for in the channel; the device's answer rings.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let events = match (&self.stage, self.direction) {
            (Stage::Asked { .. }, _) => return None,
            (Stage::Moving { .. }, Direction::Save) => PollFlags::POLLOUT,
            (Stage::Moving { .. }, Direction::Load) => PollFlags::POLLIN,
        };
        Some((self.channel.as_fd(), events))
    }

    /// Goes on as far as that is possible now. How many bytes there were, or what was wrong, when it is over.
    pub(super) fn advance(&mut self, shared: &Arc<Shared>) -> Option<Result<u64>> {
        self.try_advance(shared).transpose()
    }

    fn try_advance(&mut self, shared: &Arc<Shared>) -> Result<Option<u64>> {
        if let Stage::Asked { piece, .. } = &self.stage {
            let Some(Piece { mut buffer, result }) = piece.take() else {
                return Ok(None);
            };
            buffer.truncate(result?);
            if buffer.is_empty() {
                return Ok(Some(self.offset));
            }
            if self.direction == Direction::Load {
                self.offset += buffer.len() as u64;
                buffer.resize(PIECE, 0);
            }
            self.stage = Stage::Moving { buffer, moved: 0 };
        }
        if let Some(mut buffer) = self.move_piece()? {
            if self.direction == Direction::Save {
                self.offset += buffer.len() as u64;
                buffer.resize(PIECE, 0);
            }
            self.stage = ask(shared, self.direction, self.offset, buffer);
        }
        Ok(None)
    }

    /// Moves what the channel takes or has. The piece when it is through: written, or as much as there was to read.
    fn move_piece(&mut self) -> Result<Option<Vec<u8>>> {
        let Stage::Moving { buffer, moved } = &mut self.stage else {
            return Ok(None);
        };
        while *moved < buffer.len() {
            let now = match self.direction {
                Direction::Save => nix::unistd::write(&self.channel, &buffer[*moved..]),
                Direction::Load => nix::unistd::read(&self.channel, &mut buffer[*moved..]),
            };
            match now {
                // The end of the stream; what came before it is a piece of its own.
                Ok(0) => break,
                Ok(count) => *moved += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if self.direction == Direction::Load && *moved > 0 => break,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => {
                    let what = format!("device state channel: {}", errno.desc());
                    return Err(Error::new(errno as i32, what));
                }
            }
        }
        buffer.truncate(*moved);
        Ok(Some(std::mem::take(buffer)))
    }

    /// Nobody waits for the device any more.
    pub(super) fn cancel(self, shared: &Shared) {
        if let Stage::Asked { number, .. } = self.stage {
            shared.stream.withdraw(number);
        }
    }
}

fn ask(shared: &Arc<Shared>, direction: Direction, offset: u64, mut buffer: Vec<u8>) -> Stage {
    let (question, piece) = Question::new(shared, move |device: &dyn Device| {
        let result = match direction {
            Direction::Save => save(device, offset, &mut buffer),
            Direction::Load => device.load_state(offset, &buffer).map(|()| buffer.len()),
        };
        Piece { buffer, result }
    });
    let number = shared.stream.push(Event::Asked(question));
    Stage::Asked { number, piece }
}

fn save(device: &dyn Device, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    match device.save_state(offset, buffer)? {
        count if count <= buffer.len() => Ok(count),
        count => Err(Error::invalid(format!(
            "save_state: {count} bytes in a buffer of {}",
            buffer.len()
        ))),
    }
}

/// A pipe or a stream socket, open in the right direction. The specification wants no more than that it behaves like a
/// pipe; these are the ones whose use never blocks.
fn check(direction: Direction, channel: BorrowedFd<'_>) -> Result<()> {
    let invalid = |what: &str| Err(Error::invalid(format!("device state channel: {what}")));
    match SFlag::from_bits_truncate(fstat(channel)?.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => {}
        SFlag::S_IFSOCK if getsockopt(&channel, sockopt::SockType)? == SockType::Stream => {}
        _ => return invalid("neither a pipe nor a stream socket"),
    }
    let flags = OFlag::from_bits_truncate(fcntl(channel, FcntlArg::F_GETFL)?);
    let wrong = match direction {
        Direction::Save => OFlag::O_RDONLY,
        Direction::Load => OFlag::O_WRONLY,
    };
    if flags & OFlag::O_ACCMODE == wrong {
        return invalid("open in the other direction");
    }
    Ok(())
}

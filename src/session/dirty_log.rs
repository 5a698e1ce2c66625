//! The dirty log of a live migration (vhost-user specification, "Migration").

use std::os::fd::AsFd;

use crate::memory::DirtyLog;
use crate::protocol::features::F_LOG_ALL;
use crate::protocol::messages::Log;
use crate::sync::Arc;
use crate::transport::Message;

use super::dispatch::{Answer, Fault, Handled};
use super::{End, Session};

impl Session {
    /// The new log takes the place of the old one, which is unmapped when nobody writes to it any more.
    pub(super) fn set_log_base(&mut self, message: &mut Message) -> Handled {
        let log = Log::decode(&message.body)?;
        self.refuse_in_postcopy("dirty log")?;
        let Some(fd) = message.fds.first() else {
            return Err(Fault::refuse(
                libc::EINVAL,
                "dirty log without a descriptor",
            ));
        };
        self.log = Some(Arc::new(DirtyLog::map(
            fd.as_fd(),
            log.offset,
            log.size,
            self.policy(),
            self.shared.counters.unlogged_pages.clone(),
        )?));
        if self.is_logging() {
            self.change_logging()?;
        }
        // Of the three forms that implementations answer with, this one satisfies every front-end.
        Ok(Answer::Reply(log.encode()))
    }

    pub(super) fn set_log_fd(&mut self, message: &mut Message) -> Handled {
        if let Some(fd) = message.fds.pop() {
            self.shared
                .log_signal
                .set(fd, self.shared.internal.as_fd())
                .map_err(|errno| {
                    Fault::refuse(errno as i32, format!("log descriptor: {}", errno.desc()))
                })?;
        }
        Ok(Answer::Done)
    }

    fn is_logging(&self) -> bool {
        self.features & F_LOG_ALL != 0
    }

    /// Where writes to guest memory are to be marked now.
    pub(super) fn active_log(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.is_logging())
    }

    /// The log, or what is marked in it, has changed. When this returns, every write is marked as it says.
    pub(super) fn change_logging(&mut self) -> Result<(), End> {
        self.publish_again()?;
        let table = self.shared.table.current();
        for queue in self.shared.queues() {
            queue.follow_log(&table);
        }
        Ok(())
    }
}

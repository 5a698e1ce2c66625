//! Postcopy migration: the device runs while pages of its guest's memory are still on their way
//! (vhost-user specification, "Migration" and VHOST_USER_POSTCOPY_ADVISE, _LISTEN, _END).
//!
//! | stage     | ADVISE       | LISTEN      | memory messages                   | END    |
//! |-----------|--------------|-------------|-----------------------------------|--------|
//! | off       | → advised    | refused     | as always                         | refused|
//! | advised   | refused      | → listening | as always                         | refused|
//! | listening | refused      | refused     | answered with our addresses       | → off  |
//!
//! While listening, regions that are added are mapped and registered at once and used from the front-end's end marker on:
//! only then does it know the addresses of the faults that it has to serve. Regions that are removed go at once.
//!
//! A thread that touches a missing page stands still until the page comes. That can be any owner of a queue, and any thread
//! that completes; never the internal one, which touches no guest memory, does not wait for locks that are held through
//! such an access, and waits for pops and elements only with an ear for the stop and the connection's end.

use crate::error::Error;
use crate::memory::{FaultRanges, RegionTable, Userfaultfd};
use crate::protocol::messages::{MemTable, MemoryRegion, SingleRegion, is_postcopy_marker};
use crate::sync::Arc;
use crate::transport::Message;
use crate::virtqueue::Queue;

use super::Session;
use super::dispatch::{Answer, Fault, Handled};

/// How far a migration is.
#[derive(Debug)]
enum Stage {
    Off,
    Advised(Userfaultfd),
    Listening {
        faults: FaultRanges,
        /// What the table will be when the front-end ends its update.
        update: Option<RegionTable>,
    },
}

#[derive(Debug)]
pub(super) struct Postcopy {
    stage: Stage,
    is_possible: bool,
}

impl Postcopy {
    /// Finds out whether this system lets this process do it; that may change when it drops its privileges.
    pub(super) fn new() -> Self {
        Postcopy {
            stage: Stage::Off,
            is_possible: Userfaultfd::open().is_ok(),
        }
    }

    pub(super) fn is_possible(&self) -> bool {
        self.is_possible
    }

    pub(super) fn is_listening(&self) -> bool {
        matches!(self.stage, Stage::Listening { .. })
    }

    fn update(&self) -> Option<&RegionTable> {
        match &self.stage {
            Stage::Listening { update, .. } => update.as_ref(),
            _ => None,
        }
    }

    /// What an unfinished update makes of the table is to be this; nothing without one.
    pub(super) fn replace_update(&mut self, table: RegionTable) {
        if let Stage::Listening {
            update: Some(update),
            ..
        } = &mut self.stage
        {
            *update = table;
        }
    }

    pub(super) fn take_update(&mut self) -> Option<RegionTable> {
        match &mut self.stage {
            Stage::Listening { update, .. } => update.take(),
            _ => None,
        }
    }

    /// Frees who is stuck in memory that is neither in `current` nor in an unfinished update.
    pub(super) fn keep_only(&mut self, current: &RegionTable) {
        if let Stage::Listening { faults, update } = &mut self.stage {
            match update {
                Some(update) => faults.keep_only(&[current, update]),
                None => faults.keep_only(&[current]),
            }
        }
    }
}

fn out_of_order(request: &str, stage: &Stage) -> Fault {
    let stage = match stage {
        Stage::Off => "before it was advised",
        Stage::Advised(_) => "while it is advised",
        Stage::Listening { .. } => "while it is under way",
    };
    Fault::refuse(libc::EBUSY, format!("postcopy: {request} {stage}"))
}

impl Session {
    /// What the next change of the memory begins with.
    pub(super) fn newest_table(&self) -> RegionTable {
        let current = self.shared.table.current();
        let newest = self.postcopy.update().unwrap_or(&current);
        newest.again(newest.generation())
    }

    /// A guest that is not here yet does not leave: what changes the dirty log waits for completions, which may wait for
    /// pages.
    pub(super) fn refuse_in_postcopy(&self, what: &str) -> Result<(), Fault> {
        if self.postcopy.is_listening() {
            return Err(Fault::refuse(
                libc::EBUSY,
                format!("{what} while postcopy is under way"),
            ));
        }
        Ok(())
    }

    /// The host that a guest is about to come to has no ring that runs.
    pub(super) fn postcopy_advise(&mut self, _: &mut Message) -> Handled {
        if !matches!(self.postcopy.stage, Stage::Off) {
            return Err(out_of_order("ADVISE", &self.postcopy.stage));
        }
        if self.any_started() {
            return Err(Fault::refuse(
                libc::EBUSY,
                "postcopy: ADVISE while a ring is started",
            ));
        }
        let failed = |errno: nix::errno::Errno| {
            Error::new(errno as i32, format!("userfaultfd: {}", errno.desc()))
        };
        let uffd = Userfaultfd::open().map_err(failed)?;
        let theirs = uffd.share().map_err(failed)?;
        self.postcopy.stage = Stage::Advised(uffd);
        Ok(Answer::ReplyWithFds(Vec::new(), vec![theirs]))
    }

    /// Memory that is there already would fault at addresses that the front-end was never told.
    pub(super) fn postcopy_listen(&mut self, _: &mut Message) -> Handled {
        let regions = self.shared.table.current().len();
        if self.active_log().is_some() {
            return Err(Fault::refuse(
                libc::EBUSY,
                "postcopy: LISTEN with a dirty log",
            ));
        }
        match std::mem::replace(&mut self.postcopy.stage, Stage::Off) {
            Stage::Advised(uffd) if regions == 0 => {
                self.postcopy.stage = Stage::Listening {
                    faults: FaultRanges::new(uffd),
                    update: None,
                };
                self.shared.logger.info(format_args!("postcopy begins"));
                Ok(Answer::Done)
            }
            Stage::Advised(uffd) => {
                self.postcopy.stage = Stage::Advised(uffd);
                Err(Fault::refuse(
                    libc::EBUSY,
                    format!("postcopy: LISTEN with {regions} memory regions"),
                ))
            }
            stage => {
                let fault = out_of_order("LISTEN", &stage);
                self.postcopy.stage = stage;
                Err(fault)
            }
        }
    }

    /// Every page has come.
    pub(super) fn postcopy_end(&mut self, _: &mut Message) -> Handled {
        match std::mem::replace(&mut self.postcopy.stage, Stage::Off) {
            Stage::Listening { faults, update } => {
                faults.complete();
                if let Some(update) = update {
                    self.publish_update(&update)?;
                }
                self.shared
                    .logger
                    .info(format_args!("postcopy is complete"));
                Ok(Answer::u64(0))
            }
            stage => {
                let fault = out_of_order("END", &stage);
                self.postcopy.stage = stage;
                Err(fault)
            }
        }
    }

    /// Registers what an update maps and keeps it until the front-end ends the update.
    fn begin_update(&mut self, next: RegionTable) -> Result<(), Fault> {
        if let Stage::Listening { faults, update } = &mut self.postcopy.stage {
            faults.cover(&next)?;
            *update = Some(next);
        }
        Ok(())
    }

    /// SET_MEM_TABLE: the reply is the same table with our addresses in the place of the front-end's.
    pub(super) fn announce_table(&mut self, mut table: MemTable, next: RegionTable) -> Handled {
        for region in &mut table.regions {
            self.tell_address(region, &next);
        }
        self.begin_update(next)?;
        Ok(Answer::Reply(table.encode()))
    }

    /// ADD_MEM_REG: as for SET_MEM_TABLE, with one region.
    pub(super) fn announce_region(
        &mut self,
        mut region: MemoryRegion,
        next: RegionTable,
    ) -> Handled {
        self.tell_address(&mut region, &next);
        self.begin_update(next)?;
        Ok(Answer::Reply(SingleRegion(region).encode()))
    }

    /// The front-end knows the addresses: what an update mapped is used from here on.
    pub(super) fn finish_update(&mut self) -> Handled {
        if !self.postcopy.is_listening() {
            return Err(Fault::refuse(
                libc::EINVAL,
                "postcopy marker without postcopy",
            ));
        }
        if let Some(update) = self.postcopy.take_update() {
            self.publish_update(&update)?;
        }
        Ok(Answer::Done)
    }

    /// QEMU ends an update that changed nothing with a marker of no request at all.
    pub(super) fn is_nameless_marker(&self, message: &Message) -> bool {
        message.header.request == 0
            && is_postcopy_marker(&message.body)
            && message.fds.is_empty()
            && self.postcopy.is_listening()
    }

    /// The connection ends before the migration is complete. Whoever is stuck is freed; as what it reads is not the
    /// guest's, nothing that it does is told to the driver any more.
    pub(super) fn give_up_postcopy(&mut self, queues: &[Arc<Queue>]) {
        if let Stage::Listening { faults, .. } =
            std::mem::replace(&mut self.postcopy.stage, Stage::Off)
        {
            queues.iter().for_each(|queue| queue.condemn());
            faults.abandon();
            self.shared.logger.warning(format_args!(
                "postcopy ends with the connection, incomplete"
            ));
        }
    }

    /// Every region of a wire table is in the table that was made of it.
    fn tell_address(&self, region: &mut MemoryRegion, table: &RegionTable) {
        let user_address = self.user_address_of(region);
        if let Some(host) = table.translate_user(user_address, region.size) {
            region.user_address = host.addr() as u64;
        }
    }
}

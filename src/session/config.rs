//! The device's configuration space, and what else is fixed data, over the wire.

use crate::protocol::messages::{ConfigAccess, encode_shmem_config};
use crate::stream::Event;
use crate::transport::Message;

use super::Session;
use super::dispatch::{Answer, Fault, Handled};

impl Session {
    pub(super) fn get_config(&mut self, message: &mut Message) -> Handled {
        let access = ConfigAccess::decode(&message.body)?;
        let size = access.payload.len() as u32;
        let payload = self
            .shared
            .config_space
            .lock()
            .read_padded(access.offset, size);
        let reply = ConfigAccess {
            offset: access.offset,
            flags: access.flags,
            payload: &payload,
        };
        Ok(Answer::Reply(reply.encode()))
    }

    pub(super) fn get_shmem_config(&mut self, _: &mut Message) -> Handled {
        let sizes = &self.shared.config.shmem_regions;
        Ok(Answer::Reply(encode_shmem_config(sizes)))
    }

    pub(super) fn set_config(&mut self, message: &mut Message) -> Handled {
        let access = ConfigAccess::decode(&message.body)?;
        access.check_write_flags()?;
        let migration = access.flags == ConfigAccess::FLAG_MIGRATION;
        self.shared
            .config_space
            .lock()
            .write(access.offset, access.payload, migration)
            .map_err(Fault::Refuse)?;
        self.shared.stream.push(Event::ConfigWritten {
            offset: access.offset,
            size: access.payload.len() as u32,
        });
        Ok(Answer::Done)
    }
}

//! The typed requests of [`Frontend`].

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::backend_channel::BackendChannel;
use super::error::{Error, Result};
use super::frontend::Frontend;
use super::memory::Region;
use super::shared::SharedFile;
use super::wire::{self, MemRegion, VringAddr, protocol_feature, req};

impl Frontend {
    fn get_u64(&self, request: u32) -> Result<u64> {
        self.request(request, &[], &[])?.u64()
    }

    fn set_u64(&self, request: u32, value: u64) -> Result<()> {
        self.set(request, &value.to_ne_bytes(), &[])
    }

    pub fn get_features(&self) -> Result<u64> {
        self.get_u64(req::GET_FEATURES)
    }

    pub fn set_features(&self, features: u64) -> Result<()> {
        self.set_u64(req::SET_FEATURES, features)
    }

    pub fn set_owner(&self) -> Result<()> {
        self.set(req::SET_OWNER, &[], &[])
    }

    pub fn reset_owner(&self) -> Result<()> {
        self.set(req::RESET_OWNER, &[], &[])
    }

    pub fn reset_device(&self) -> Result<()> {
        self.set(req::RESET_DEVICE, &[], &[])
    }

    pub fn get_protocol_features(&self) -> Result<u64> {
        self.get_u64(req::GET_PROTOCOL_FEATURES)
    }

    /// From here on the typed requests ask for an acknowledgement if
    /// REPLY_ACK is among `features`.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.set_u64(req::SET_PROTOCOL_FEATURES, features)?;
        self.acknowledged = features & protocol_feature::REPLY_ACK != 0;
        Ok(())
    }

    pub fn get_queue_num(&self) -> Result<u64> {
        self.get_u64(req::GET_QUEUE_NUM)
    }

    pub fn set_mem_table(&self, regions: &[&Region]) -> Result<()> {
        let table: Vec<MemRegion> = regions.iter().map(|region| region.wire()).collect();
        let fds: Vec<RawFd> = regions.iter().map(|region| region.raw_fd()).collect();
        self.set(req::SET_MEM_TABLE, &wire::mem_table(&table), &fds)
    }

    pub fn get_max_mem_slots(&self) -> Result<u64> {
        self.get_u64(req::GET_MAX_MEM_SLOTS)
    }

    pub fn add_mem_reg(&self, region: &Region) -> Result<()> {
        let body = region.wire().encode_single();
        self.set(req::ADD_MEM_REG, &body, &[region.raw_fd()])
    }

    pub fn rem_mem_reg(&self, region: &Region) -> Result<()> {
        self.set(req::REM_MEM_REG, &region.wire().encode_single(), &[])
    }

    pub fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.set(req::SET_VRING_NUM, &wire::vring_state(index, num), &[])
    }

    pub fn set_vring_addr(&self, addr: &VringAddr) -> Result<()> {
        self.set(req::SET_VRING_ADDR, &addr.encode(), &[])
    }

    pub fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.set(req::SET_VRING_BASE, &wire::vring_state(index, base), &[])
    }

    /// SET_VRING_ENDIAN: 0 is little, 1 is big.
    pub fn set_vring_endian(&self, index: u32, order: u32) -> Result<()> {
        self.set(req::SET_VRING_ENDIAN, &wire::vring_state(index, order), &[])
    }

    pub fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        let body = wire::vring_state(index, enable.into());
        self.set(req::SET_VRING_ENABLE, &body, &[])
    }

    /// `None` sends the NOFD bit.
    pub fn set_vring_kick(&self, index: u32, fd: Option<RawFd>) -> Result<()> {
        self.set_vring_fd(req::SET_VRING_KICK, index, fd)
    }

    /// `None` sends the NOFD bit.
    pub fn set_vring_call(&self, index: u32, fd: Option<RawFd>) -> Result<()> {
        self.set_vring_fd(req::SET_VRING_CALL, index, fd)
    }

    /// `None` sends the NOFD bit.
    pub fn set_vring_err(&self, index: u32, fd: Option<RawFd>) -> Result<()> {
        self.set_vring_fd(req::SET_VRING_ERR, index, fd)
    }

    fn set_vring_fd(&self, request: u32, index: u32, fd: Option<RawFd>) -> Result<()> {
        let nofd = if fd.is_none() { wire::VRING_NOFD } else { 0 };
        let body = (u64::from(index) | nofd).to_ne_bytes();
        self.set(request, &body, fd.as_slice())
    }

    /// Stops the ring and waits for what is in flight on it.
    pub fn get_vring_base(&self, index: u32) -> Result<u32> {
        self.send_get_vring_base(index)?;
        self.recv_vring_base(index)
    }

    /// The first half, for a test that has work to do before the reply.
    pub fn send_get_vring_base(&self, index: u32) -> Result<()> {
        self.send(req::GET_VRING_BASE, 0, &wire::vring_state(index, 0), &[])
    }

    pub fn recv_vring_base(&self, index: u32) -> Result<u32> {
        let body = self.recv_reply(req::GET_VRING_BASE)?.body;
        if body.len() != 8 || wire::u32_at(&body, 0) != index {
            return Err(Error::Broken(format!(
                "GET_VRING_BASE of queue {index}: reply body {body:?}"
            )));
        }
        Ok(wire::u32_at(&body, 4))
    }

    /// An empty reply, the protocol's error form, comes back as `Refused`.
    pub fn get_config(&self, offset: u32, size: u32) -> Result<Vec<u8>> {
        let request = wire::config(offset, 0, &vec![0; size as usize]);
        let mut body = self.request(req::GET_CONFIG, &request, &[])?.body;
        if body.is_empty() {
            return Err(Error::Refused {
                request: "GET_CONFIG",
                value: 0,
            });
        }
        if body.len() != request.len() {
            return Err(Error::Broken(format!(
                "GET_CONFIG of {size} bytes at {offset}: reply body of {} bytes, want {}",
                body.len(),
                request.len()
            )));
        }
        Ok(body.split_off(request.len() - size as usize))
    }

    /// `flags`: 0 for a write of the driver, 1 for live migration.
    pub fn set_config(&self, offset: u32, flags: u32, payload: &[u8]) -> Result<()> {
        let body = wire::config(offset, flags, payload);
        self.set(req::SET_CONFIG, &body, &[])
    }

    /// Gives the back-end its channel and returns our end of it.
    pub fn set_backend_req_fd(&self) -> Result<BackendChannel> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("making a socket pair", error))?;
        let theirs = OwnedFd::from(theirs);
        self.set(req::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])?;
        Ok(BackendChannel::new(ours, self.timeout))
    }

    /// SET_LOG_BASE with the whole of `file`.
    pub fn set_log_base(&self, file: &SharedFile) -> Result<()> {
        let body = wire::log(file.len() as u64, 0);
        let reply = self.request(req::SET_LOG_BASE, &body, &[file.raw_fd()])?;
        if reply.body != body {
            return Err(Error::Broken(format!(
                "reply to SET_LOG_BASE: {:x?}, want {body:x?}",
                reply.body
            )));
        }
        Ok(())
    }

    pub fn set_log_fd(&self, fd: RawFd) -> Result<()> {
        self.set(req::SET_LOG_FD, &[], &[fd])
    }

    /// SET_DEVICE_STATE_FD; the reply, whose bits 0 to 7 are an error and bit 8 says that there is no descriptor.
    pub fn set_device_state_fd(&self, direction: u32, phase: u32, fd: RawFd) -> Result<u64> {
        let body = wire::vring_state(direction, phase);
        let reply = self.request(req::SET_DEVICE_STATE_FD, &body, &[fd])?;
        match reply.fds.len() {
            0 => reply.u64(),
            count => Err(Error::Broken(format!(
                "SET_DEVICE_STATE_FD: {count} descriptors in the reply"
            ))),
        }
    }

    pub fn check_device_state(&self) -> Result<u64> {
        self.get_u64(req::CHECK_DEVICE_STATE)
    }

    pub fn set_status(&self, status: u64) -> Result<()> {
        self.set_u64(req::SET_STATUS, status)
    }

    pub fn get_status(&self) -> Result<u64> {
        self.get_u64(req::GET_STATUS)
    }
}

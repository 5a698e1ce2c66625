//! The device's configuration space: data, so that a front-end's read never waits for a loop.

use crate::error::{Error, Result};

/// What the vhost-user specification allows (VHOST_USER_MAX_CONFIG_SIZE).
pub(crate) const MAX_SIZE: usize = 256;

#[derive(Debug)]
pub(crate) struct ConfigSpace {
    /// What is read: the application's bytes, and over them what the driver wrote since the last reset.
    bytes: Vec<u8>,
    /// The application's bytes.
    own: Vec<u8>,
    /// Non-zero where the driver may write.
    writable: Vec<u8>,
}

impl ConfigSpace {
    pub(crate) fn new(bytes: Vec<u8>, mut writable: Vec<u8>) -> Result<Self> {
        if bytes.len() > MAX_SIZE {
            return Err(Error::invalid(format!(
                "config_size {}: more than {MAX_SIZE}",
                bytes.len()
            )));
        }
        if writable.len() > bytes.len() {
            return Err(Error::invalid(format!(
                "config_writable covers {} bytes of {}",
                writable.len(),
                bytes.len()
            )));
        }
        writable.resize(bytes.len(), 0);
        Ok(ConfigSpace {
            own: bytes.clone(),
            bytes,
            writable,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn range(&self, offset: u32, size: usize) -> Result<std::ops::Range<usize>> {
        let start = offset as usize;
        match start.checked_add(size) {
            Some(end) if size > 0 && end <= self.bytes.len() => Ok(start..end),
            _ => Err(Error::invalid(format!(
                "config offset {offset}, size {size}: outside of {} bytes",
                self.bytes.len()
            ))),
        }
    }

    /// For the application: exactly the bytes that there are.
    pub(crate) fn get(&self, offset: u32, size: usize) -> Result<&[u8]> {
        Ok(&self.bytes[self.range(offset, size)?])
    }

    /// For the front-end, which may ask for more than the device has (QEMU asks for its own structure's
    /// size): what is beyond reads as zero.
    pub(crate) fn read_padded(&self, offset: u32, size: u32) -> Vec<u8> {
        let start = (offset as usize).min(self.bytes.len());
        let end = (offset as usize + size as usize).min(self.bytes.len());
        let mut bytes = self.bytes[start..end.max(start)].to_vec();
        bytes.resize(size as usize, 0);
        bytes
    }

    /// The application's change. True if anything is different now.
    pub(crate) fn set(&mut self, offset: u32, bytes: &[u8]) -> Result<bool> {
        let range = self.range(offset, bytes.len())?;
        let changed = self.bytes[range.clone()] != *bytes;
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.own[range].copy_from_slice(bytes);
        Ok(changed)
    }

    /// The device is reset, or its driver is gone: what the driver wrote is forgotten.
    pub(crate) fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.own);
    }

    /// The driver's write: only where it may. Migration restores what it finds.
    pub(crate) fn write(&mut self, offset: u32, bytes: &[u8], migration: bool) -> Result<()> {
        let range = self.range(offset, bytes.len())?;
        if !migration && let Some(at) = range.clone().find(|&at| self.writable[at] == 0) {
            return Err(Error::new(
                libc::EPERM,
                format!("config byte {at} is read-only"),
            ));
        }
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new((0..8).collect(), vec![0, 0, 1, 1]).unwrap()
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        let space = space();
        assert_eq!(space.get(6, 2).unwrap(), [6, 7]);
        for (offset, size) in [(0, 0), (0, 9), (8, 1), (u32::MAX, 1), (1, usize::MAX)] {
            assert!(space.get(offset, size).is_err(), "{offset} {size}");
        }
        assert_eq!(space.read_padded(6, 4), [6, 7, 0, 0]);
        assert_eq!(space.read_padded(200, 2), [0, 0]);
    }

    #[test]
    fn the_driver_writes_only_what_it_may() {
        let mut space = space();
        assert!(space.write(1, &[9, 9], false).is_err());
        assert_eq!(
            space.get(0, 8).unwrap(),
            [0, 1, 2, 3, 4, 5, 6, 7],
            "nothing changed"
        );
        space.write(2, &[9, 9], false).unwrap();
        space.write(0, &[8], true).unwrap();
        assert_eq!(space.get(0, 4).unwrap(), [8, 1, 9, 9]);
        space.set(3, &[7]).unwrap();
        space.reset();
        assert_eq!(
            space.get(0, 4).unwrap(),
            [0, 1, 2, 7],
            "the application's change stays"
        );
    }

    #[test]
    fn setting_the_same_is_no_change() {
        let mut space = space();
        assert!(!space.set(3, &[3, 4]).unwrap());
        assert!(space.set(3, &[3, 5]).unwrap());
        assert!(ConfigSpace::new(vec![0; 257], vec![]).is_err());
        assert!(ConfigSpace::new(vec![0; 1], vec![1, 1]).is_err());
    }
}

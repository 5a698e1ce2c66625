//! Which translations the front-end has been asked for and has not given yet, so that it is asked once.

use std::collections::HashSet;

use crate::sync::Mutex;

/// More are forgotten: a question that is asked twice does no harm.
const MAX: usize = 4096;

/// By address and permission.
#[derive(Debug, Default)]
pub(crate) struct Misses(Mutex<HashSet<(u64, u8)>>);

impl Misses {
    /// True if the question has to be asked.
    pub(crate) fn add(&self, iova: u64, permission: u8) -> bool {
        let mut asked = self.0.lock();
        if asked.len() >= MAX {
            asked.clear();
        }
        asked.insert((iova, permission))
    }

    /// The front-end has said something about these addresses.
    pub(crate) fn answered(&self, first: u64, last: u64) {
        self.0
            .lock()
            .retain(|(iova, _)| !(first..=last).contains(iova));
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_once_until_it_is_answered() {
        let misses = Misses::default();
        assert!(misses.add(0x1000, 1) && misses.add(0x1000, 2) && misses.add(0x3000, 1));
        assert!(!misses.add(0x1000, 1));
        misses.answered(0, 0x1fff);
        assert!(misses.add(0x1000, 1));
        assert!(!misses.add(0x3000, 1));
        misses.clear();
        assert!(misses.add(0x3000, 1));
    }

    #[test]
    fn questions_without_end_take_no_memory_without_end() {
        let misses = Misses::default();
        for page in 0..3 * MAX as u64 {
            assert!(misses.add(page << 12, 1));
            assert!(misses.0.lock().len() <= MAX);
        }
    }
}

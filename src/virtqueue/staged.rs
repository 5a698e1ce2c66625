//! Completions that wait to be published together.

use super::used::UsedElem;

/// The most that is ever staged.
pub(crate) const MAX_STAGE: usize = 256;

/// A batch in the making. Part of the queue, so that it lies in the queue's own cache lines.
#[derive(Debug)]
pub(super) struct Staged {
    elems: [UsedElem; MAX_STAGE],
    len: usize,
    /// How many the program wants in a batch.
    max: usize,
    /// How many make one: never more than the ring has entries.
    limit: usize,
    /// Device-readable bytes of the staged elements.
    pub(super) bytes_out: u64,
}

impl Staged {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, MAX_STAGE);
        Staged {
            elems: [UsedElem::new(0, 0); MAX_STAGE],
            len: 0,
            max,
            limit: max,
            bytes_out: 0,
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.clamp(1, self.max);
    }

    /// True when the batch is full and must be published.
    #[inline(always)]
    pub(super) fn push(&mut self, elem: UsedElem, bytes_out: u32) -> bool {
        self.elems[self.len] = elem;
        self.len += 1;
        self.bytes_out += u64::from(bytes_out);
        self.len >= self.limit
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn batch(&self) -> &[UsedElem] {
        &self.elems[..self.len]
    }

    /// Bytes written, as told at completion.
    pub(super) fn bytes_in(&self) -> u64 {
        self.batch().iter().map(|elem| u64::from(elem.len())).sum()
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.bytes_out = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_full_at_the_limit_and_begins_anew() {
        let mut staged = Staged::new(4);
        staged.set_limit(2);
        assert!(!staged.push(UsedElem::new(1, 10), 3));
        assert!(staged.push(UsedElem::new(2, 20), 4));
        assert_eq!(
            (staged.len(), staged.bytes_in(), staged.bytes_out),
            (2, 30, 7)
        );
        staged.clear();
        assert!(staged.batch().is_empty() && staged.bytes_out == 0);
        staged.set_limit(9);
        assert!(
            !staged.push(UsedElem::new(1, 1), 0),
            "no more than there is room for"
        );
    }
}

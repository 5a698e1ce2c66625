//! One field of a region.

use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

#[derive(Clone, Copy)]
pub(super) struct Field<'a, A>(pub(super) &'a A);

macro_rules! field {
    ($($atomic:ident: $value:ty),*) => {$(
        impl Field<'_, $atomic> {
            pub(super) fn load(self) -> $value {
                // Acquire: pairs with the release of whoever wrote it, dead by now.
                self.0.load(Ordering::Acquire)
            }

            /// Behind all stores before it, wherever this process dies.
            pub(super) fn store(self, value: $value) {
                #[cfg(test)]
                if !super::tests::is_alive() {
                    return;
                }
                // Release: pairs with the load of whoever comes next.
                self.0.store(value, Ordering::Release);
            }
        }
    )*};
}

field!(AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64);

//! A packed ring with any contents, popped by the library and by a simple reference walk: the same elements, the
//! same verdict, the same used descriptors, calls and base. Or, with memory that changes under the reader, only
//! what must hold whatever it got to see.

mod expected;
mod input;
mod rig;

use std::cell::OnceCell;

use arbitrary::{Arbitrary, Unstructured};

use input::Input;
use rig::Rig;

thread_local!(static RIG: OnceCell<Rig> = const { OnceCell::new() });

pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    RIG.with(|rig| rig.get_or_init(Rig::new).run(&input));
}

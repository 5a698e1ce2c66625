//! A ring that starts over an in-flight area with any contents: what is popped is what a simple reading of the
//! area says, and afterwards the area says what is in flight and nothing else.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use arbitrary::{Arbitrary, Unstructured};

use super::sim::inflight::Inflight;
use super::sim::ring::Ring;
use super::split_ring::input::Input;
use super::split_ring::reference::Broken;
use super::split_ring::rig::Rig;
use super::{Many, pick};

/// The area is for rings up to this size; the fuzzer's may be larger.
const ENTRIES: u16 = 64;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH: usize = 12;
const USED_INDEX: usize = 14;

thread_local!(static RIG: OnceCell<Rig> = const { OnceCell::new() });

pub fn run(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let Ok(contents) = Contents::arbitrary(&mut bytes) else {
        return;
    };
    let Ok(input) = Input::arbitrary(&mut bytes) else {
        return;
    };
    let area = || Inflight::new(1, ENTRIES).expect("an area");
    RIG.with(|rig| {
        rig.get_or_init(|| Rig::with_area(area()))
            .run(&input, Some(&contents));
    });
}

/// What a predecessor, or nobody, has left in the area.
#[derive(Arbitrary, Debug)]
pub struct Contents {
    version: u8,
    entries: u8,
    last_batch: u8,
    batch: u8,
    marks: Many<Mark>,
    /// What the used ring says was returned, from the newest on.
    returned: Many<u8>,
}

#[derive(Arbitrary, Debug)]
struct Mark {
    head: u8,
    in_flight: u8,
    next: u8,
    counter: u8,
}

/// What a back-end makes of it.
pub struct Recovered {
    /// Popped before anything else, in this order.
    pub heads: Vec<u16>,
    /// Marked, once that is known.
    pub marked: BTreeSet<u16>,
}

/// A head: most often one of few, so that entries refer to each other.
fn head_of(byte: u8) -> u16 {
    u16::from(match byte {
        0..=199 => byte % 8,
        200..=239 => byte % ENTRIES as u8,
        other => other,
    })
}

impl Contents {
    /// Chains that were returned and not accounted for.
    fn batch(&self) -> u16 {
        u16::from(if self.batch < 200 {
            self.batch % 6
        } else {
            self.batch
        })
    }

    /// Fills the area, and the part of the used ring that it is about. The ring's used index is `used`.
    pub fn write(&self, area: &Inflight, ring: &Ring, used: u16) {
        area.file.write(0, &vec![0; area.file.len()]);
        area.set_field(0, VERSION, pick(self.version, &[1, 1, 1, 1, 1, 1, 0, 7]));
        let entries = pick(
            self.entries,
            &[ENTRIES, ENTRIES, ENTRIES, ENTRIES, ENTRIES, 63, 0],
        );
        area.set_field(0, DESC_NUM, entries);
        area.set_field(0, LAST_BATCH, head_of(self.last_batch));
        area.set_field(0, USED_INDEX, used.wrapping_sub(self.batch()));
        for mark in self.marks.iter() {
            let head = head_of(mark.head) % ENTRIES;
            // Small ones are often equal, and the largest there is comes too.
            let counter = if mark.counter == 255 {
                u64::MAX
            } else {
                u64::from(mark.counter & 15)
            };
            area.set_entry(0, head, mark.in_flight & 3, head_of(mark.next), counter);
        }
        // The used ring agrees with the area, or says what it likes.
        let honest = self.version & 0x80 != 0;
        let mut head = head_of(self.last_batch);
        for position in 0..self.batch().min(ring.layout().size) {
            let id = match self.returned.get(usize::from(position)) {
                Some(&other) if !honest => head_of(other),
                _ => head,
            };
            let at = used.wrapping_sub(1).wrapping_sub(position);
            ring.set_used_entry(at, id.into()).expect("a used entry");
            head = next(area, head).unwrap_or(0);
        }
    }
}

fn next(area: &Inflight, head: u16) -> Option<u16> {
    (head < ENTRIES).then(|| {
        let bytes = area.file.read(16 + 16 * usize::from(head) + 6, 2);
        u16::from_ne_bytes([bytes[0], bytes[1]])
    })
}

/// Reads the area as the specification says, for a ring whose used index is `used`.
pub fn recover(area: &Inflight, ring: &Ring, used: u16) -> Result<Recovered, Broken> {
    let size = ring.layout().size;
    if size > ENTRIES {
        return Err(Broken);
    }
    let mut marked: BTreeSet<u16> = area.marked(0).into_iter().collect();
    match area.field(0, VERSION) {
        0 => {
            return Ok(Recovered {
                heads: Vec::new(),
                marked,
            });
        }
        1 => {}
        _ => return Err(Broken),
    }
    let last_batch = area.field(0, LAST_BATCH);
    if area.field(0, DESC_NUM) != ENTRIES || last_batch >= ENTRIES {
        return Err(Broken);
    }
    let count = used.wrapping_sub(area.field(0, USED_INDEX));
    if let Some(batch) = interrupted(area, ring, used, count) {
        marked.retain(|head| !batch.contains(head));
    }
    let heads = area
        .marked(0)
        .into_iter()
        .filter(|head| *head < size && marked.contains(head));
    Ok(Recovered {
        heads: heads.collect(),
        marked,
    })
}

/// The batch whose marks nobody has cleared; `None` if the area's list of it cannot be believed.
fn interrupted(area: &Inflight, ring: &Ring, used: u16, count: u16) -> Option<BTreeSet<u16>> {
    let size = ring.layout().size;
    if count > size {
        return None;
    }
    let mut batch = BTreeSet::new();
    let mut head = area.field(0, LAST_BATCH);
    for position in 0..count {
        let at = used.wrapping_sub(1).wrapping_sub(position);
        let (id, _) = ring.used_entry(at).expect("a used entry");
        if head >= size || id != u32::from(head) || !batch.insert(head) {
            return None;
        }
        head = next(area, head)?;
    }
    Some(batch)
}

/// After everything that was popped has been returned.
pub fn check(area: &Inflight, recovered: &Recovered, returned: &[u16], used: u16) {
    let mut marked = recovered.marked.clone();
    marked.retain(|head| !returned.contains(head));
    let now: BTreeSet<u16> = area.marked(0).into_iter().collect();
    assert_eq!(now, marked, "marked in the end");
    assert_eq!(area.field(0, USED_INDEX), used, "the area's used index");
    assert_eq!(
        (area.field(0, VERSION), area.field(0, DESC_NUM)),
        (1, ENTRIES)
    );
}

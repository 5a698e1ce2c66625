//! Translation beside a model that looks at every region.

use proptest::prelude::*;

use super::*;
use crate::memory::{Access, Cursor, Hint, Translate};

const UNIT: u64 = 4096;

/// Disjoint regions, some of them adjacent: for each a gap before it and a size, in pages. The order in the file is
/// turned round, so that neighbours in the guest are none in the host.
fn regions() -> impl Strategy<Value = Vec<RegionDesc>> {
    let one = (prop_oneof![Just(0u64), 1..5u64], 1..4u64);
    prop::collection::vec(one, 1..40).prop_map(|gaps| {
        let pages: u64 = gaps.iter().map(|(_, size)| size).sum();
        let (mut gpa, mut offset) = (0x10_0000, pages * UNIT);
        gaps.into_iter()
            .map(|(gap, size)| {
                gpa += gap * UNIT;
                offset -= size * UNIT;
                let region = desc(gpa, size * UNIT, offset);
                gpa += size * UNIT;
                region
            })
            .collect()
    })
}

/// An address near the regions, often at one of their ends.
fn address(descs: &[RegionDesc], pick: prop::sample::Index, near: i64) -> u64 {
    let region = descs[pick.index(descs.len())];
    let edge = if near % 2 == 0 {
        region.gpa
    } else {
        region.gpa + region.size
    };
    edge.wrapping_add_signed(near / 2)
}

/// What every byte of the range is in the file, or none if one is not mapped.
fn naive(descs: &[RegionDesc], addr: u64, len: u64) -> Option<(u64, u64)> {
    let region = descs
        .iter()
        .find(|desc| desc.gpa <= addr && addr < desc.gpa + desc.size)?;
    let run = region.gpa + region.size - addr;
    (len <= run).then(|| (region.mmap_offset + (addr - region.gpa), run))
}

proptest! {
    #[test]
    fn one_region_holds_the_range_or_none(
        descs in regions(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), -9000..9000i64, 0..3 * UNIT), 1..60),
    ) {
        let size: u64 = descs.iter().map(|desc| desc.size).sum();
        let fd = memfd(size);
        let table = table_of(&fd, &descs);
        // Where each region is in the host is known by its first byte only.
        let base = |addr: u64| {
            let region = descs.iter().find(|d| d.gpa <= addr && addr < d.gpa + d.size)?;
            let host = table.translate(region.gpa, region.size)?;
            Some((host.addr() as u64).wrapping_add(addr - region.gpa))
        };
        let mut cursor = Cursor::new(table.regions(), Hint::default());
        for (pick, near, len) in picks {
            let addr = address(&descs, pick, near);
            let expected = naive(&descs, addr, len);
            let host = table.translate(addr, len);
            prop_assert_eq!(host.map(|host| host.addr() as u64), expected.and(base(addr)));
            prop_assert_eq!(cursor.whole(addr, len, Access::Read), host);
            let run = cursor.run(addr, Access::Write);
            prop_assert_eq!(run.map(|(_, run)| run), naive(&descs, addr, 0).map(|(_, run)| run));
            // A hint from this table is no danger for another one.
            let mut other = Cursor::new(table.regions(), cursor.hint());
            prop_assert_eq!(other.whole(addr, len, Access::Read), host);
            let user = addr.wrapping_add(0x7000_0000_0000);
            prop_assert_eq!(table.translate_user(user, len), host);
            if let Some(host) = host {
                prop_assert_eq!(table.host_to_gpa(host), Some(addr));
            }
        }
    }

    #[test]
    fn a_stale_hint_changes_nothing(descs in regions(), hint in regions(), addr in 0x10_0000..0x18_0000u64) {
        let fd = memfd(1 << 20);
        let (table, before) = (table_of(&fd, &descs), table_of(&fd, &hint));
        let mut cursor = Cursor::new(before.regions(), Hint::default());
        for region in &hint {
            cursor.run(region.gpa, Access::Read);
        }
        let mut later = Cursor::new(table.regions(), cursor.hint());
        prop_assert_eq!(later.whole(addr, 1, Access::Read), table.translate(addr, 1));
    }
}

#[test]
fn edges() {
    let fd = memfd(4 * UNIT);
    let table = table_of(
        &fd,
        &[desc(0x1000, 0x1000, 0), desc(0x2000, 0x1000, 0x2000)],
    );
    assert!(table.translate(0x1000, 0x1000).is_some());
    assert_eq!(table.translate(0x1000, 0x1001), None, "two regions");
    assert_eq!(table.translate(0xfff, 1), None);
    assert!(table.translate(0x2fff, 1).is_some());
    assert_eq!(table.translate(0x2fff, 2), None, "one byte past the end");
    assert_eq!(table.translate(0x3000, 0), None, "no bytes at no address");
    assert!(
        table.translate(0x2fff, 0).is_some(),
        "no bytes at an address"
    );
    assert_eq!(table.translate(0x2fff, u64::MAX), None);
    assert_eq!(table.translate(u64::MAX, 1), None);
    assert_eq!(table.translate_user(0x7000_0000_0fff, 1), None);
    assert_eq!(table.translate_user(0x7000_0000_1fff, 2), None);
    assert_eq!(table.host_to_gpa(std::ptr::null()), None);
    // What follows a region in the host is not its memory.
    let past = table
        .translate(0x2000, 0x1000)
        .expect("mapped")
        .wrapping_add(0x1000);
    assert_ne!(table.host_to_gpa(past), Some(0x3000));
}

#[test]
fn an_empty_table_maps_nothing() {
    let table = RegionTable::empty(7);
    assert_eq!(table.generation(), 7);
    assert_eq!(table.translate(0, 0), None);
    assert_eq!(table.translate_user(0, 0), None);
    assert_eq!(table.host_to_gpa(std::ptr::null()), None);
    assert!(
        Cursor::new(table.regions(), Hint::default())
            .run(0, Access::Read)
            .is_none()
    );
}

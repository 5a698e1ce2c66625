//! Addresses behind an IOMMU: translation, misses, invalidation, permissions, and messages that make no sense.

use std::os::fd::AsRawFd;
use std::time::Duration;

use super::device::{Event, SOON};
use super::rig::{Rig, run, works};
use crate::sim::echo::EchoRequest;
use crate::sim::wire::{Iotlb, backend_req, feature, req};
use crate::sim::{Deadline, RegionSpec, Seg, Session, SharedFile, eventually};
use vu_server::StopReason;

const PAGE: u64 = 4096;
/// Where the guest's IOMMU has the memory: no I/O virtual address is a physical one.
const IOVA: u64 = 1 << 45;
const READ: u8 = 1;
const WRITE: u8 = 2;
/// Long enough that what is not asked for by then is not asked for.
const QUIET: Duration = Duration::from_millis(50);

/// Two rings behind an IOMMU that work, with no question open.
#[track_caller]
fn session(rig: &Rig) -> Session {
    let mut s = untranslated(rig);
    while is_asked(&s) {
        answer(&s);
    }
    round_trip(&mut s, 16);
    s
}

/// Two rings behind an IOMMU that are set up, and wait for their translations.
#[track_caller]
fn untranslated(rig: &Rig) -> Session {
    let mut s = rig
        .builder()
        .queue_size(64)
        .features(feature::ACCESS_PLATFORM)
        .not_started()
        .connect(&rig.path);
    for index in 0..s.queues.len() {
        start(&mut s, index);
    }
    s
}

#[track_caller]
fn start(s: &mut Session, index: usize) {
    let (number, queue) = (index as u32, &s.queues[index]);
    let layout = *queue.ring.layout();
    let mut addr = layout.vring_addr(&s.memory, number).unwrap();
    (addr.desc, addr.avail, addr.used) =
        (IOVA + layout.desc, IOVA + layout.avail, IOVA + layout.used);
    let fe = s.fe();
    fe.set_vring_num(number, layout.size.into()).unwrap();
    fe.set_vring_base(number, s.bases[index]).unwrap();
    fe.set_vring_addr(&addr).unwrap();
    fe.set_vring_err(number, Some(queue.err.as_raw_fd()))
        .unwrap();
    fe.set_vring_call(number, Some(queue.call.as_raw_fd()))
        .unwrap();
    fe.set_vring_kick(number, Some(queue.kick.as_raw_fd()))
        .unwrap();
    fe.set_vring_enable(number, true).unwrap();
}

#[track_caller]
fn send(s: &Session, message: Iotlb) -> u64 {
    let reply = s.fe().request(req::IOTLB_MSG, &message.encode(), &[]);
    reply.and_then(|reply| reply.u64()).unwrap()
}

/// The page of an address, as the guest has mapped it: `IOVA` above the physical one.
fn page(iova: u64, permissions: u8) -> Iotlb {
    let first = iova & !(PAGE - 1);
    Iotlb {
        iova: first,
        size: PAGE,
        user: crate::sim::memory::USER_BASE + first - IOVA,
        permissions,
        kind: Iotlb::UPDATE,
    }
}

#[track_caller]
fn invalidate(s: &Session, iova: u64, size: u64) {
    let message = Iotlb {
        iova,
        size,
        user: 0,
        permissions: 0,
        kind: Iotlb::INVALIDATE,
    };
    assert_eq!(send(s, message), 0, "invalidating {iova:#x}");
}

/// The next question of the back-end.
#[track_caller]
fn question(s: &Session) -> Iotlb {
    let request = s.backend.as_ref().unwrap().recv().unwrap();
    assert_eq!(request.header.request, backend_req::IOTLB_MSG);
    Iotlb::decode(&request.body).unwrap()
}

#[track_caller]
fn is_asked(s: &Session) -> bool {
    s.backend.as_ref().unwrap().pending_within(QUIET).unwrap()
}

/// Answers a miss with the page as it is mapped, readable and writable; what was asked.
#[track_caller]
fn answer(s: &Session) -> Iotlb {
    let asked = question(s);
    assert_eq!(asked.kind, Iotlb::MISS, "{asked:x?}");
    assert_eq!(send(s, page(asked.iova, READ | WRITE)), 0);
    asked
}

/// Answers misses until `done`.
#[track_caller]
fn answer_until(s: &mut Session, mut done: impl FnMut(&mut Session) -> bool) -> Vec<Iotlb> {
    let deadline = Deadline::after(SOON);
    let mut asked = Vec::new();
    while !done(s) {
        assert!(!deadline.expired(), "not done after {asked:x?}");
        let channel = s.backend.as_ref().unwrap();
        if channel.pending_within(Duration::from_millis(1)).unwrap() {
            asked.push(answer(s));
        }
    }
    asked
}

/// As the guest's driver says it: with I/O virtual addresses.
fn virtual_segs(request: &EchoRequest) -> [Seg; 2] {
    request.segs().map(|seg| Seg {
        gpa: IOVA + seg.gpa,
        ..seg
    })
}

#[track_caller]
fn submit(s: &mut Session, len: u32) -> EchoRequest {
    let mut request = EchoRequest::new(&s.memory, len, len);
    request.prepare(len.into());
    s.queues[0].submit(&virtual_segs(&request)).unwrap();
    request
}

/// Waits for the answer to a request, and answers misses meanwhile.
#[track_caller]
fn finish(s: &mut Session, request: &EchoRequest) -> Vec<Iotlb> {
    let mut used = None;
    let asked = answer_until(s, |s| {
        used = s.queues[0].poll_used().unwrap();
        used.is_some()
    });
    request.check(used.unwrap());
    asked
}

#[track_caller]
fn round_trip(s: &mut Session, len: u32) -> Vec<Iotlb> {
    let request = submit(s, len);
    finish(s, &request)
}

#[test]
fn rings_and_buffers_are_translated() {
    run("iotlb", |rig| {
        let mut s = untranslated(rig);
        let asked = round_trip(&mut s, 3 * PAGE as u32);
        for (permission, what) in [(READ, "read"), (WRITE, "write")] {
            let wanted = asked.iter().filter(|miss| miss.permissions == permission);
            assert!(
                wanted.count() >= 1,
                "no question about a {what}: {asked:x?}"
            );
        }
        assert!(asked.iter().all(|miss| miss.iova >= IOVA), "{asked:x?}");
        // Known by now; other buffers are asked for, and nothing twice.
        let again = round_trip(&mut s, 3 * PAGE as u32);
        assert!(again.iter().all(|miss| !asked.contains(miss)), "{again:x?}");
        for _ in 0..100 {
            round_trip(&mut s, 700);
        }
    });
}

#[test]
fn a_miss_pauses_its_queue_and_no_other() {
    run("iotlb_pause", |rig| {
        let mut s = session(rig);
        // A page that nobody knows, on queue 0.
        s.memory.alloc(PAGE, PAGE).unwrap();
        let request = submit(&mut s, 64);
        let miss = question(&s);
        assert_eq!(
            (miss.kind, miss.iova & !(PAGE - 1)),
            (Iotlb::MISS, page(IOVA + request.segs()[0].gpa, 0).iova)
        );
        // Further kicks ask nothing more.
        for _ in 0..3 {
            s.queues[0].kick_always().unwrap();
        }
        assert!(!is_asked(&s));
        // The other queue works, if its ring is translated.
        let layout = *s.queues[1].ring.layout();
        for at in [layout.desc, layout.avail, layout.used] {
            assert_eq!(send(&s, page(IOVA + at, READ | WRITE)), 0);
        }
        s.memory.alloc(PAGE, PAGE).unwrap();
        let mut other = EchoRequest::new(&s.memory, 32, 32);
        other.prepare(9);
        let segs = virtual_segs(&other);
        for seg in segs {
            assert_eq!(send(&s, page(seg.gpa, READ | WRITE)), 0);
        }
        s.queues[1].submit(&segs).unwrap();
        other.check(s.queues[1].wait_used(Deadline::after(SOON)).unwrap());
        assert!(s.queues[0].poll_used().unwrap().is_none());
        // The answer makes the queue go on by itself.
        assert_eq!(send(&s, page(miss.iova, READ | WRITE)), 0);
        finish(&mut s, &request);
    });
}

#[test]
fn a_new_channel_is_asked_for_what_is_missing() {
    run("iotlb_channel", |rig| {
        let replace = |s: &mut Session| {
            let channel = s.fe().set_backend_req_fd().unwrap();
            drop(s.backend.replace(channel));
        };
        // For the rings first; the questions on the old channel went unheard.
        let mut s = untranslated(rig);
        replace(&mut s);
        while is_asked(&s) {
            answer(&s);
        }
        round_trip(&mut s, 16);
        // Then for a buffer in a page that nobody knows.
        s.memory.alloc(PAGE, PAGE).unwrap();
        let request = submit(&mut s, 32);
        let asked = question(&s);
        replace(&mut s);
        assert_eq!(question(&s).iova, asked.iova);
        assert_eq!(send(&s, page(asked.iova, READ | WRITE)), 0);
        finish(&mut s, &request);
    });
}

#[test]
fn a_paused_queue_stops_where_it_is() {
    run("iotlb_stop", |rig| {
        let mut s = session(rig);
        s.memory.alloc(PAGE, PAGE).unwrap();
        let request = submit(&mut s, 64);
        question(&s);
        assert_eq!(s.stop_queue(0), 1, "the available index has not moved");
        start(&mut s, 0);
        // It is not asked again for what was asked before, so the answer comes by itself.
        for seg in virtual_segs(&request) {
            assert_eq!(send(&s, page(seg.gpa, READ | WRITE)), 0);
        }
        finish(&mut s, &request);
        let unanswered = submit(&mut s, 3 * PAGE as u32);
        question(&s);
        drop(unanswered);
        // The front-end goes while the queue is paused.
        s.abort();
        rig.device
            .take("end", |event| matches!(event, Event::Disconnected { .. }));
    });
}

#[test]
fn a_translation_that_changes_is_used_anew() {
    run("iotlb_change", |rig| {
        let mut s = session(rig);
        let mut request = EchoRequest::new(&s.memory, 64, 64);
        let [out, answer] = request.segs();
        let there = s.memory.alloc(PAGE, PAGE).unwrap();
        // One I/O virtual page for the answer, which is one physical page and then another one.
        let iova = IOVA + (1 << 40);
        for physical in [answer.gpa & !(PAGE - 1), there] {
            let update = Iotlb {
                iova,
                user: crate::sim::memory::USER_BASE + physical,
                ..page(IOVA, WRITE)
            };
            assert_eq!(send(&s, update), 0);
            assert_eq!(send(&s, page(IOVA + out.gpa, READ | WRITE)), 0);
            request.prepare(physical);
            let offset = answer.gpa % PAGE;
            let segs = [
                Seg::readable(IOVA + out.gpa, 64),
                Seg::writable(iova + offset, 64),
            ];
            s.queues[0].submit(&segs).unwrap();
            s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
            let sent = s.memory.read(out.gpa, 64).unwrap();
            assert_eq!(s.memory.read(physical + offset, 64).unwrap(), sent);
            invalidate(&s, iova, PAGE);
        }
        // After that it is asked for again.
        s.queues[0]
            .submit(&[Seg::readable(IOVA + out.gpa, 64), Seg::writable(iova, 64)])
            .unwrap();
        let miss = question(&s);
        assert_eq!(
            (miss.kind, miss.iova, miss.permissions),
            (Iotlb::MISS, iova, WRITE)
        );
    });
}

/// Two pages next to each other for the guest, and apart in its memory.
#[test]
fn a_buffer_over_scattered_pages() {
    run("iotlb_scattered", |rig| {
        let mut s = session(rig);
        let pages: Vec<u64> = (0..3)
            .map(|_| s.memory.alloc(PAGE, PAGE).unwrap())
            .collect();
        let iova = IOVA + (1 << 40);
        for (at, physical) in [pages[2], pages[0]].into_iter().enumerate() {
            let update = Iotlb {
                iova: iova + PAGE * at as u64,
                user: crate::sim::memory::USER_BASE + physical,
                ..page(IOVA, READ | WRITE)
            };
            assert_eq!(send(&s, update), 0);
        }
        let text = crate::sim::echo::pattern(3, 2 * PAGE as usize);
        s.memory.write(pages[1], &text[..64]).unwrap();
        assert_eq!(send(&s, page(IOVA + pages[1], READ)), 0);
        let segs = [
            Seg::readable(IOVA + pages[1], 64),
            Seg::writable(iova + PAGE - 32, 64),
        ];
        s.queues[0].submit(&segs).unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        assert_eq!(s.memory.read(pages[2] + PAGE - 32, 32).unwrap(), text[..32]);
        assert_eq!(s.memory.read(pages[0], 32).unwrap(), text[32..64]);
        assert_eq!(rig.device.last_shape().writable, [32, 32]);
    });
}

#[test]
fn case_65_an_invalidation_stops_a_ring_before_it_is_answered() {
    run("case_65_ring", |rig| {
        let mut s = session(rig);
        rig.device.hold(true);
        let request = submit(&mut s, 16);
        rig.device.wait_held(1);
        rig.device.hold(false);
        let used = IOVA + s.queues[0].ring.layout().used;
        let gone = Iotlb {
            iova: used & !(PAGE - 1),
            size: PAGE,
            user: 0,
            permissions: 0,
            kind: Iotlb::INVALIDATE,
        };
        s.fe().send(req::IOTLB_MSG, 0, &gone.encode(), &[]).unwrap();
        rig.device
            .take_event(Event::QueueStopping(0, StopReason::Reconfigured));
        assert!(
            !s.fe().answered_within(QUIET).unwrap(),
            "answered with a request in flight, whose completion writes there"
        );
        rig.device.release();
        assert_eq!(s.fe().recv_reply(req::IOTLB_MSG).unwrap().u64().unwrap(), 0);
        request.check(s.queues[0].poll_used().unwrap().expect("a completion"));
        // Parked: what comes now waits for the translation.
        let next = submit(&mut s, 16);
        let asked = finish(&mut s, &next);
        assert!(
            asked
                .iter()
                .any(|miss| miss.iova & !(PAGE - 1) == gone.iova),
            "{asked:x?}"
        );
        assert_eq!(s.stop_queue(0), 3);
    });
}

#[test]
fn what_the_iommu_forbids_breaks_the_ring() {
    run("iotlb_denied", |rig| {
        let mut s = session(rig);
        let target = s.memory.alloc(PAGE, PAGE).unwrap();
        assert_eq!(send(&s, page(IOVA + target, READ)), 0);
        s.queues[0]
            .submit(&[Seg::writable(IOVA + target + 8, 16)])
            .unwrap();
        let told = question(&s);
        assert_eq!(
            (told.kind, told.iova, told.permissions),
            (Iotlb::ACCESS_FAIL, IOVA + target + 8, WRITE)
        );
        rig.broke("a write to a read-only page", &s, "may not be written");
        // Reading there is allowed.
        s.stop_queue(0);
        s.queues[0].reset(0).unwrap();
        s.bases[0] = 0;
        start(&mut s, 0);
        s.queues[0]
            .submit(&[Seg::readable(IOVA + target, 16)])
            .unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
    });
}

#[test]
fn case_65_messages_that_make_no_sense() {
    run("case_65", |rig| {
        let mut s = session(rig);
        let good = page(IOVA, READ | WRITE);
        let end = crate::sim::memory::USER_BASE + s.memory.regions()[0].spec().size;
        for bad in [
            Iotlb { size: 0, ..good },
            Iotlb {
                iova: u64::MAX - 10,
                ..good
            },
            Iotlb {
                user: u64::MAX - 10,
                ..good
            },
            Iotlb { user: 0, ..good },
            Iotlb { user: end, ..good },
            Iotlb {
                user: end - PAGE + 1,
                ..good
            },
            Iotlb {
                size: u64::MAX,
                iova: 1,
                ..good
            },
            Iotlb {
                size: 1 << 46,
                ..good
            },
            Iotlb {
                permissions: 4,
                ..good
            },
            Iotlb { kind: 0, ..good },
            Iotlb {
                kind: Iotlb::MISS,
                ..good
            },
            Iotlb {
                kind: Iotlb::ACCESS_FAIL,
                ..good
            },
            Iotlb { kind: 255, ..good },
            Iotlb {
                kind: Iotlb::INVALIDATE,
                size: 0,
                ..good
            },
        ] {
            let refusals = rig.server.stats().refusals;
            assert_eq!(send(&s, bad), 1, "{bad:x?}");
            assert_eq!(rig.server.stats().refusals, refusals + 1, "{bad:x?}");
        }
        round_trip(&mut s, 16);
        // The whole address space can be forgotten, and everything is asked for again.
        invalidate(&s, 0, u64::MAX);
        let asked = round_trip(&mut s, 16);
        assert!(!asked.is_empty(), "nothing was forgotten");
        s.disconnect();
        // Without the feature there is no such message.
        let mut s = rig.session();
        assert_eq!(send(&s, good), 1);
        works(&mut s);
    });
}

#[test]
fn more_translations_than_are_kept() {
    run("iotlb_many", |rig| {
        let mut s = session(rig);
        for number in 0..20_000u64 {
            let update = Iotlb {
                iova: (1 << 50) + PAGE * number,
                ..page(IOVA, READ)
            };
            assert_eq!(send(&s, update), 0);
        }
        // What was thrown out is asked for again.
        for _ in 0..20 {
            round_trip(&mut s, 64);
        }
    });
}

/// A translation to memory that is gone is an error of the front-end's, not a question.
#[test]
fn a_translation_outlives_its_memory() {
    run("iotlb_unplugged", |rig| {
        let mut s = session(rig);
        let region = s.add_region(RegionSpec::new(1 << 32, 1 << 20));
        let gpa = region.spec().gpa;
        assert_eq!(send(&s, page(IOVA + gpa, READ | WRITE)), 0);
        let segs = [Seg::writable(IOVA + gpa, 16)];
        s.queues[0].submit(&segs).unwrap();
        s.queues[0].wait_used(Deadline::after(SOON)).unwrap();
        s.remove_region(gpa);
        s.queues[0].submit(&segs).unwrap();
        rig.broke("memory that is gone", &s, "not all in guest memory");
    });
}

#[test]
fn the_dirty_log_is_of_physical_pages() {
    run("iotlb_log", |rig| {
        let mut s = session(rig);
        let log = SharedFile::new(((64 << 20) / PAGE / 8) as usize).unwrap();
        s.fe().set_log_base(&log).unwrap();
        s.fe().set_features(s.features | feature::LOG_ALL).unwrap();
        s.memory.alloc(PAGE, PAGE).unwrap();
        let request = submit(&mut s, 100);
        finish(&mut s, &request);
        let gpa = request.segs()[1].gpa;
        let mut seen = Vec::new();
        eventually(
            "marked pages",
            Deadline::after(SOON),
            vec![gpa / PAGE],
            || {
                seen.extend(log.take_bits());
                seen.clone()
            },
        );
    });
}

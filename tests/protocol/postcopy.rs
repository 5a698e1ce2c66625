//! Postcopy migration, message by message: what is answered in which stage, and that a guest whose memory is still
//! arriving is served.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use vu_server::{Address, Server};

use super::device::{Script, Scripted};
use super::rig::{Bad, Rig, acknowledging, alive, run, without, works};
use crate::sim::echo::EchoRequest;
use crate::sim::postcopy::PAGE;
use crate::sim::shared::SharedFile;
use crate::sim::wire::{self, feature, protocol_feature, req};
use crate::sim::{
    Deadline, Frontend, GuestMemory, Region, RegionSpec, RingLayout, Session, SessionBuilder,
    SplitDriver,
};

/// Large enough for areas of several pages: the used ring has three.
pub const QUEUE_SIZE: u16 = 1024;
/// Rings begin here: the entry is in the used ring's second page, the index in its first.
pub const BASE: u16 = 600;
pub const REGION: u64 = 4 << 20;

const NOBODY: libc::uid_t = 65534;

/// A guest that arrives, with nothing in its rings, each area on pages of its own. It is all still here.
#[track_caller]
pub fn arriving(rig: &Rig, regions: &[RegionSpec]) -> Session {
    arriving_with(rig, rig.builder(), regions)
}

#[track_caller]
fn arriving_with(rig: &Rig, builder: SessionBuilder, regions: &[RegionSpec]) -> Session {
    let mut session = builder.regions(regions).postcopy().connect(rig.path());
    for index in 0..session.queues.len() {
        let layout = spread(&session.memory);
        let driver = SplitDriver::with_layout(&session.memory, layout, true).unwrap();
        session.queues[index] = driver;
        session.queues[index].reset(BASE).unwrap();
        session.bases[index] = BASE.into();
    }
    session
}

fn spread(memory: &GuestMemory) -> RingLayout {
    let alloc = |len: u64| memory.alloc(len.next_multiple_of(PAGE), PAGE).unwrap();
    RingLayout {
        size: QUEUE_SIZE,
        desc: alloc(16 * u64::from(QUEUE_SIZE)),
        avail: alloc(RingLayout::avail_len(QUEUE_SIZE)),
        used: alloc(RingLayout::used_len(QUEUE_SIZE)),
    }
}

/// A request of two pages that the guest made before it moved.
#[track_caller]
pub fn made(session: &mut Session) -> EchoRequest {
    let mut request = EchoRequest::new(&session.memory, PAGE as u32, PAGE as u32);
    request.prepare(7);
    session.queues[0].add(&request.segs()).unwrap();
    session.queues[0].publish().unwrap();
    request
}

/// The guest pages that the device touches for a request, in order. (The last holds the event by which it asks to be
/// kicked again.)
pub fn pages_of(session: &Session, request: &EchoRequest) -> [u64; 7] {
    let layout = session.queues[0].ring.layout();
    let [readable, writable] = request.segs().map(|seg| seg.gpa);
    let entry = layout.used + 4 + 8 * u64::from(BASE);
    [
        layout.used,
        layout.avail,
        layout.desc,
        readable,
        writable,
        entry / PAGE * PAGE,
        layout.used + RingLayout::used_len(QUEUE_SIZE) / PAGE * PAGE,
    ]
}

/// The device has answered: only now has it touched the used ring, which this may look at.
#[track_caller]
pub fn answered(session: &mut Session, request: &EchoRequest) {
    let deadline = Deadline::secs(10);
    session.queues[0].call.wait("call", deadline).unwrap();
    let used = session.queues[0].wait_used(deadline).unwrap();
    request.check(used);
}

#[track_caller]
fn advised(rig: &Rig) -> Frontend {
    advise(acknowledging(rig))
}

#[track_caller]
fn advise(fe: Frontend) -> Frontend {
    fe.postcopy_advise().unwrap();
    // The back-end has let go of what it sent.
    alive(&fe);
    fe
}

#[track_caller]
fn listening(rig: &Rig) -> Frontend {
    let fe = advised(rig);
    fe.postcopy_listen().unwrap();
    fe
}

/// A refusal in the request's own form; the connection lives.
#[track_caller]
fn refuses(fe: &Frontend, request: u32) {
    match request {
        req::POSTCOPY_ADVISE => {
            let reply = fe.request(request, &[], &[]).unwrap();
            assert!(reply.fds.is_empty() && reply.body.is_empty());
        }
        req::POSTCOPY_LISTEN => assert_ne!(fe.request_with_ack(request, &[], &[]).unwrap(), 0),
        _ => assert_ne!(fe.postcopy_end().unwrap(), 0),
    }
    alive(fe);
}

#[test]
fn case_68_postcopy_out_of_order() {
    run("postcopy_order", |rig| {
        let fe = acknowledging(rig);
        refuses(&fe, req::POSTCOPY_LISTEN);
        refuses(&fe, req::POSTCOPY_END);
        let _uffd = fe.postcopy_advise().unwrap();
        refuses(&fe, req::POSTCOPY_ADVISE);
        refuses(&fe, req::POSTCOPY_END);
        fe.postcopy_listen().unwrap();
        refuses(&fe, req::POSTCOPY_ADVISE);
        refuses(&fe, req::POSTCOPY_LISTEN);
        assert_eq!(fe.postcopy_end().unwrap(), 0);
        refuses(&fe, req::POSTCOPY_END);
        refuses(&fe, req::POSTCOPY_LISTEN);
        // From the beginning it goes again.
        fe.postcopy_advise().unwrap();
        fe.postcopy_listen().unwrap();
        assert_eq!(fe.postcopy_end().unwrap(), 0);
    });
}

#[test]
fn case_68_postcopy_beside_running_rings_and_memory() {
    run("postcopy_running", |rig| {
        let mut s = rig
            .builder()
            .protocol_features(protocol_feature::PAGEFAULT)
            .connect(rig.path());
        refuses(s.fe(), req::POSTCOPY_ADVISE);
        works(&mut s);
        s.disconnect();
        // The addresses of memory that is there already have never been told.
        let fe = advised(rig);
        let region = Region::new(RegionSpec::new(0, REGION)).unwrap();
        fe.set_mem_table(&[&region]).unwrap();
        refuses(&fe, req::POSTCOPY_LISTEN);
        fe.rem_mem_reg(&region).unwrap();
        fe.postcopy_listen().unwrap();
    });
}

#[test]
fn case_68_postcopy_beside_a_dirty_log() {
    run("postcopy_log", |rig| {
        let fe = listening(rig);
        let log = SharedFile::new(4096).unwrap();
        let body = wire::log(4096, 0);
        let bad = Bad::new(req::SET_LOG_BASE, body).fds(&[log.raw_fd()]);
        rig.refused(&fe, &bad);
        let logging = feature::PROTOCOL_FEATURES | feature::LOG_ALL;
        rig.refused(&fe, &Bad::u64(req::SET_FEATURES, logging));
        assert_eq!(fe.postcopy_end().unwrap(), 0);
        fe.set_features(logging).unwrap();
        fe.set_log_base(&log).unwrap();
        fe.postcopy_advise().unwrap();
        refuses(&fe, req::POSTCOPY_LISTEN);
        fe.set_features(feature::PROTOCOL_FEATURES).unwrap();
        fe.postcopy_listen().unwrap();
    });
}

#[test]
fn case_68_postcopy_that_was_not_negotiated() {
    run("postcopy_feature", |rig| {
        let s = rig.session();
        for request in [
            req::POSTCOPY_ADVISE,
            req::POSTCOPY_LISTEN,
            req::POSTCOPY_END,
        ] {
            refuses(s.fe(), request);
        }
    });
}

#[test]
fn the_end_marker_of_an_update_has_a_meaning_in_postcopy_only() {
    run("postcopy_marker", |rig| {
        let fe = advised(rig);
        let zero = 0u64.to_ne_bytes();
        for request in [req::SET_MEM_TABLE, req::ADD_MEM_REG, req::REM_MEM_REG] {
            rig.refused(&fe, &Bad::new(request, zero));
        }
        fe.postcopy_listen().unwrap();
        for request in [req::SET_MEM_TABLE, req::ADD_MEM_REG, req::REM_MEM_REG] {
            assert_eq!(fe.request_with_ack(request, &zero, &[]).unwrap(), 0);
            // As front-ends send it: without a reply.
            fe.end_update(request).unwrap();
            alive(&fe);
        }
        // QEMU ends an update that changed nothing like this.
        fe.end_update(0).unwrap();
        alive(&fe);
        rig.refused(&fe, &Bad::new(0, 1u64.to_ne_bytes()));
        assert_eq!(fe.postcopy_end().unwrap(), 0);
        rig.refused(&fe, &Bad::new(0, zero));
        fe.end_update(0).unwrap();
        rig.dropped("a marker after postcopy", fe, "request 0");
    });
}

#[test]
fn replies_tell_where_the_memory_is_mapped() {
    run("postcopy_addresses", |rig| {
        addresses_are_told(rig, listening(rig));
    });
}

#[test]
fn they_tell_it_also_by_the_guests_addresses() {
    run("postcopy_gpa_addresses", |rig| {
        let fe = advise(without(rig, 0));
        fe.postcopy_listen().unwrap();
        addresses_are_told(rig, fe);
    });
}

#[track_caller]
fn addresses_are_told(rig: &Rig, fe: Frontend) {
    let specs = [0, 1 << 32, 2 << 32].map(|gpa| RegionSpec::new(gpa, REGION));
    let [first, second, third] = specs.map(|spec| Region::new(spec).unwrap());
    // In the order of the message, which need not be that of the addresses.
    let told = fe.offer_mem_table(&[&second, &first]).unwrap();
    fe.end_update(req::SET_MEM_TABLE).unwrap();
    alive(&fe);
    let third_at = fe.offer_mem_reg(&third).unwrap();
    fe.end_update(req::ADD_MEM_REG).unwrap();
    // What stays keeps its place and is not registered again.
    let again = fe.offer_mem_table(&[&first, &second, &third]).unwrap();
    assert_eq!(again, [told[1], told[0], third_at]);
    fe.end_update(req::SET_MEM_TABLE).unwrap();
    alive(&fe);
    assert_eq!(rig.server.stats().memory_regions, 3);
    // The mappings are of the files that were sent: this process is the back-end's.
    for (region, at) in [(&second, told[0]), (&first, told[1]), (&third, third_at)] {
        let gpa = region.spec().gpa;
        region.write(gpa + 8, &at.to_ne_bytes()).unwrap();
        let host = std::ptr::with_exposed_provenance::<u64>(at as usize + 8);
        // SAFETY: mapped as long as the connection lives, aligned, and the page is there.
        assert_eq!(unsafe { host.read_volatile() }, at);
    }
    fe.rem_mem_reg(&second).unwrap();
    assert_eq!(rig.server.stats().memory_regions, 2);
    assert_eq!(fe.postcopy_end().unwrap(), 0);
    // Afterwards the acknowledgement is the usual one again.
    fe.add_mem_reg(&second).unwrap();
    fe.set_mem_table(&[&third]).unwrap();
}

#[test]
fn an_update_takes_effect_with_its_end() {
    run("postcopy_update", |rig| {
        let fe = listening(rig);
        let specs = [0, 1 << 32].map(|gpa| RegionSpec::new(gpa, REGION));
        let [first, second] = specs.map(|spec| Region::new(spec).unwrap());
        fe.offer_mem_reg(&first).unwrap();
        fe.offer_mem_reg(&second).unwrap();
        let regions = || rig.server.stats().memory_regions;
        assert_eq!(regions(), 0);
        // A region that was never in use can go, too; twice it cannot be there.
        fe.rem_mem_reg(&first).unwrap();
        rig.refused(
            &fe,
            &Bad::new(req::REM_MEM_REG, first.wire().encode_single()),
        );
        fe.end_update(req::REM_MEM_REG).unwrap();
        alive(&fe);
        assert_eq!(regions(), 1);
        // An update that the end of postcopy overtakes is not lost.
        fe.offer_mem_reg(&first).unwrap();
        assert_eq!(fe.postcopy_end().unwrap(), 0);
        assert_eq!(regions(), 2);
    });
}

#[test]
fn memory_that_cannot_be_registered_is_refused() {
    run("postcopy_file", |rig| {
        let fe = listening(rig);
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("vu-postcopy-memory");
        let file = std::fs::File::create_new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(REGION).unwrap();
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .unwrap();
        let region = wire::MemRegion {
            size: REGION,
            ..Default::default()
        };
        rig.refused(
            &fe,
            &Bad::new(req::ADD_MEM_REG, region.encode_single()).fds(&[file.as_raw_fd()]),
        );
        assert_eq!(fe.postcopy_end().unwrap(), 0);
        assert_eq!(rig.server.stats().memory_regions, 0);
    });
}

#[test]
fn a_guest_is_served_while_it_arrives() {
    for slots in [false, true] {
        run("postcopy_serves", |rig| {
            let builder = rig.builder();
            let builder = if slots { builder.mem_slots() } else { builder };
            let mut s = arriving_with(rig, builder, &[RegionSpec::new(0, REGION)]);
            let request = made(&mut s);
            let mut pages = pages_of(&s, &request).to_vec();
            s.evacuate();
            s.start_queue(0);
            s.queues[0].kick_always().unwrap();
            answered(&mut s, &request);
            s.pages().wait_wanted(pages[6]);
            pages.sort_unstable();
            assert_eq!(s.pages().wanted(), pages);
            s.pages().supply_all(true);
            assert_eq!(s.fe().postcopy_end().unwrap(), 0);
            s.start_queue(1);
            works(&mut s);
            // Nobody asks the front-end any more.
            assert_eq!(s.pages().wanted(), pages);
        });
    }
}

#[test]
fn the_end_frees_who_waits() {
    run("postcopy_end", |rig| {
        let mut s = arriving(rig, &[RegionSpec::new(0, REGION)]);
        let request = made(&mut s);
        let pages = pages_of(&s, &request);
        s.evacuate();
        s.pages().hold(true);
        s.start_queue(0);
        s.pages().wait_wanted(pages[0]);
        // Every page has come, and the last words about them are lost.
        s.pages().supply_all(false);
        assert_eq!(s.fe().postcopy_end().unwrap(), 0);
        answered(&mut s, &request);
    });
}

#[test]
fn what_the_system_forbids_is_not_offered() {
    run("postcopy_forbidden", |rig| {
        let offered = rig.frontend().get_protocol_features().unwrap();
        assert_ne!(offered & protocol_feature::PAGEFAULT, 0, "needs root");
        // A thread alone becomes somebody who may not; its server's own thread inherits that.
        let forbidden = thread::spawn(|| {
            // SAFETY: the call takes three integers.
            let status = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(status, 0, "needs root");
            let (fe, theirs) = Frontend::pair().unwrap();
            let device = Scripted(Arc::new(Script::default()));
            let server = Server::builder().build(device).unwrap();
            server.start(Address::ConnectedFd(theirs), None).unwrap();
            let offered = fe.get_protocol_features().unwrap();
            server.stop().unwrap();
            offered
        });
        let forbidden = forbidden.join().unwrap();
        assert_eq!(
            offered & !forbidden & !protocol_feature::CONFIG,
            protocol_feature::PAGEFAULT
        );
    });
}

//! What a loop of the program's own is asked to watch: never what cannot be watched, and nothing that is closed
//! before the watch is taken back.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use vu_server::{Context, EventLoop, Result, Watch};

use super::device::{SOON, Script, lock};
use super::rig::{Bad, Rig, run_on, works};
use crate::sim::wire::req;
use crate::sim::{Deadline, EventFd, echo, eventually};

/// One watch: what to poll for, what to call, and which file it is.
struct Entry {
    events: u32,
    watch: Watch,
    file: (u64, u64),
}

#[derive(Default)]
struct Book {
    watches: Mutex<BTreeMap<RawFd, Entry>>,
    /// How many watches were set, and what was wrong with any.
    set: Mutex<usize>,
    misuse: Mutex<Vec<String>>,
    quit: AtomicBool,
}

/// Device and inode of an open descriptor; `None` if it is closed.
fn file_of(fd: RawFd) -> Option<(u64, u64)> {
    // SAFETY: all zeroes is a valid stat, and there is room for one.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    (unsafe { libc::fstat(fd, &mut stat) } == 0).then_some((stat.st_dev, stat.st_ino))
}

struct PollLoop(Arc<Book>);

impl EventLoop for PollLoop {
    fn set_watch(&self, fd: RawFd, events: u32, watch: Watch) -> Result<()> {
        let Some(file) = file_of(fd) else {
            lock(&self.0.misuse).push(format!("{fd} is watched and not open"));
            return Ok(());
        };
        *lock(&self.0.set) += 1;
        lock(&self.0.watches).insert(
            fd,
            Entry {
                events,
                watch,
                file,
            },
        );
        Ok(())
    }

    fn remove_watch(&self, fd: RawFd) {
        let removed = lock(&self.0.watches).remove(&fd);
        if removed.is_none_or(|entry| file_of(fd) != Some(entry.file)) {
            lock(&self.0.misuse).push(format!("{fd} was closed before its watch was removed"));
        }
    }
}

impl Book {
    fn turn(&self) {
        let mut fds: Vec<libc::pollfd> = lock(&self.watches)
            .iter()
            .map(|(&fd, entry)| libc::pollfd {
                fd,
                events: entry.events as i16,
                revents: 0,
            })
            .collect();
        // SAFETY: as many valid entries as the count says. The time-out is for watches that are added meanwhile.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 10) };
        for ready in fds.iter().filter(|entry| entry.revents != 0) {
            let watch = lock(&self.watches)
                .get(&ready.fd)
                .map(|entry| entry.watch.clone());
            if let Some(watch) = watch {
                watch.ready(ready.revents as u32);
            }
        }
    }

    #[track_caller]
    fn check(&self) {
        let misuse = lock(&self.misuse).clone();
        assert!(misuse.is_empty(), "{misuse:?}");
    }
}

/// Runs a test against a server that lives in a loop of its own kind.
#[track_caller]
fn run_watched(name: &str, test: impl FnOnce(&Rig, &Book)) {
    let book = Arc::new(Book::default());
    let context = || {
        let (send, receive) = mpsc::channel();
        let looping = book.clone();
        thread::spawn(move || {
            let own = PollLoop(looping.clone());
            let context = Arc::new(Context::foreign(Box::new(own)).unwrap());
            send.send(context.clone()).unwrap();
            while !looping.quit.load(Ordering::Acquire) {
                looping.turn();
            }
        });
        receive.recv().unwrap()
    };
    run_on(
        name,
        Script::default(),
        |builder| builder,
        context,
        |rig, _| {
            test(rig, &book);
            rig.server.stop().unwrap();
            book.check();
            book.quit.store(true, Ordering::Release);
        },
    );
}

#[test]
fn case_22_nobody_is_asked_to_watch_what_cannot_be_watched() {
    run_watched("case_22_watches", |rig, book| {
        let mut s = rig.session();
        works(&mut s);
        let set = *lock(&book.set);
        let file = File::open("/proc/self/exe").unwrap();
        let directory = File::open("/").unwrap();
        let memory = s.memory.regions()[0].raw_fd();
        for fd in [file.as_raw_fd(), directory.as_raw_fd(), memory] {
            rig.all_refused(&mut s, &[Bad::u64(req::SET_VRING_KICK, 0).fds(&[fd])]);
        }
        assert_eq!(*lock(&book.set), set, "watches set");
    });
}

#[test]
fn case_27_the_old_watch_goes_before_its_descriptor_is_closed() {
    run_watched("case_27_watches", |rig, book| {
        let mut s = rig.session();
        for _ in 0..50 {
            let kick = EventFd::new().unwrap();
            s.fe().set_vring_kick(0, Some(kick.as_raw_fd())).unwrap();
            s.queues[0].kick = kick;
            echo::round_trip(&mut s.queues[0], b"through the new one");
            book.check();
        }
        // The queues' two and the doorbell.
        eventually("watches", Deadline::after(SOON), 3, || {
            lock(&book.watches).len()
        });
        s.stop_queue(0);
        s.start_queue(0);
        works(&mut s);
        s.disconnect();
    });
}

//! Stopping, starting, detaching and freeing inside callbacks, and callbacks that panic.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vu_server::{Address, Context, Server, ServerBuilder};

use crate::sim::echo::EchoRequest;
use crate::sim::{Deadline, Session, eventually};
use crate::stop::*;

const DRAIN: Duration = Duration::from_millis(60);

fn builder() -> ServerBuilder {
    Server::builder()
        .queues(2)
        .config_space([0; 8], [1; 8])
        .drain_timeout(Some(DRAIN))
}

/// The front-end's side of a scenario in which a device hears every callback but `stopped`. False when the
/// server ends the connection in its middle, which is not an error here.
struct Scenario {
    session: Session,
}

impl Scenario {
    fn play(path: &Path) -> Option<Session> {
        let frontend = crate::sim::Frontend::connect(path).ok()?;
        let session = Session::builder().queues(2).try_over(frontend).ok()?;
        let mut scenario = Scenario { session };
        scenario.go_through()?;
        Some(scenario.session)
    }

    fn go_through(&mut self) -> Option<()> {
        self.submit(0, b"kick it!");
        self.until(|session| session.queues[0].poll_used().unwrap().is_some())?;
        self.session.fe().set_config(2, 0, &[1, 2]).ok()?;
        self.session.fe().get_vring_base(0).ok()?;
        // A head beyond the ring breaks it.
        self.session.queues[1].publish_raw(0xffff).unwrap();
        self.session.queues[1].kick_always().unwrap();
        self.until(|session| session.queues[1].err.is_signalled().unwrap())?;
        self.session.fe().reset_device().ok()?;
        self.session.reset_rings();
        self.session.try_start_queue(0).ok()?;
        // In flight when the connection ends.
        self.submit(0, b"hold it!");
        Some(())
    }

    fn submit(&mut self, queue: usize, bytes: &[u8]) {
        let len = bytes.len() as u32;
        let mut request = EchoRequest::new(&self.session.memory, len, len);
        request.send(bytes);
        self.session.queues[queue].submit(&request.segs()).unwrap();
    }

    /// Waits until `done`, or the server ends the connection.
    fn until(&mut self, mut done: impl FnMut(&mut Session) -> bool) -> Option<()> {
        let deadline = Deadline::secs(10);
        while !done(&mut self.session) {
            if self
                .session
                .fe()
                .answered_within(Duration::from_millis(2))
                .unwrap()
            {
                return done(&mut self.session).then_some(());
            }
            assert!(!deadline.expired(), "neither an answer nor the end");
        }
        Some(())
    }
}

/// What one scenario left.
struct Played {
    server: Arc<Server>,
    looper: Looper,
    journal: Arc<Journal>,
    held: Arc<Held>,
    path: PathBuf,
}

/// Plays the scenario with a device that runs `act` in callback `name`. Whole: it must get to its end, where
/// the connection ends with an element in flight.
fn play(name: &'static str, whole: bool, act: impl Fn(&Server) + Send + Sync + 'static) -> Played {
    let (journal, handle, path) = (Journal::new(), Handle::default(), socket_path("callbacks"));
    let own = handle.clone();
    let device = Probe::new(&journal, move |called, _| {
        if called == name
            && let Some(server) = own.get()
        {
            act(&server);
        }
        None
    });
    let held = device.held.clone();
    let server = handle.build(builder(), device);
    let looper = Looper::new();
    server
        .start(Address::Listen(path.clone()), Some(&looper.ctx))
        .unwrap();
    let session = Scenario::play(&path);
    if whole {
        assert!(
            session.is_some(),
            "{name}: the scenario did not come to its end: {:?}",
            journal.events()
        );
        held.wait_for(1);
    }
    Played {
        server,
        looper,
        journal,
        held,
        path,
    }
}

impl Played {
    fn wait_for_the_end(&self) {
        self.journal.wait_for("orphaned 0");
        self.journal.wait_for("disconnected 0");
    }

    /// Frees everything and checks that the device heard of its end once.
    fn end(self) {
        assert!(!self.path.exists());
        Arc::into_inner(self.server)
            .unwrap()
            .free()
            .map_err(|(error, _)| error)
            .unwrap();
        assert_eq!(self.journal.count("destroy"), 1);
        assert_eq!(self.journal.events().last().unwrap(), "destroy");
        drop(self.held.take());
        self.looper.finish();
    }
}

#[test]
fn stop_in_any_callback_is_refused_and_changes_nothing() {
    let _guard = guard("stop_in_any_callback_is_refused_and_changes_nothing", 120);
    let elsewhere = Arc::new(builder().build(Probe::echo(&Journal::new())).unwrap());
    for name in CALLBACKS {
        let refused = Arc::new(Mutex::new(Vec::new()));
        let (errors, other) = (refused.clone(), elsewhere.clone());
        let played = play(name, true, move |server| {
            let was = server.is_stopped();
            let address = Address::Listen(PathBuf::from("/nonexistent/in-callback"));
            let results = [
                server.stop(),
                server.detach(),
                server.start(address, None),
                // Any callback means any: also one of another server.
                other.stop(),
            ];
            let errnos = results.map(|result| result.err().map_or(0, |error| error.errno()));
            lock(&errors).push((errnos, was == server.is_stopped()));
        });
        played.wait_for_the_end();
        assert!(!played.server.is_stopped(), "in {name}");
        played.server.request_stop().unwrap();
        played.journal.wait_for("stopped");
        // The loop's thread may still be in there.
        eventually("the callback", Deadline::secs(10), false, || {
            lock(&refused).is_empty()
        });
        played.server.stop().unwrap();
        assert!(played.server.is_stopped());
        let refused = std::mem::take(&mut *lock(&refused));
        for seen in refused {
            assert_eq!(seen, ([libc::EDEADLK; 4], true), "in {name}");
        }
        played.end();
    }
}

#[test]
fn request_stop_in_any_callback_ends_with_stopped() {
    let _guard = guard("request_stop_in_any_callback_ends_with_stopped", 120);
    for name in CALLBACKS {
        // After the end of the connection there is one more way to get there.
        let late = ["orphaned", "disconnected", "stopped"].contains(&name);
        let played = play(name, late, |server| server.request_stop().unwrap());
        if name == "stopped" {
            played.server.request_stop().unwrap();
        }
        played.journal.wait_for("stopped");
        assert!(played.server.is_stopped(), "in {name}");
        let events = played.journal.events();
        assert_eq!(events.last().unwrap(), "stopped", "{events:?}");
        assert_eq!(played.journal.count("stopped"), 1, "{events:?}");
        let connections = played.journal.count("connected");
        assert_eq!(
            played.journal.count("disconnected 0"),
            connections,
            "{events:?}"
        );
        played.server.stop().unwrap();
        played.end();
    }
}

/// A server that its device owns, so that a callback can try to free it.
type Owned = Arc<Mutex<Option<Server>>>;

#[test]
fn free_in_any_callback_but_stopped_is_refused() {
    let _guard = guard("free_in_any_callback_but_stopped_is_refused", 120);
    for name in CALLBACKS {
        let owned = Owned::default();
        let (journal, path) = (Journal::new(), socket_path("free"));
        let (own, heard) = (owned.clone(), journal.clone());
        let device = Probe::new(&journal, move |called, _| {
            let server = if called == name {
                lock(&own).take()
            } else {
                None
            };
            if let Some(server) = server {
                match server.free() {
                    Ok(()) => heard.note("freed"),
                    Err((error, server)) => {
                        heard.note(format_args!("refused {}", error.errno()));
                        *lock(&own) = Some(server);
                    }
                }
            }
            None
        });
        let held = device.held.clone();
        let server = builder().build(device).unwrap();
        let looper = Looper::new();
        server
            .start(Address::Listen(path.clone()), Some(&looper.ctx))
            .unwrap();
        *lock(&owned) = Some(server);
        let session = Scenario::play(&path).expect("the scenario's end");
        held.wait_for(1);
        drop(session);
        journal.wait_for("disconnected 0");
        // Unless the callback has it just now.
        eventually("request_stop", Deadline::secs(10), true, || {
            lock(&owned)
                .as_ref()
                .is_some_and(|server| server.request_stop().is_ok())
        });
        if name == "stopped" {
            journal.wait_for("freed");
            assert_eq!(journal.count(&format!("refused {}", libc::EDEADLK)), 0);
            assert!(lock(&owned).is_none());
        } else {
            journal.wait_for("stopped");
            journal.wait_for(&format!("refused {}", libc::EDEADLK));
            assert_eq!(journal.count("freed"), 0);
            let server = lock(&owned).take().unwrap();
            server.free().map_err(|(error, _)| error).unwrap();
        }
        assert_eq!(journal.count("destroy"), 1);
        drop(held.take());
        looper.finish();
    }
}

#[test]
fn free_while_running_is_refused_elsewhere_too() {
    let _guard = guard("free_while_running_is_refused_elsewhere_too", 30);
    let server = builder().build(Probe::echo(&Journal::new())).unwrap();
    let path = socket_path("free-running");
    server.start(Address::Listen(path.clone()), None).unwrap();
    let (error, server) = server.free().unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    assert!(!server.is_stopped() && path.exists());
    server.stop().unwrap();
    server.free().map_err(|(error, _)| error).unwrap();
}

/// The context that delivered `stopped` has nothing of the server left, inside the callback or after it.
#[test]
fn free_inside_stopped_on_the_thread_of_the_loop() {
    let _guard = guard("free_inside_stopped_on_the_thread_of_the_loop", 30);
    let owned = Owned::default();
    let journal = Journal::new();
    let own = owned.clone();
    let device = Probe::new(&journal, move |called, _| {
        if called == "stopped" {
            let server = lock(&own).take().unwrap();
            server.free().map_err(|(error, _)| error).unwrap();
        }
        None
    });
    let server = builder().build(device).unwrap();
    let ctx = Context::epoll().unwrap();
    let path = socket_path("free-own");
    server
        .start(Address::Listen(path.clone()), Some(&ctx))
        .unwrap();
    let session = Session::builder().queues(2).connect(&path);
    while journal.count("queue_started 1") == 0 {
        ctx.dispatch(Some(Duration::from_millis(5))).unwrap();
    }
    server.request_stop().unwrap();
    *lock(&owned) = Some(server);
    while journal.count("destroy") == 0 {
        ctx.dispatch(Some(Duration::from_millis(5))).unwrap();
    }
    assert_eq!(
        journal.events().last_chunk().unwrap(),
        &["stopped", "destroy"]
    );
    session.fe().wait_closed().unwrap();
    ctx.dispatch(Some(Duration::ZERO)).unwrap();
    ctx.free().map_err(|(error, _)| error).unwrap();
    assert_eq!(Arc::strong_count(&journal), 1, "the server's memory stays");
}

// ---- panics ---------------------------------------------------------------------------------------------

#[test]
fn a_panic_in_any_callback_poisons_the_server_and_nothing_else() {
    let _guard = guard("a_panic_in_any_callback_poisons_the_server", 120);
    for name in CALLBACKS {
        let late = ["orphaned", "disconnected", "stopped"].contains(&name);
        let played = play(name, late, move |_| panic!("the device's bug in {name}"));
        if name == "stopped" {
            played.wait_for_the_end();
            played.server.request_stop().unwrap();
        }
        played.journal.wait_for(&first_entry(name));
        poisoned(&played, name);
        within(Duration::from_secs(5), "the stop", || played.server.stop()).unwrap();
        assert!(played.server.is_stopped());
        let address = Address::Listen(played.path.clone());
        assert_errno(
            played.server.start(address, Some(&played.looper.ctx)),
            libc::ENOTRECOVERABLE,
        );
        let heard = played.journal.events();
        let after = heard
            .iter()
            .skip_while(|event| !event.starts_with(name))
            .count();
        // A kick is not among the events.
        assert!(
            after <= 1,
            "in {name}: callbacks after the panic: {heard:?}"
        );
        played.end();
    }
}

/// The journal's entry for the first call of a callback in the scenario.
fn first_entry(name: &str) -> String {
    let details = match name {
        "queue_started" | "kick" | "queue_stopped" | "orphaned" => " 0",
        "disconnected" => " 0",
        "config_written" => " 2 2",
        "queue_stopping" => " 0 VringBase",
        "ring_broken" => " 1",
        _ => "",
    };
    format!("{name}{details}")
}

fn poisoned(played: &Played, name: &str) {
    let what = format!("errno after a panic in {name}");
    eventually(
        &what,
        Deadline::secs(10),
        Some(libc::ENOTRECOVERABLE),
        || {
            let attached = played.server.attach(&played.looper.ctx);
            attached.err().map(|error| error.errno())
        },
    );
    assert_errno(
        played.server.attach_queue(1, Some(&played.looper.ctx)),
        libc::ENOTRECOVERABLE,
    );
}

/// A poisoned device still hears the end of what it asked for: it may have nothing else to learn it from.
#[test]
fn stopped_is_heard_by_a_poisoned_device() {
    let _guard = guard("stopped_is_heard_by_a_poisoned_device", 30);
    let played = play("kick", false, |_| panic!("the device's bug"));
    poisoned(&played, "kick");
    played.server.request_stop().unwrap();
    played.journal.wait_for("stopped");
    played.end();
}

#[test]
fn a_panic_in_destroy_or_wake_or_a_watch_stays_where_it_is() {
    let _guard = guard("a_panic_in_destroy_or_wake_or_a_watch", 30);
    let journal = Journal::new();
    let handle = Handle::default();
    let wake = journal.clone();
    let device = Probe::new(&journal, |called, _| {
        assert_ne!(called, "destroy", "the device's bug");
        None
    });
    let builder = builder().wake(move || {
        wake.note("wake");
        panic!("the program's bug")
    });
    let server = handle.build(builder, device);
    let looper = Looper::new();
    let bell = crate::sim::EventFd::new().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&bell);
    let seen = journal.clone();
    looper
        .ctx
        .watch(fd, libc::POLLIN as u32, move |_| {
            seen.note("watch");
            panic!("the program's bug")
        })
        .unwrap();
    bell.signal().unwrap();
    journal.wait_for_count("watch", 2);
    looper.ctx.unwatch(fd).unwrap();
    let path = socket_path("panics");
    server
        .start(Address::Listen(path), Some(&looper.ctx))
        .unwrap();
    within(Duration::from_secs(5), "the stop", || server.stop()).unwrap();
    assert!(journal.count("wake") >= 1);
    Arc::into_inner(server)
        .unwrap()
        .free()
        .map_err(|(error, _)| error)
        .unwrap();
    assert_eq!(journal.count("destroy"), 1);
    looper.finish();
}

//! Contexts in tokio runtimes, with a front-end in a thread of its own.

#[path = "../examples/tokio.rs"]
mod example;
#[path = "sim/mod.rs"]
mod sim;
#[path = "common/stop.rs"]
mod stop;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::{LocalSet, yield_now};
use vu_server::{Address, Context, Device, Kick, Server, Virtqueue};

use crate::sim::echo::EchoLoad;
use crate::sim::{EventFd, Session};
use crate::stop::*;

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .unwrap()
}

/// `count` requests on each of two queues, in a thread; then `end` is notified.
fn front_end(path: &Path, count: u64, end: &Arc<Notify>) -> thread::JoinHandle<Session> {
    let (path, end) = (PathBuf::from(path), end.clone());
    thread::spawn(move || {
        let mut session = Session::builder().queues(2).connect(path);
        for queue in &mut session.queues {
            EchoLoad::new(queue, 8, 64).run(count);
        }
        end.notify_one();
        session
    })
}

fn example_in(runtime: Runtime, name: &str) {
    let path = socket_path(name);
    let end = Arc::new(Notify::new());
    let client = front_end(&path, 200, &end);
    runtime
        .block_on(example::echo(Address::Listen(path), end.notified()))
        .unwrap();
    client.join().unwrap();
}

#[test]
fn the_example_serves_in_a_current_thread_runtime() {
    let _guard = guard("tokio, current thread", 60);
    example_in(current_thread(), "tokio-one");
}

#[test]
fn the_example_serves_in_a_multi_thread_runtime() {
    let _guard = guard("tokio, multi thread", 60);
    example_in(multi_thread(), "tokio-many");
}

/// Callbacks that overlap or see the past would show in a count that is neither locked nor atomic in effect.
struct Counting {
    count: Arc<AtomicUsize>,
}

impl Device for Counting {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        while let Ok(Some(element)) = vq.pop_one() {
            let before = self.count.load(Ordering::Relaxed);
            reply(element);
            self.count.store(before + 1, Ordering::Relaxed);
        }
        Kick::Done
    }
}

fn counting(context: &Context, path: &Path) -> (Server, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let device = Counting {
        count: count.clone(),
    };
    let server = Server::builder().queues(2).build(device).unwrap();
    server
        .start(Address::Listen(path.into()), Some(context))
        .unwrap();
    (server, count)
}

/// A task that keeps workers busy, so that the one that serves has to move.
async fn busy() {
    loop {
        yield_now().await;
    }
}

#[test]
fn callbacks_come_one_at_a_time_while_the_task_moves_between_workers() {
    let _guard = guard("tokio, moving", 60);
    let runtime = multi_thread();
    let context = Arc::new(Context::epoll().unwrap());
    let path = socket_path("tokio-moving");
    let (server, count) = counting(&context, &path);
    let end = Arc::new(Notify::new());
    let client = front_end(&path, 2_000, &end);
    runtime.block_on(async {
        for _ in 0..4 {
            tokio::spawn(busy());
        }
        let served = context.clone();
        let serving = tokio::spawn(async move { vu_server::tokio::serve(&served).await });
        end.notified().await;
        context.quit();
        serving.await.unwrap().unwrap();
    });
    runtime.shutdown_background();
    drop(client.join().unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 4_000);
    context.adopt().unwrap();
    server.stop().unwrap();
}

#[test]
fn a_serving_task_that_is_dropped_again_and_again_loses_nothing() {
    let _guard = guard("tokio, dropped", 60);
    let runtime = current_thread();
    let context = Context::epoll().unwrap();
    let path = socket_path("tokio-dropped");
    let (server, count) = counting(&context, &path);
    let end = Arc::new(Notify::new());
    let client = front_end(&path, 500, &end);
    LocalSet::new().block_on(&runtime, async {
        let mut ended = std::pin::pin!(end.notified());
        loop {
            tokio::select! {
                biased;
                () = &mut ended => break,
                result = vu_server::tokio::serve(&context) => result.unwrap(),
                () = tokio::time::sleep(Duration::from_micros(300)) => {}
            }
        }
    });
    drop(client.join().unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 1_000);
    server.stop().unwrap();
}

/// Two devices in one context, beside a task that never waits for anything.
#[test]
fn busy_tasks_and_two_servers_starve_nobody() {
    let _guard = guard("tokio, two servers", 60);
    let runtime = current_thread();
    let context = Context::epoll().unwrap();
    let paths = [socket_path("tokio-first"), socket_path("tokio-second")];
    let servers = paths.each_ref().map(|path| counting(&context, path));
    let ends = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let clients: Vec<_> = paths
        .iter()
        .zip(&ends)
        .map(|(path, end)| front_end(path, 200, end))
        .collect();
    runtime.block_on(async {
        tokio::spawn(busy());
        tokio::select! {
            result = vu_server::tokio::serve(&context) => result.unwrap(),
            () = async { ends[0].notified().await; ends[1].notified().await } => {}
        }
    });
    for client in clients {
        drop(client.join().unwrap());
    }
    for (server, count) in servers {
        assert_eq!(count.load(Ordering::Relaxed), 400);
        server.stop().unwrap();
    }
}

/// The runtime tells of changes only, the context's watches are called for as long as there is something.
#[test]
fn what_a_callback_leaves_is_dispatched_again() {
    let _guard = guard("tokio, level", 30);
    const LEFT: usize = 100;
    let context = Arc::new(Context::epoll().unwrap());
    let ready = EventFd::new().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let (seen, ends) = (calls.clone(), Arc::downgrade(&context));
    context
        .watch(ready.as_raw_fd(), libc::POLLIN as u32, move |_| {
            if seen.fetch_add(1, Ordering::Relaxed) + 1 == LEFT {
                ends.upgrade().unwrap().quit();
            }
        })
        .unwrap();
    ready.signal().unwrap();
    current_thread()
        .block_on(vu_server::tokio::serve(&context))
        .unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), LEFT);
    context.unwatch(ready.as_raw_fd()).unwrap();
}

#[test]
fn a_quit_ends_the_next_serve_at_once() {
    let _guard = guard("tokio, quit", 30);
    let context = Context::epoll().unwrap();
    context.quit();
    current_thread()
        .block_on(vu_server::tokio::serve(&context))
        .unwrap();
    context.free().map_err(|(error, _)| error).unwrap();
}

#[test]
fn other_kinds_of_context_are_refused() {
    let context = Context::polled().unwrap();
    let result = current_thread().block_on(vu_server::tokio::serve(&context));
    assert_errno(result, libc::ENOTSUP);
}

/// A stop in the runtime's own thread, when nothing serves any more.
#[test]
fn a_stop_after_serve_was_dropped_serves_the_context_itself() {
    let _guard = guard("tokio, stop", 60);
    let runtime = current_thread();
    let context = Context::epoll().unwrap();
    let path = socket_path("tokio-stop");
    let (server, _count) = counting(&context, &path);
    let end = Arc::new(Notify::new());
    let client = front_end(&path, 10, &end);
    runtime.block_on(async {
        tokio::select! {
            result = vu_server::tokio::serve(&context) => result.unwrap(),
            () = end.notified() => {}
        }
        server.stop().unwrap();
    });
    drop(client.join().unwrap());
    drop(server);
    context.free().map_err(|(error, _)| error).unwrap();
}

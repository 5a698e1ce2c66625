//! A device in a tokio runtime: what it is sent it sends back, each request from a task of its own.
//!
//! `cargo run --features tokio --example tokio -- /tmp/echo.sock`, until SIGINT.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use vu_server::{Address, Context, Device, Element, Kick, Result, Server, Virtqueue};

struct Echo {
    /// Callbacks also come from a stop on a thread that is not the runtime's.
    runtime: Handle,
}

impl Device for Echo {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        while let Ok(Some(element)) = vq.pop_one() {
            self.runtime.spawn(answer(element));
        }
        Kick::Done
    }
}

async fn answer(element: Element) {
    let mut bytes = [0; 4096];
    let len = element.read(0, &mut bytes);
    // A device with work to do waits for it here.
    tokio::time::sleep(Duration::from_micros(100)).await;
    let written = element.write(0, &bytes[..len]) as u32;
    element.complete(written).expect("written fits");
}

/// Serves front-ends at `address` until `end`.
pub async fn echo(address: Address, end: impl Future) -> Result<()> {
    let context = Arc::new(Context::epoll()?);
    let device = Echo {
        runtime: Handle::current(),
    };
    let server = Server::builder().name("echo").queues(2).build(device)?;
    server.start(address, Some(&context))?;
    let serving = tokio::spawn({
        let context = context.clone();
        async move { vu_server::tokio::serve(&context).await }
    });
    end.await;
    // The tasks, this one's too, go on meanwhile.
    tokio::task::spawn_blocking(move || server.stop())
        .await
        .expect("a stop does not panic")?;
    context.quit();
    serving.await.expect("no callback panics")
}

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code, reason = "a test uses the rest")]
async fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).expect("usage: tokio SOCKET");
    echo(Address::Listen(path.into()), tokio::signal::ctrl_c()).await
}

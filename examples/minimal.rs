// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest useful device: a virtio entropy source. It has one queue and no configuration,
//! and each request is a buffer that wants random bytes.

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use vu_server::{Address, Context, Device, Element, Kick, Level, Server, Virtqueue};

const BATCH: usize = 16;

struct Entropy {
    source: File,
}

impl Entropy {
    /// 256 bytes at most: the driver asks again for more.
    fn fill(&self, element: &Element) -> u32 {
        let mut bytes = [0; 256];
        let wanted = bytes.len().min(element.writable_len() as usize);
        match (&self.source).read_exact(&mut bytes[..wanted]) {
            Ok(()) => element.write(0, &bytes[..wanted]) as u32,
            Err(_) => 0,
        }
    }
}

impl Device for Entropy {
    /// There may be requests. One batch, then whatever else the loop serves has its turn.
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let mut batch: [Option<Element>; BATCH] = Default::default();
        let Ok(1..) = vq.pop(&mut batch) else {
            return Kick::Done;
        };
        for element in batch.into_iter().flatten() {
            let written = self.fill(&element);
            // Goes to the driver with the batch; cannot fail, `written` fits the element.
            let _ = vq.stage(element, written);
        }
        Kick::Again
    }
}

fn serve(path: &str) -> Result<(), Box<dyn std::error::Error>> {
    // Before there is a second thread: it inherits the mask.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let context = Arc::new(Context::epoll()?);
    let source = File::open("/dev/urandom")?;
    let server = Server::builder()
        .name("rng")
        .log(Level::Info, |_, message| eprintln!("minimal: {message}"))
        .build(Entropy { source })?;
    server.start(Address::Listen(path.into()), Some(&context))?;
    eprintln!("minimal: listening on {path}");
    let quit = Arc::clone(&context);
    std::thread::spawn(move || {
        let _ = signals.wait();
        quit.quit();
    });
    context.run()?;
    server.stop()?;
    Ok(())
}

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("Usage: minimal SOCKET-PATH");
        return ExitCode::from(2);
    };
    match serve(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("minimal: {error}");
            ExitCode::FAILURE
        }
    }
}

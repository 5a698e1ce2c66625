//! Serves a virtio-vsock device that sends back what the guest sends it. The packets are those of the rust-vmm
//! crate `virtio-vsock`, which knows nothing of this library.
//!
//! ```sh
//! cargo run --features rust-vmm --example vsock-echo -- /tmp/vsock.sock 3
//! qemu-system-x86_64 ... -chardev socket,id=vsock,path=/tmp/vsock.sock -device vhost-user-vsock-pci,chardev=vsock
//! ```

mod device;

use std::process::ExitCode;

use vu_server::{Address, Context};

fn serve(socket: &str, guest_cid: u64) -> vu_server::Result<()> {
    let context = Context::epoll()?;
    let server = device::describe(guest_cid).build(device::Echo::new(guest_cid))?;
    server.start(Address::Listen(socket.into()), Some(&context))?;
    context.run()?;
    server.stop()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, cid] = arguments.as_slice() else {
        eprintln!("usage: vsock-echo SOCKET GUEST-CID");
        return ExitCode::from(2);
    };
    let Ok(cid) = cid.parse() else {
        eprintln!("vsock-echo: {cid} is not a number");
        return ExitCode::from(2);
    };
    match serve(socket, cid) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock-echo: {error}");
            ExitCode::FAILURE
        }
    }
}

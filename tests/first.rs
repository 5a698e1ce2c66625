#[path = "sim/mod.rs"]
mod sim;
use sim::*;
use vu_server::*;

struct Echo;
impl Device for Echo {
    fn kick(&self, vq: &mut Virtqueue<'_>) -> Kick {
        let mut batch: [Option<Element>; 32] = Default::default();
        loop {
            let n = match vq.pop(&mut batch) { Ok(0) | Err(_) => return Kick::Done, Ok(n) => n };
            for place in &mut batch[..n] {
                let Some(e) = place.take() else { continue };
                let mut buf = vec![0; e.readable_len() as usize];
                e.read(0, &mut buf);
                let w = e.write(0, &buf);
                e.complete(w as u32).unwrap();
            }
        }
    }
}

#[test]
fn echo_round_trip() {
    let _guard = HangGuard::secs("echo_round_trip", 20);
    let path = std::env::temp_dir().join(format!("vu-first-{}.sock", std::process::id()));
    let server = Server::builder().queues(2).log(Level::Debug, |_, l| eprintln!("{l}")).build(Echo).unwrap();
    let ctx = std::sync::Arc::new(Context::epoll().unwrap());
    server.start(Address::Listen(path.clone()), Some(&ctx)).unwrap();
    let looper = { let ctx = ctx.clone(); std::thread::spawn(move || ctx.run()) };
    let mut s = Session::builder().queues(2).connect(&path);
    echo::round_trip(&mut s.queues[0], b"hi");
    echo::round_trip(&mut s.queues[1], b"ho");
    s.stop_all();
    s.start_all();
    for i in 0..1000u32 { echo::round_trip(&mut s.queues[1], &i.to_ne_bytes()); }
    s.disconnect();
    let mut s = Session::builder().queues(2).connect(&path);
    echo::round_trip(&mut s.queues[0], b"hi");
    let server_stats = server.stats();
    assert_eq!(server_stats.connections, 2);
    server.stop().unwrap();
    assert!(!path.exists());
    ctx.quit();
    looper.join().unwrap().unwrap();
    drop(s);
}

//! `vu-blk` as a daemon: what it says, its signals, and systemd.

#[path = "common/vu_blk.rs"]
mod vu_blk;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use vu_blk::{Running, features_of, program, scratch, with_fd};

/// What is served, and how QEMU gets at it.
const START_UP_LINES: usize = 2;

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn it_says_what_it_serves_and_what_qemu_needs() {
    let socket = scratch("start,up.sock");
    let mut vu_blk = Running::start(program().args([
        &format!("--socket-path={}", socket.display()),
        "--null=3M",
        "--num-queues=3",
    ]));
    let mut lines = vu_blk.lines();
    let served = lines.next().expect("a line");
    assert!(
        served.contains("6144 sectors (3 MiB), 3 queues")
            && served.ends_with(&format!("listening on {}", socket.display())),
        "{served}"
    );
    let qemu = lines.next().expect("a line");
    let escaped = socket.display().to_string().replace(',', ",,");
    for part in [
        "-object memory-backend-memfd,id=mem,size=1G,share=on ",
        "-machine q35,memory-backend=mem ",
        &format!("-chardev socket,id=disk,path={escaped} "),
        "-device vhost-user-blk-pci,chardev=disk,num-queues=3",
    ] {
        assert!(qemu.contains(part), "{part} in {qemu}");
    }
    vu_blk.signal(libc::SIGTERM);
    assert_eq!(vu_blk.wait(), 0);
    assert_eq!(lines.next(), None, "a quiet end");
}

/// The lines of a program that a front-end has asked for its features.
fn lines_of_a_connection(options: &[&str], name: &str) -> Vec<String> {
    let socket = scratch(name);
    let listener = UnixListener::bind(&socket).expect("bind");
    let mut command = program();
    command.args(["--fd=3", "--null=1M"]).args(options);
    let mut vu_blk = Running::start(with_fd(&mut command, listener.into()));
    let front_end = UnixStream::connect(&socket).expect("connect");
    features_of(&front_end);
    vu_blk.signal(libc::SIGTERM);
    assert_eq!(vu_blk.wait(), 0);
    std::fs::remove_file(&socket).expect("remove");
    vu_blk.lines().collect()
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn verbose_names_each_message() {
    let quiet = lines_of_a_connection(&[], "quiet.sock");
    assert_eq!(quiet.len(), START_UP_LINES, "{quiet:?}");
    let verbose = lines_of_a_connection(&["--verbose"], "verbose.sock");
    let named = verbose
        .iter()
        .any(|line| line.contains("VHOST_USER_GET_FEATURES"));
    assert!(named, "{verbose:?}");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn sigusr1_prints_one_line_of_statistics() {
    let socket = scratch("stats.sock");
    let mut vu_blk = Running::start(
        program()
            .arg(format!("--socket-path={}", socket.display()))
            .arg("--null=1M"),
    );
    let mut lines = vu_blk.lines();
    for _ in 0..START_UP_LINES {
        lines.next().expect("a start-up line");
    }
    vu_blk.signal(libc::SIGUSR1);
    let line = lines.next().expect("statistics");
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert!(
        line.contains("\"connections\":0") && line.contains("\"pops\":0"),
        "{line}"
    );
    vu_blk.signal(libc::SIGINT);
    assert_eq!(vu_blk.wait(), 0);
    assert!(!socket.exists());
}

/// The words of the unit's `ExecStart` after the program, for an instance called as the image is.
fn unit_arguments(image: &Path) -> Vec<String> {
    const UNIT: &str = include_str!("../examples/systemd/vu-blk@.service");
    let command = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .expect("ExecStart");
    let image = image.to_str().expect("UTF-8");
    let arguments = command.split_whitespace().skip(1);
    arguments
        .map(|word| word.replace("/var/lib/vu-blk/%i.img", image))
        .collect()
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn systemd_starts_the_unit_when_a_front_end_connects() {
    let (socket, image) = (scratch("unit.sock"), scratch("unit.img"));
    std::fs::write(&image, [0; 4096]).expect("an image");
    let arguments = unit_arguments(&image);
    assert!(arguments.iter().any(|word| word.contains("unit.img")));
    // It listens, waits for the first connection, and becomes the program.
    let mut command = Command::new("systemd-socket-activate");
    command
        .arg(format!("--listen={}", socket.display()))
        .arg(program().get_program())
        .args(arguments);
    let mut vu_blk = Running::start(&mut command);
    let mut lines = vu_blk.lines();
    let listening = lines.next().expect("a line");
    assert!(listening.starts_with("Listening on"), "{listening}");
    for _ in 0..2 {
        let front_end = UnixStream::connect(&socket).expect("connect");
        assert_ne!(features_of(&front_end) & 1 << 30, 0);
    }
    vu_blk.signal(libc::SIGTERM);
    assert_eq!(vu_blk.wait(), 0);
    let rest: Vec<_> = lines.collect();
    let qemu = format!("path={} ", socket.display());
    assert!(rest.iter().any(|line| line.contains(&qemu)), "{rest:?}");
    std::fs::remove_file(&socket).expect("the socket file is its owner's");
    std::fs::remove_file(&image).expect("remove");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn systemd_accepts_the_units() {
    // The program is not installed where the unit has it.
    let directory = scratch("units");
    std::fs::create_dir(&directory).expect("a directory");
    let path = program().get_program().to_str().expect("UTF-8").to_owned();
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify");
    for name in ["vu-blk@.service", "vu-blk@.socket"] {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples/systemd")
            .join(name);
        let text = std::fs::read_to_string(unit).expect("the unit");
        let copy = directory.join(name);
        std::fs::write(&copy, text.replace("/usr/local/bin/vu-blk", &path)).expect("a copy");
        verify.arg(copy);
    }
    let output = verify.output().expect("systemd-analyze");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    std::fs::remove_dir_all(&directory).expect("remove");
}

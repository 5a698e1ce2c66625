//! `vu-blk` as a program: its options, its errors, its status, its sockets.

#[path = "common/vu_blk.rs"]
mod vu_blk;

use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Output, Stdio};

use vu_blk::{Running, features_of, program, scratch, with_fd};

fn run(options: &[&str]) -> Output {
    program()
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("vu-blk")
}

/// One line on stderr that names `what`, nothing on stdout, status 2.
fn refused(options: &[&str], what: &str) {
    let output = run(options);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{options:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{options:?}: {stderr}");
    assert!(stderr.contains(what), "{options:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{options:?}");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn wrong_options_are_one_line_and_status_2() {
    refused(&["--socket-path=/tmp/x", "--null=1G", "--bogus"], "--bogus");
    refused(&["--socket-path=/tmp/x", "--null=1Q"], "1Q");
    refused(&["--socket-path=/tmp/x", "--null=100"], "100");
    refused(&["--socket-path=/tmp/x", "--null=99999999T"], "99999999T");
    refused(&["--null=1G"], "--socket-path");
    refused(&["--socket-path=/tmp/x"], "--blk-file");
    refused(
        &["--socket-path=/tmp/x", "--blk-file=/nonexistent/disk"],
        "/nonexistent/disk",
    );
    refused(
        &["--socket-path=/tmp/x", "--null=1G", "--num-queues=0"],
        "0",
    );
    refused(
        &["--socket-path=/tmp/x", "--null=1G", "--queue-size=100"],
        "100",
    );
    refused(&["--fd=77", "--null=1G"], "77");
    refused(
        &["--socket-path=/tmp/x", "--null=1G", "--poll-max-ns=-1"],
        "-1",
    );
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn it_says_what_it_is() {
    let capabilities = run(&["--print-capabilities"]);
    assert!(capabilities.status.success() && capabilities.stderr.is_empty());
    let text: String = String::from_utf8(capabilities.stdout)
        .expect("UTF-8")
        .split_whitespace()
        .collect();
    assert!(
        text.starts_with('{') && text.ends_with('}') && text.contains("\"type\":\"block\""),
        "{text}"
    );
    assert!(
        text.contains("\"read-only\"") && text.contains("\"blk-file\""),
        "{text}"
    );
    let version = run(&["--version"]);
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

/// The options as `--help` lists them: an option, its argument or nothing, its description.
fn options_of_help(help: &str) -> Vec<(&str, &str, String)> {
    let (_, rest) = help.split_once("\nOptions:\n").expect("a list of options");
    let (list, _) = rest.split_once("\n\n").expect("the list ends");
    let mut options: Vec<(&str, &str, String)> = Vec::new();
    for line in list.lines() {
        let (left, right) = line.split_at(24);
        if left.trim().is_empty() {
            let (_, _, description) = options.last_mut().expect("an option before it");
            description.push(' ');
            description.push_str(right);
        } else {
            let (name, argument) = left.trim().split_once('=').unwrap_or((left.trim(), ""));
            options.push((name, argument, right.to_owned()));
        }
    }
    options
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn help_lists_each_option_with_its_description_and_default() {
    let output = run(&["--help"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let options = options_of_help(&help);
    let names: Vec<_> = options.iter().map(|&(name, _, _)| name).collect();
    assert_eq!(
        names,
        [
            "--socket-path",
            "--fd",
            "--blk-file",
            "--null",
            "--read-only",
            "--num-queues",
            "--queue-size",
            "--iothreads",
            "--poll-max-ns",
            "--serial",
            "--verbose",
            "--print-capabilities",
            "--help",
            "--version",
        ]
    );
    for (name, argument, description) in &options {
        let is_sentence = description.starts_with(char::is_uppercase) && description.ends_with('.');
        assert!(is_sentence, "{name}: {description}");
        let has_default = description.contains(" Default: ");
        let may_be_left_out = !matches!(*name, "--socket-path" | "--fd" | "--blk-file" | "--null");
        assert_eq!(
            has_default,
            may_be_left_out
                && (!argument.is_empty() || matches!(*name, "--read-only" | "--verbose")),
            "{name}: {description}"
        );
        // What takes a value says so, and what takes none refuses one.
        if argument.is_empty() {
            if *name != "--print-capabilities" {
                refused(&[&format!("{name}=1")], "takes no value");
            }
        } else {
            refused(&[name], "needs a value");
        }
    }
    let (_, statuses) = help.split_once("\nExit status:\n").expect("exit status");
    let listed: Vec<_> = statuses
        .lines()
        .map(|line| line.split_whitespace().next().expect("a number"))
        .collect();
    assert_eq!(listed, ["0", "1", "2"]);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn an_error_names_the_file_and_the_reason() {
    let socket = format!("--socket-path={}", scratch("error.sock").display());
    let directory = std::env::temp_dir();
    for (file, reason) in [
        ("/nonexistent/disk.img", "No such file or directory"),
        (directory.to_str().expect("UTF-8"), "directory"),
        ("/dev/null", "neither a regular file nor a block device"),
    ] {
        refused(&[&socket, &format!("--blk-file={file}")], file);
        refused(&[&socket, &format!("--blk-file={file}")], reason);
    }
}

/// One line on stderr that names `what`, status 1.
fn fails_at_its_start(options: &[&str], what: &[&str]) {
    let output = run(options);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{options:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{options:?}: {stderr}");
    for what in what {
        assert!(stderr.contains(what), "{options:?}: {stderr}");
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn a_server_that_cannot_start_is_status_1() {
    let path = "/nonexistent/vu-blk.sock";
    fails_at_its_start(
        &[&format!("--socket-path={path}"), "--null=1M"],
        &[path, "No such file or directory"],
    );
    let taken = scratch("taken.sock");
    let _listener = UnixListener::bind(&taken).expect("bind");
    let taken = taken.to_str().expect("UTF-8");
    fails_at_its_start(&[&format!("--socket-path={taken}"), "--null=1M"], &[taken]);
    std::fs::remove_file(taken).expect("what others listen on is left alone");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn a_front_end_on_an_inherited_connection_that_breaks_the_protocol_is_status_1() {
    let (mut front_end, back_end) = UnixStream::pair().expect("pair");
    let mut command = program();
    command.args(["--fd=3", "--null=1M"]);
    let mut vu_blk = Running::start(with_fd(&mut command, back_end.into()));
    drop(command);
    let unknown = [0xffff_u32, 1, 0].map(u32::to_ne_bytes);
    front_end.write_all(unknown.as_flattened()).expect("send");
    assert_eq!(vu_blk.wait(), 1);
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn an_inherited_listening_socket_is_served_again_and_again() {
    let socket = scratch("listen.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let mut command = program();
    command.args(["--fd=3", "--null=1M"]);
    let mut vu_blk = Running::start(with_fd(&mut command, listener.into()));
    for _ in 0..2 {
        let front_end = UnixStream::connect(&socket).expect("connect");
        assert_ne!(features_of(&front_end) & 1 << 30, 0);
    }
    vu_blk.signal(libc::SIGTERM);
    assert_eq!(vu_blk.wait(), 0);
    std::fs::remove_file(&socket).expect("the socket file is its owner's");
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn an_inherited_connection_ends_the_program_with_it() {
    let (front_end, back_end) = UnixStream::pair().expect("pair");
    let mut command = program();
    command.args(["--fd=3", "--null=1M"]);
    // SAFETY: a new descriptor number that nothing else owns.
    let back_end = unsafe { OwnedFd::from_raw_fd(libc::dup(back_end.as_raw_fd())) };
    let mut vu_blk = Running::start(with_fd(&mut command, back_end));
    drop(command);
    assert_ne!(features_of(&front_end) & 1 << 30, 0);
    drop(front_end);
    assert_eq!(vu_blk.wait(), 0);
}

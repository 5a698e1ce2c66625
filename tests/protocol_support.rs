//! `docs/protocol-support.md` says what the library serves. It is generated from the library's own tables, and
//! this is the generator and the check that the page is what it would write now:
//! `UPDATE=1 cargo test --test protocol_support` writes it anew.
//!
//! A request gets a row in `protocol_support/rows.rs` together with its handler: what a device has to do for
//! it, and a test by name. A handler without a row fails here, and so does a row without its handler or test.

#[path = "protocol_support/rows.rs"]
mod rows;
#[path = "protocol_support/sources.rs"]
mod sources;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use vu_server::protocol::features::ProtocolFeatures;
use vu_server::protocol::requests::{REQUESTS, backend_id, backend_request_name};

use rows::{BACKEND_REQUESTS, FEATURES, REQUESTS as REQUEST_ROWS, Row};

const HEAD: &str = "\
# Protocol support

What of the vhost-user protocol the library serves. Generated from its tables by
`UPDATE=1 cargo test --test protocol_support`; a test compares the two.

A request that is not served is refused: in the error form of its own reply if it has one, else with a
non-zero acknowledgement if the front-end asked for one and `REPLY_ACK` is negotiated, else by ending the
connection. Its body is never taken for something else.
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn short(name: &str) -> &str {
    name.trim_start_matches("VHOST_USER_")
        .trim_start_matches("BACKEND_")
}

fn row<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.name == name)
}

/// One line of a table. Without a row it is not supported.
fn line(page: &mut String, id: u32, name: &str, needs: &str, row: Option<&Row>) {
    let (support, device, test) = match row {
        Some(row) => ("yes", row.device, format!("`{}`", row.test)),
        None => ("no", "", String::new()),
    };
    writeln!(
        page,
        "| {id} | {name} | {support} | {needs} | {device} | {test} |"
    )
    .expect("a string");
}

fn table(page: &mut String, title: &str, columns: [&str; 4]) {
    let [id, name, needs, device] = columns;
    writeln!(
        page,
        "\n## {title}\n\n| {id} | {name} | supported | {needs} | {device} | test |"
    )
    .expect("a string");
    page.push_str("|---|---|---|---|---|---|\n");
}

fn feature_name(feature: ProtocolFeatures) -> String {
    feature
        .iter_names()
        .map(|(name, _)| format!("`{name}`"))
        .collect()
}

fn generate() -> String {
    let mut page = HEAD.to_owned();
    let device = "what the device has to do";
    table(
        &mut page,
        "Front-end requests",
        ["id", "request", "needs", device],
    );
    for spec in &REQUESTS {
        let needs = spec.needs.map(feature_name).unwrap_or_default();
        let name = short(spec.name);
        line(&mut page, spec.id, name, &needs, row(REQUEST_ROWS, name));
    }
    table(
        &mut page,
        "Back-end requests",
        ["id", "request", "needs", device],
    );
    for id in 1..=backend_id::SHMEM_UNMAP {
        let name = short(backend_request_name(id));
        let found = row(BACKEND_REQUESTS, name);
        line(&mut page, id, name, "`BACKEND_REQ`", found);
    }
    table(
        &mut page,
        "Protocol features",
        ["bit", "feature", "offered", device],
    );
    for (name, feature) in ProtocolFeatures::all().iter_names() {
        let found = row(FEATURES, name);
        let offered = found.map_or("never", |row| row.offered);
        line(
            &mut page,
            feature.bits().trailing_zeros(),
            name,
            offered,
            found,
        );
    }
    page
}

#[test]
fn the_page_is_what_the_tables_say() {
    let path = root().join("docs/protocol-support.md");
    let page = generate();
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        fs::write(&path, &page).expect("writing the page");
    }
    let written = fs::read_to_string(&path).expect("docs/protocol-support.md");
    let same = written == page;
    assert!(
        same,
        "out of date: UPDATE=1 cargo test --test protocol_support"
    );
}

#[test]
fn every_handler_has_a_row_and_every_row_a_handler() {
    for spec in &REQUESTS {
        let served = vu_server::is_served(spec.id);
        let listed = row(REQUEST_ROWS, short(spec.name)).is_some();
        assert_eq!(
            served, listed,
            "{}: served, and listed in rows.rs",
            spec.name
        );
    }
    let unknown = |rows: &[Row]| {
        rows.iter()
            .find(|row| !REQUESTS.iter().any(|spec| short(spec.name) == row.name))
            .map(|row| row.name)
    };
    assert_eq!(unknown(REQUEST_ROWS), None, "a row for no request");
}

/// A back-end request is sent by the code that names its id; nothing else names one.
#[test]
fn every_back_end_request_that_is_sent_has_a_row() {
    let sources = sources::below(&root().join("src"), &["protocol"]);
    for id in 1..=backend_id::SHMEM_UNMAP {
        let name = short(backend_request_name(id));
        let sent = sources
            .iter()
            .any(|source| source.contains(&format!("backend_id::{name}")));
        let listed = row(BACKEND_REQUESTS, name).is_some();
        assert_eq!(sent, listed, "{name}: sent, and listed in rows.rs");
    }
}

#[test]
fn every_feature_that_is_offered_has_a_row() {
    let source = fs::read_to_string(root().join("src/session/features.rs")).expect("the source");
    let body = sources::function(&source, "offered_protocol_features");
    for (name, _) in ProtocolFeatures::all().iter_names() {
        let offered = sources::has_word(body, &format!("ProtocolFeatures::{name}"));
        let listed = row(FEATURES, name).is_some();
        assert_eq!(offered, listed, "{name}: offered, and listed in rows.rs");
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let mut tests = sources::below(&root().join("tests"), &["protocol_support"]);
    tests.extend(sources::below(&root().join("src"), &[]));
    for row in REQUEST_ROWS.iter().chain(BACKEND_REQUESTS).chain(FEATURES) {
        let head = format!("#[test] fn {}()", row.test);
        let found = tests
            .iter()
            .any(|source| sources::one_spaced(source).contains(&head));
        assert!(found, "{}: no test {}", row.name, row.test);
    }
}

//! Generates the C header and names the shared library that cargo links.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// In the order in which their functions stand in the header.
const SOURCES: [&str; 12] = [
    "ctx",
    "crypto",
    "message",
    "device",
    "config",
    "server",
    "front_end",
    "stats",
    "vq",
    "elem",
    "error",
    "version",
];
const HEADER: &str = "include/vu_server.h";

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvu_server.so.0");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-changed=src/capi");
    println!("cargo:rerun-if-env-changed=VU_SERVER_NO_HEADER");

    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("vu_server.h");
    let header = generate(&root);
    fs::write(&out, &header).expect("OUT_DIR is writable");
    if env::var_os("VU_SERVER_NO_HEADER").is_none_or(|value| value != "1") {
        update(&root.join(HEADER), &header);
    }
}

fn generate(root: &Path) -> Vec<u8> {
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("cbindgen.toml: {error}"));
    config.after_includes = config.after_includes.map(|text| with_version(&text));
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root.join(format!("src/capi/{name}.rs")));
    }
    let mut header = Vec::new();
    builder
        .generate()
        .unwrap_or_else(|error| panic!("src/capi: {error}"))
        .write(&mut header);
    header
}

/// The version is written in Cargo.toml only.
fn with_version(text: &str) -> String {
    let version = |part: &str| env::var(format!("CARGO_PKG_VERSION_{part}")).unwrap_or_default();
    text.replace("@MAJOR@", &version("MAJOR"))
        .replace("@MINOR@", &version("MINOR"))
        .replace("@PATCH@", &version("PATCH"))
}

/// Only if it differs, so that nothing is rebuilt for it. The sources may be read-only (a distribution's
/// build, or cargo's own cache): then the committed header stays, and a test compares.
fn update(path: &Path, header: &[u8]) {
    if fs::read(path).is_ok_and(|committed| committed == header) {
        return;
    }
    if let Err(error) = fs::write(path, header) {
        println!("cargo:warning={HEADER} is not up to date and cannot be written: {error}");
    }
}

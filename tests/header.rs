//! The committed C header: it is what build.rs makes, reads like C, and compiles as such.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

const HEADER: &str = include_str!("../include/vu_server.h");
const GENERATED: &str = include_str!(concat!(env!("OUT_DIR"), "/vu_server.h"));
const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// A function as the header declares it.
struct Function<'a> {
    name: &'a str,
    returns: &'a str,
    /// The comment that ends right before it, or nothing.
    comment: &'a str,
}

/// Everything between `extern "C" {` and its end: comments and declarations, each up to its semicolon.
fn functions() -> Vec<Function<'static>> {
    let (_, body) = HEADER
        .split_once("#endif // __cplusplus")
        .expect("extern C");
    let (mut rest, _) = body.split_once("#ifdef __cplusplus").expect("its end");
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start();
        let mut comment = "";
        if rest.starts_with("/**") {
            let end = rest.find("*/").expect("a comment that ends") + 2;
            (comment, rest) = rest.split_at(end);
        }
        let Some((code, after)) = rest.split_once(';') else {
            return found;
        };
        rest = after;
        let code = code.trim().trim_start_matches("VU_MUST_USE").trim();
        let (head, _) = code.split_once('(').expect("a function");
        let name = head.rsplit([' ', '*']).next().expect("a name");
        found.push(Function {
            name,
            returns: head[..head.len() - name.len()].trim(),
            comment,
        });
    }
}

/// The rows of the table in the overview: function and its columns.
fn table() -> Vec<Vec<&'static str>> {
    HEADER
        .lines()
        .filter_map(|line| line.strip_prefix(" *   "))
        .filter(|row| row.starts_with("vu_"))
        .map(|row| row.split_whitespace().collect::<Vec<_>>())
        // Not the drawing of the lifecycle.
        .filter(|row| !row[0].contains('('))
        .collect()
}

#[test]
fn the_committed_header_is_the_generated_one() {
    assert!(
        HEADER == GENERATED,
        "include/vu_server.h is not what src/capi and cbindgen.toml say: run cargo build"
    );
}

#[test]
fn nothing_in_it_is_written_for_rust() {
    for ism in [
        "[`", "::", "# Safety", "# Errors", "Option<", "Result<", "&mut", "unsafe", "@MAJOR@",
    ] {
        let line = HEADER.lines().find(|line| line.contains(ism));
        assert!(line.is_none(), "{ism:?} in {:?}", line.unwrap_or_default());
    }
    for line in HEADER.lines() {
        assert!(line.len() <= 80, "longer than 80 columns: {line:?}");
        assert!(line.trim_end() == line, "blanks at the end of {line:?}");
    }
}

#[test]
fn each_function_says_what_it_does_and_returns_and_since_when() {
    let functions = functions();
    assert!(
        functions.len() > 50,
        "only {} functions found",
        functions.len()
    );
    for function in functions {
        assert!(
            !function.comment.is_empty(),
            "{} has no comment",
            function.name
        );
        assert!(
            function.comment.contains("@since 0."),
            "{} does not say since when it is there",
            function.name
        );
        assert_eq!(
            function.comment.contains("@return"),
            function.returns != "void",
            "{} returns {}",
            function.name,
            function.returns
        );
    }
}

#[test]
fn the_table_of_contexts_has_each_function_once() {
    let declared: BTreeSet<_> = functions().iter().map(|function| function.name).collect();
    let rows = table();
    let listed: Vec<_> = rows.iter().map(|row| row[0]).collect();
    let names: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(names.len(), listed.len(), "a function is listed twice");
    assert_eq!(names, declared);
    for row in rows {
        assert_eq!(row.len(), 5, "{}: four columns", row[0]);
        for cell in &row[1..] {
            assert!(
                matches!(*cell, "yes" | "idle" | "-EBUSY" | "-EDEADLK" | "-EXDEV"),
                "{}: {cell}",
                row[0]
            );
        }
    }
}

fn compile(compiler: &str, flags: &[&str], source: &str) {
    let mut child = Command::new(compiler)
        .args(flags)
        .args([
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fsyntax-only",
            "-I",
            INCLUDE,
            "-",
        ])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    // Dropped at once, which ends the source.
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(source.as_bytes())
        .expect("the compiler reads its input");
    let output = child.wait_with_output().expect("the compiler ends");
    assert!(
        output.status.success(),
        "{compiler} {flags:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn it_compiles_alone_and_twice() {
    const SOURCE: &str = "#include <vu_server.h>\n#include <vu_server.h>\n";
    for standard in ["-std=c99", "-std=c11", "-std=gnu17"] {
        compile("cc", &["-x", "c", standard], SOURCE);
    }
    for standard in ["-std=c++11", "-std=c++17", "-std=gnu++20"] {
        compile("c++", &["-x", "c++", standard], SOURCE);
    }
}

/// The headers for loops, beside those of the loops' own libraries.
#[test]
fn the_headers_for_loops_compile_alone_and_twice() {
    for (name, package) in [
        ("event", "libevent"),
        ("glib", "glib-2.0"),
        ("uring", "liburing"),
        ("uv", "libuv"),
    ] {
        let output = Command::new("pkg-config")
            .args(["--cflags", package])
            .output()
            .expect("pkg-config runs");
        assert!(output.status.success(), "pkg-config --cflags {package}");
        let cflags = String::from_utf8(output.stdout).expect("UTF-8");
        let source = format!("#include <vu_server/{name}.h>\n").repeat(2);
        for (compiler, language) in [
            ("cc", ["-x", "c", "-std=gnu99"]),
            ("c++", ["-x", "c++", "-std=gnu++11"]),
        ] {
            let flags: Vec<_> = language
                .into_iter()
                .chain(cflags.split_whitespace())
                .collect();
            compile(compiler, &flags, &source);
        }
    }
}

#[test]
fn its_example_compiles() {
    let (_, example) = HEADER.split_once("@code\n").expect("an example");
    let (example, _) = example
        .split_once(" * @endcode")
        .expect("an example that ends");
    let source: String = example
        .lines()
        .map(|line| line.strip_prefix(" * ").unwrap_or("").to_owned() + "\n")
        .collect();
    assert!(source.contains("vu_server_start"));
    compile(
        "cc",
        &["-x", "c", "-std=c99"],
        &format!("#include <vu_server.h>\n{source}"),
    );
}

#[test]
fn the_example_in_the_readme_compiles() {
    const README: &str = include_str!("../README.md");
    let (_, example) = README.split_once("```c\n").expect("an example in C");
    let (example, _) = example.split_once("```").expect("an example that ends");
    assert!(example.contains("vu_server_start"));
    compile("cc", &["-x", "c", "-std=c99"], example);
}

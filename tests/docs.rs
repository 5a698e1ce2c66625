//! The documentation quotes what is compiled and tested, and nothing else.

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PAGES: [&str; 1] = ["docs/integrating.md"];

/// A fenced block: what is written behind the fence, and the lines without the fence's own indentation.
struct Block {
    info: String,
    lines: Vec<String>,
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let indentation = line.len() - line.trim_start().len();
        let body = lines
            .by_ref()
            .take_while(|line| line.trim_start() != "```")
            .map(|line| line.get(indentation..).unwrap_or_default().to_owned());
        found.push(Block {
            info: info.to_owned(),
            lines: body.collect(),
        });
    }
    found
}

fn quotes(source: &str, lines: &[String]) -> bool {
    let source: Vec<_> = source.lines().collect();
    !lines.is_empty() && source.windows(lines.len()).any(|window| window == lines)
}

#[test]
fn each_quotation_is_in_its_file() {
    for page in PAGES {
        let mut quotations = 0;
        for block in blocks(&read(page)) {
            let text = block.lines.join("\n");
            match block.info.split_once(' ') {
                Some(("c" | "rust", file)) => {
                    assert!(
                        quotes(&read(file), &block.lines),
                        "{page}: this is not in {file}:\n{text}"
                    );
                    quotations += 1;
                }
                // Commands, which scripts/lib/docs-commands.py runs.
                None if block.info == "sh" => {}
                _ => panic!("{page}: of no file: {:?}\n{text}", block.info),
            }
        }
        assert!(quotations > 0, "{page} quotes nothing");
    }
}

/// As GitHub makes an anchor of a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn each_link_and_file_that_is_named_is_there() {
    for page in PAGES {
        let text = read(page);
        let anchors: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect();
        for link in text.split("](#").skip(1) {
            let (name, _) = link.split_once(')').expect("a link that ends");
            assert!(anchors.iter().any(|a| a == name), "{page}: #{name}");
        }
        for name in text.split('`').skip(1).step_by(2) {
            if ["examples/", "c-tests/", "include/", "scripts/"]
                .iter()
                .any(|folder| name.starts_with(folder))
            {
                assert!(Path::new(ROOT).join(name).exists(), "{page}: {name}");
            }
        }
    }
}

/// Each function of the C interface that is named is one.
#[test]
fn each_function_that_is_named_is_declared() {
    let headers: String = ["", "/glib", "/uv", "/event", "/uring"]
        .iter()
        .map(|name| read(&format!("include/vu_server{name}.h")))
        .collect();
    for page in PAGES {
        let text = read(page);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("vu_") || word.starts_with("VU_")) {
            let known = headers
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .any(|other| other == word);
            assert!(known || word == "vu_server", "{page}: {word}");
        }
    }
}

//! Looking things up in the sources.

use std::fs;
use std::path::Path;

/// The text of every Rust file below `directory`, without what is below the directories of these names.
pub fn below(directory: &Path, without: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory of sources");
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let named = |name: &&str| path.file_stem().is_some_and(|stem| stem == *name);
        if without.iter().any(named) {
            continue;
        }
        if path.is_dir() {
            found.extend(below(&path, without));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(fs::read_to_string(&path).expect("a source"));
        }
    }
    found
}

/// From the head of a function to the next one.
pub fn function<'a>(source: &'a str, name: &str) -> &'a str {
    let start = source.find(&format!("fn {name}(")).expect("the function");
    let body = &source[start..];
    let end = body[1..]
        .find("\n    }\n")
        .map_or(body.len(), |end| end + 1);
    &body[..end]
}

/// Whether `text` has `word`, not just as the beginning of a longer one.
pub fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let next = text[at + word.len()..].chars().next();
        !next.is_some_and(|next| next.is_alphanumeric() || next == '_')
    })
}

/// The text with each run of white space as one blank.
pub fn one_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! Every case of the catalogue of malformed and hostile inputs has a test that carries its number.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The catalogue ends here.
const LAST: u32 = 95;

/// Cases that wait for the part of the library they are about, and what that is.
const NOT_YET: &[(u32, &str)] = &[(87, "packed rings")];

/// The sources of the tests below `directory`.
fn sources(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory of tests");
    entries
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                sources(&path)
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                vec![fs::read_to_string(&path).expect("a source")]
            } else {
                Vec::new()
            }
        })
        .collect()
}

/// The numbers in the name of a test: `case_49_and_50_any_order` has two.
fn numbers(name: &str) -> Vec<u32> {
    let mut words = name.split('_').peekable();
    let mut found: Vec<u32> = words
        .next()
        .and_then(|word| word.parse().ok())
        .into_iter()
        .collect();
    while words.next_if_eq(&"and").is_some() {
        found.extend(words.next().and_then(|word| word.parse::<u32>().ok()));
    }
    found
}

/// Cases with a test: a function named after them, right behind its attribute.
fn tested() -> BTreeSet<u32> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    sources(&tests)
        .iter()
        .flat_map(|source| {
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            lines
                .windows(2)
                .filter(|pair| pair[0] == "#[test]")
                .filter_map(|pair| pair[1].strip_prefix("fn case_"))
                .flat_map(|rest| numbers(rest.split('(').next().unwrap_or("")))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_case_has_a_test() {
    let tested = tested();
    let waiting = |case: u32| NOT_YET.iter().find(|row| row.0 == case);
    for case in 1..=LAST {
        match (tested.contains(&case), waiting(case)) {
            (true, None) | (false, Some(_)) => {}
            (true, Some((_, what))) => {
                panic!("case {case} has a test: take it off the list ({what})")
            }
            (false, None) => panic!("case {case} has no test"),
        }
    }
    let beyond: Vec<_> = tested
        .iter()
        .filter(|&&case| case == 0 || case > LAST)
        .collect();
    assert!(beyond.is_empty(), "no such cases: {beyond:?}");
}

#[test]
fn names_are_read_as_they_are_meant() {
    assert_eq!(numbers("07_version_and_flags"), [7]);
    assert_eq!(numbers("49_and_50_any_order"), [49, 50]);
    assert_eq!(numbers("of_another_kind"), []);
}

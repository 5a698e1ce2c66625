//! The README shows the examples as they are.

const README: &str = include_str!("../README.md");

/// The listings that stand between a line with this fence and the next fence.
fn listings(fence: &str) -> Vec<&'static str> {
    let start = format!("\n```{fence}\n");
    README
        .split(&start)
        .skip(1)
        .map(|rest| {
            let (listing, _) = rest.split_once("\n```\n").expect("a listing that ends");
            listing
        })
        .collect()
}

#[test]
fn its_listing_in_c_is_the_example_that_is_built_and_run() {
    let example = include_str!("../examples/minimal.c");
    assert_eq!(listings("c"), [example.trim_end()]);
}

#[test]
fn its_listing_in_rust_is_the_example_that_is_built_and_run() {
    let example = include_str!("../examples/minimal.rs");
    assert_eq!(listings("rust,no_run"), [example.trim_end()]);
}

//! The header's table of functions and contexts, kept by the Rust API where it has the function: each cell is what
//! really happens, and requests are served afterwards. The C ABI's half is c-tests/contract.c.

#[path = "sim/mod.rs"]
mod sim;

#[path = "common/stop.rs"]
mod stop;

#[path = "contract_table/cases.rs"]
mod cases;
#[path = "contract_table/scene.rs"]
mod scene;

use cases::case;
use scene::{Column, play};
use stop::guard;

const HEADER: &str = include_str!("../include/vu_server.h");

#[test]
fn each_cell_of_the_table_is_what_happens() {
    let _guard = guard("each_cell_of_the_table_is_what_happens", 300);
    let mut rows = 0;
    for row in HEADER
        .lines()
        .filter_map(|line| line.strip_prefix(" *   vu_"))
        .map(|row| row.split_whitespace().collect::<Vec<_>>())
        // Not the drawing of the lifecycle.
        .filter(|row| !row[0].contains('('))
    {
        let [function, owner, any, callback, detached] = row[..] else {
            panic!("four columns, not {row:?}");
        };
        let case = case(function);
        play(function, case, Column::Owner, owner);
        if any != "idle" {
            play(function, case, Column::AnyRunning, any);
        }
        if !(case.waits && any == "yes") {
            play(function, case, Column::AnyIdle, any);
        }
        play(function, case, Column::Callback, callback);
        play(function, case, Column::Detached, detached);
        rows += 1;
    }
    assert!(rows > 50, "only {rows} rows found");
}

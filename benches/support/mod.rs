//! The parts of the benchmark of block back-ends: programs to measure, how one round is measured,
//! and how the result is printed.

mod case;
pub mod control;
pub mod machine;
mod measure;
pub mod report;
mod server;
mod spread;

pub use case::{Case, Placement};
pub use measure::Plan;
pub use report::Report;
pub use server::{Candidate, Server};

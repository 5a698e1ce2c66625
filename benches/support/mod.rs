//! The parts of the benchmark of block back-ends: servers to measure, how one round is measured,
//! and how the result is printed.

pub mod machine;
mod measure;
mod report;
mod server;

pub use measure::{Case, Placement, Plan};
pub use report::Report;
pub use server::Server;

//! The operator of Longshore.

use clap::Parser;
use longshore_operator::{Cli, execute};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    execute(Cli::parse())
}

//! The command line: one file a subcommand.

pub mod bench;
pub mod config;

pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}

//! The `sconce` command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A wrong command line ends here, with exit code 2.
    let cli = sconce_cli::args::Cli::parse();
    match sconce_cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sconce: {error:#}");
            ExitCode::FAILURE
        }
    }
}

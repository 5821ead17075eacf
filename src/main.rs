fn main() -> std::process::ExitCode {
    arc_ingest::cli::main()
}

# Each recipe is plain cargo or bash: what stands here can be typed as it is.

# Everything that must pass before a change goes in.
check:
    cargo fmt --all -- --check
    cargo clippy --all-targets -- -D warnings
    cargo test
    cargo test --doc
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# The tests.
test:
    cargo test

# The commit queue, catalog and preallocator under many orders of their events; ARC_SHUTTLE_SCHEDULES sets how many.
shuttle:
    cargo test --features shuttle --lib shuttle_tests

# The simulation of the whole core: one seed (replayed, with every call), or random seeds for a few minutes.
sim SEED="":
    tests/sim/run {{SEED}}

# A crash at every call of the scripted runs, with FATES seeds each for what was not synced.
matrix FATES="1":
    tests/sim/run matrix {{FATES}}

# The simulation for HOURS; goes on where the last soak ended, and keeps its evidence in target/sim-evidence.tsv.
soak HOURS:
    tests/sim/run soak {{HOURS}}

# Deliberate faults in the core, one at a time: each must be noticed (tests/mutants/run --help).
mutants *NAMES:
    tests/mutants/run {{NAMES}}

# The built server as a process: kills, power cuts, full disks, failed syncs, an outside reader (tests/system/run --help).
system:
    tests/system/run

# Versions of Polars, DataFusion, DuckDB, pyarrow, fastparquet, Spark and ClickHouse read every class of file; the table of docs/reading.md
# (needs `cargo build --release`, Python, Java 17 for Spark; installs the readers into a cache of 3.3 GB, once).
readers *ARGS:
    tests/system/readers.py {{ARGS}}

# Every fuzz target for its share of the seconds (needs cargo-fuzz). What the fuzzers left behind is replayed by `cargo test --test it corpus`.
fuzz SECONDS="600":
    fuzz/run {{SECONDS}}

# Which lines the tests reach, as a table and as target/llvm-cov/html (needs cargo-llvm-cov and `rustup component add llvm-tools`).
coverage:
    cargo llvm-cov --lib --test it --html
    cargo llvm-cov report --summary-only

# The pages that are made from the code: arc.toml, docs/metrics.md. Tests say when they are not current.
reference:
    cargo build
    cargo run -q -- config reference > target/arc.toml && mv target/arc.toml arc.toml
    cargo run -q -- metrics reference > target/metrics.md && mv target/metrics.md docs/metrics.md

# The unit, the alerts and the Dockerfile, as far as this machine can try them (needs systemd, promtool, debootstrap, root; what is missing is skipped or fails).
ops:
    promtool check rules ops/prometheus/alerts.yml
    promtool test rules ops/prometheus/alerts_test.yml
    tests/system/run unit notify dockerfile

# Which clients hear the answers that come before their body is through, as a table (needs openssl; node, javac, wget and PyPI for all).
client-matrix:
    tests/system/run client_matrix

# schemathesis over docs/openapi.yaml (needs `pip install schemathesis msgpack`).
openapi:
    tests/system/run openapi_fuzz

# Measures the decoders and the Parquet encoder.
bench:
    cargo bench

# Licences, sources and versions of what is depended upon (needs cargo-deny).
deny:
    cargo deny check licenses bans sources

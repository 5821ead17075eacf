# docker build --build-arg ARC_REVISION=$(git rev-parse --short=12 HEAD) -t arc .
# How to run it: docs/operations.md, "In a container".
FROM rust:1.95-bookworm AS build
# .git is not in the context: without this the build does not know its commit.
ARG ARC_REVISION=unknown
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin arc

FROM debian:bookworm-slim
# Object stores are reached over TLS and need the list of authorities.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 arc \
 && useradd --no-log-init --uid 10001 --gid arc --home-dir /var/lib/arc --no-create-home --shell /usr/sbin/nologin arc \
 && install -d -o root -g arc -m 0750 /etc/arc \
 && install -d -o arc -g arc -m 0750 /var/lib/arc
COPY --from=build /src/target/release/arc /usr/bin/arc
COPY LICENSE-APACHE LICENSE-MIT README.md CHANGELOG.md /usr/share/doc/arc/
# Reachable from outside of the container, so with tokens: the first start prints an admin token once (docker logs).
ENV ARC_SERVER_HOST=0.0.0.0 \
    ARC_SERVER_PORT=8000 \
    ARC_AUTH_ENABLED=true \
    ARC_AUTH_TOKEN_FILE=/var/lib/arc/auth/tokens.json \
    ARC_WAL_DIRECTORY=/var/lib/arc/wal \
    ARC_STORAGE_LOCAL_PATH=/var/lib/arc/lake \
    ARC_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/arc
# The log must be on a volume: what is acknowledged and not yet in Parquet is nowhere else.
VOLUME /var/lib/arc
EXPOSE 8000
STOPSIGNAL SIGTERM
# Whether the process lives; whether it takes writes (arc healthcheck --ready) is a question for a load balancer, not a reason to restart it.
HEALTHCHECK --interval=10s --timeout=6s --start-period=20s --retries=3 CMD ["/usr/bin/arc", "healthcheck"]
ENTRYPOINT ["/usr/bin/arc"]
CMD ["serve"]

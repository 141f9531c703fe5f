# The image of wxgate: the binary, roots of certificates, a user without rights. It holds no configuration and no secret.
#
#   docker build -t wxgate .
#   docker run -v ./wxgate.toml:/etc/wxgate/wxgate.toml:ro -p 8080:8080 -e SHOP_SECRET wxgate
#
# deploy/compose has two of it behind a load balancer.

FROM rust:1.95-bookworm AS build
RUN rustup component add llvm-tools
WORKDIR /src
COPY . .
# A store in databases: --build-arg FEATURES=sql
ARG FEATURES=""
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    scripts/release --features "$FEATURES" --out /

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/wxgate --create-home --shell /usr/sbin/nologin wxgate
COPY --from=build /wxgate /usr/local/bin/wxgate
USER 10001
# For `store.kind = "file"`, which needs a volume here, and nothing else.
WORKDIR /var/lib/wxgate
EXPOSE 8080 8081
# The admin listener of this container, at its usual port.
HEALTHCHECK --interval=5s --timeout=2s --start-period=10s --retries=3 \
    CMD ["wxgate", "health", "--admin", "http://127.0.0.1:8081"]
ENTRYPOINT ["wxgate"]
CMD ["serve", "--config", "/etc/wxgate/wxgate.toml"]

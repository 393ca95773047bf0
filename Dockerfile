# A small image of Tidings: the binary on Debian, as a user who may do nothing.
#
#   docker build --tag tidings .
#   docker run --read-only --volume tidings:/var/lib/tidings --publish 50051:50051 tidings

FROM rust:1.94-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tidings

FROM debian:bookworm-slim
# The system's root certificates, for receivers and databases with TLS.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 65532 --group 65532 --mode 700 /var/lib/tidings
COPY --from=build /src/target/release/tidings /usr/local/bin/tidings
USER 65532:65532
WORKDIR /var/lib/tidings
ENV TIDINGS_GRPC_ADDR=0.0.0.0:50051 TIDINGS_HTTP_ADDR=0.0.0.0:8080
EXPOSE 50051 8080
ENTRYPOINT ["tidings"]
CMD ["serve"]

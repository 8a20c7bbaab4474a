# qproxy in a container: docs/how-to/run-in-containers.md. Builds with BuildKit and with the classic builder.
#   BASE_IMAGE  a Python of 3.11 or later, as python:3.12-slim
#   NATIVE      build: the QUIC engine is built here from native/, in some minutes; wheel: it is the wheel in dist/; off: without it
#   NATIVE_IMAGE  what it is built in, where that is to be another image: Debian's, with a Python of 3.11 or later. Where that has cargo,
#               rustup is not asked for it
ARG BASE_IMAGE=python:3.12-slim
ARG NATIVE_IMAGE

# hadolint ignore=DL3006
FROM ${NATIVE_IMAGE:-${BASE_IMAGE}} AS native
LABEL qproxy.stage=build
ARG NATIVE=build
ARG RUST=1.88.0
WORKDIR /src
COPY scripts/ scripts/
COPY native/ native/
# The README is there for a COPY whose other sources match nothing.
COPY README.md dis[t]/*.whl /wheels/
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3008,DL3013
RUN case $NATIVE in \
    build) \
        rm -f /wheels/*.whl; \
        if ! command -v cargo >/dev/null; then \
            apt-get update -q; \
            apt-get install -y -q --no-install-recommends ca-certificates curl; \
            curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o /tmp/rustup; \
            sh /tmp/rustup -y -q --profile minimal --default-toolchain "$RUST"; \
        fi; \
        scripts/native patch; \
        PATH=$HOME/.cargo/bin:$PATH pip wheel --no-cache-dir --no-deps -w /wheels ./native ;; \
    wheel) ls /wheels/qproxy_native-*.whl >/dev/null || { echo "NATIVE=wheel, and there is no qproxy_native-*.whl in dist/" >&2; exit 1; } ;; \
    off) rm -f /wheels/qproxy_native-*.whl ;; \
    *) echo "NATIVE=$NATIVE; expected build, wheel or off" >&2; exit 1 ;; \
    esac

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS packages
LABEL qproxy.stage=build
# Set, pip asks no index: all that is needed is in dist/, then.
ARG PIP_NO_INDEX
WORKDIR /src
COPY --from=native /wheels/ /wheels/
COPY pyproject.toml setup.py README.md LICENSE ./
COPY proxy/ proxy/
COPY balancer/ balancer/
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3013
RUN python -m venv /opt/qproxy; \
    export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/wheels; \
    /opt/qproxy/bin/pip install . ; \
    for wheel in /wheels/qproxy_native-*.whl; do \
        if [ -e "$wheel" ]; then /opt/qproxy/bin/pip install --no-deps "$wheel"; fi; \
    done; \
    /opt/qproxy/bin/qproxy --version; \
    mkdir -m 700 /state; chown 10001:10001 /state

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="qproxy" \
    org.opencontainers.image.description="A reverse proxy and load balancer for HTTP/1.1, HTTP/2 and HTTP/3" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/qproxy/ /opt/qproxy/
# The owner goes with the folder, into a volume that is made there too.
COPY --from=packages --chown=10001:10001 /state/ /state/
COPY conf.d/qproxy.yaml /etc/qproxy/qproxy.yaml
COPY deploy/docker/healthy.py /usr/local/bin/qproxy-healthy
ENV PATH=/opt/qproxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIRECTORY=/state
# A number, so that Kubernetes can see that it is not root. It needs no capability: Docker lets everybody bind ports below 1024.
USER 10001:10001
WORKDIR /state
EXPOSE 8443/tcp 8443/udp 9090/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 CMD ["qproxy-healthy"]
ENTRYPOINT ["qproxy"]
CMD ["-c", "/etc/qproxy"]

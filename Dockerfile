# The production image: ironwork-server and what it runs on. No simulator, client, tests, compiler,
# pip or HSM module. See docs/operations.md for what to mount.

ARG BASE=debian:bookworm-slim

# --- build: wheels of our own distributions, and a virtual environment from the locked versions ---
FROM ${BASE} AS build

# Debian's security updates are wanted: the suite fixes the versions, and 3.11 is Python's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# Locked packages first: this layer stays while only our code changes. pip itself stays behind.
COPY requirements/build.txt requirements/server.txt /src/requirements/
RUN python3 -m venv /build \
    && /build/bin/pip install --require-hashes -r /src/requirements/build.txt \
    && python3 -m venv --without-pip /opt/ironwork \
    && /build/bin/pip --python /opt/ironwork/bin/python \
        install --only-binary :all: --require-hashes -r /src/requirements/server.txt

WORKDIR /src
COPY protos ./protos
COPY hsm ./hsm
COPY audit ./audit
COPY server ./server
# `./hsm`, not `hsm`: strangers' packages have those names.
RUN /build/bin/pip wheel --no-index --no-deps --no-build-isolation -w /dist \
        ./protos ./hsm ./audit ./server \
    && /build/bin/pip --python /opt/ironwork/bin/python install --no-index --no-deps /dist/*.whl \
    && /build/bin/pip --python /opt/ironwork/bin/python check

# --- the image ---
FROM ${BASE}

LABEL org.opencontainers.image.title="ironwork-server" \
      org.opencontainers.image.description="Keeps Anthropic API keys for agents" \
      org.opencontainers.image.licenses="Apache-2.0"

# ca-certificates are the trust roots for Anthropic's certificate.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 ironwork \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin ironwork

COPY --from=build /opt/ironwork /opt/ironwork
COPY LICENSE NOTICE /usr/share/doc/ironwork/

# The code is root's and the server is not: it cannot change what it runs.
USER 10001:10001
WORKDIR /
ENV PATH=/opt/ironwork/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 7443
STOPSIGNAL SIGTERM
# No HEALTHCHECK: grpc.health.v1 wants a client certificate, which no image holds; the orchestrator
# brings one.
ENTRYPOINT ["ironwork-server"]
CMD ["serve", "--config", "/etc/ironwork/server.toml"]

# Base of all stages, so that the environment runs where it was built. Another one (--build-arg BASE=...) needs Python 3.11 or
# newer, and pip.
ARG BASE=python:3.11-slim-bookworm


# Only the dependencies, so that other changes in pyproject.toml do not reinstall torch.
FROM ${BASE} AS requirements
# Comma-separated extras of pyproject.toml: --build-arg EXTRAS=heif,otel to decode HEIC and to export traces.
ARG EXTRAS=
COPY pyproject.toml .
RUN EXTRAS="$EXTRAS" python -c "import os, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [name for name in os.environ['EXTRAS'].split(',') if name]; \
print(*project['dependencies'], *(line for name in extras for line in project['optional-dependencies'][name]), sep='\n')" \
    > /requirements.txt


FROM ${BASE} AS dependencies
# Settings of pip, for example an index of torch's CPU builds. Declared in stages that are discarded, so that a password
# does not end up in the image's history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The base's pip fills the environment, which needs no pip of its own.
RUN python -m venv --without-pip /venv
COPY --from=requirements /requirements.txt .
COPY constraints.txt .
RUN pip --python /venv/bin/python install --constraint constraints.txt --requirement requirements.txt


FROM dependencies AS package
WORKDIR /source
COPY . .
# A separate prefix becomes a separate layer.
RUN pip --python /venv/bin/python install --no-deps --prefix /package .


FROM ${BASE}
LABEL org.opencontainers.image.title="vit-serve" \
      org.opencontainers.image.description="A REST inference service for trained Vision Transformers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /venv /venv
COPY --from=package /package /venv
# Loopback inside a container is unreachable from outside. Models by hub id go to /tmp, which is writable; mount a volume there
# to keep them.
ENV PATH=/venv/bin:$PATH \
    VIT_HOST=0.0.0.0 \
    VIT_CACHE_DIR=/cache \
    HF_HOME=/tmp/huggingface
EXPOSE 8000
# A number, because Kubernetes cannot verify that a name is not root. The user owns only /cache, the mount point of the cache;
# without a mount, on a read-only root, nothing is cached.
RUN install --directory --owner 10001 --group 10001 --mode 700 /cache
USER 10001:10001
# A base may set another signal; SIGTERM lets accepted requests finish.
STOPSIGNAL SIGTERM
# Ready, not live: `up --wait`, `depends_on` and Swarm's routing need to know whether to send requests, and only ready reports
# a dead worker, which a new container fixes. A full queue does not fail it.
# http.client, because the image has no curl, and urllib would use a proxy from the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('VIT_PORT', 8000)), timeout=4); \
connection.request('GET', '/health/ready'); \
sys.exit(connection.getresponse().status != 200)"]
# The exec form, so that signals reach the process. `docker run vit-serve` serves; a subcommand replaces `serve`.
ENTRYPOINT ["vit-serve"]
CMD ["serve"]

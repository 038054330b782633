# Every stage starts from here, so that the environment built in one runs in the other. Give another base with
# --build-arg BASE=...; it needs Python 3.11 or newer, and pip.
ARG BASE=python:3.11-slim-bookworm


# What the project depends on, and nothing else of it: as long as these lines stay, torch is not installed again,
# whatever else changes in pyproject.toml.
FROM ${BASE} AS requirements
# Extras of pyproject.toml, with commas: --build-arg EXTRAS=heif for an image that can decode HEIC.
ARG EXTRAS=
COPY pyproject.toml .
RUN EXTRAS="$EXTRAS" python -c "import os, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [name for name in os.environ['EXTRAS'].split(',') if name]; \
print(*project['dependencies'], *(line for name in extras for line in project['optional-dependencies'][name]), sep='\n')" \
    > /requirements.txt


FROM ${BASE} AS dependencies
# pip reads these as its own settings, for example to take torch from an index of CPU builds. They are declared in
# stages that are thrown away, so that a password in them does not end in the image's history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The image never installs anything once it is built, so its environment has no pip; the base's fills it from outside.
RUN python -m venv --without-pip /venv
COPY --from=requirements /requirements.txt .
COPY constraints.txt .
RUN pip --python /venv/bin/python install --constraint constraints.txt --requirement requirements.txt


FROM dependencies AS package
WORKDIR /source
COPY . .
# Under a prefix of its own, to be a layer of its own in the image.
RUN pip --python /venv/bin/python install --no-deps --prefix /package .


FROM ${BASE}
LABEL org.opencontainers.image.title="vit-serve" \
      org.opencontainers.image.description="A REST inference service for trained Vision Transformers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /venv /venv
COPY --from=package /package /venv
# Inside a container, the loopback address is one that nobody outside can reach.
# A model by hub id is kept in the one place that can be written; mount a volume there to keep it longer.
ENV PATH=/venv/bin:$PATH \
    VIT_HOST=0.0.0.0 \
    VIT_CACHE_DIR=/cache \
    HF_HOME=/tmp/huggingface
EXPOSE 8000
# A number, because Kubernetes cannot tell whether a name is root. Of the image it owns nothing but the place to mount a
# cache at; without a mount, on a read-only root, nothing is kept.
RUN install --directory --owner 10001 --group 10001 --mode 700 /cache
USER 10001:10001
# A base may have set another one, and this is the one that lets accepted requests finish.
STOPSIGNAL SIGTERM
# Ready, not live: who reads this wants to know whether to send requests (`up --wait`, `depends_on`, Swarm's routing), and a
# dead worker, which only ready tells, is cured by a new container. A full queue does not fail it.
# http.client, because the image has no curl, and urllib would ask a proxy named in the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('VIT_PORT', 8000)), timeout=4); \
connection.request('GET', '/health/ready'); \
sys.exit(connection.getresponse().status != 200)"]
# Without a shell in between, signals reach the process. `docker run vit-serve` serves; any other subcommand goes in its place.
ENTRYPOINT ["vit-serve"]
CMD ["serve"]

# The three images of Longshore. The build context holds the static (musl) binaries of the wanted target and a bundle of CA certificates;
# nothing is compiled here, so an image takes seconds and is the same wherever it is made.
#
#   docker build --target operator --build-arg VERSION=1.2.3 CONTEXT

FROM scratch AS operator
ARG VERSION=dev
LABEL org.opencontainers.image.title="longshore-operator" \
      org.opencontainers.image.description="Scales workers and drives workflows" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY longshore-operator /longshore-operator
USER 65532:65532
ENTRYPOINT ["/longshore-operator"]

FROM scratch AS worker-sidecar
ARG VERSION=dev
LABEL org.opencontainers.image.title="longshore-worker-sidecar" \
      org.opencontainers.image.description="Claims jobs, calls the handler beside it, and settles them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY longshore-worker-sidecar /longshore-worker-sidecar
USER 65532:65532
ENTRYPOINT ["/longshore-worker-sidecar"]

FROM scratch AS broker
ARG VERSION=dev
LABEL org.opencontainers.image.title="longshore-broker" \
      org.opencontainers.image.description="The embedded broker: jobs in SQLite behind an HTTP API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY longshore-broker /longshore-broker
USER 65532:65532
ENTRYPOINT ["/longshore-broker"]

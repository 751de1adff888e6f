# Three images: `docker build .` serves, over SQLite or in memory; `--target cluster` has PostgreSQL's libraries too and
# is for web processes and workers; `--target directory` is the embedded directory.

FROM python:3.11-slim-bookworm AS python
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --no-log-init --uid 10001 --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin hospital
WORKDIR /service

FROM python AS libraries
COPY requirements.txt ./
RUN python -m venv --without-pip /venv && pip --python /venv install --no-cache-dir --requirement requirements.txt

FROM libraries AS cluster-libraries
COPY requirements-postgres.txt ./
RUN pip --python /venv install --no-cache-dir --requirement requirements-postgres.txt

FROM python AS directory-libraries
COPY embedded_directory/requirements.txt ./
RUN python -m venv --without-pip /venv && pip --python /venv install --no-cache-dir --requirement requirements.txt

FROM python AS directory
COPY --from=directory-libraries /venv /venv
COPY embedded_directory embedded_directory/
USER 10001:10001
ENV EMBEDDED_DIRECTORY_HOST=0.0.0.0
EXPOSE 9000
# It looks at the port alone: a request could be limited, or be in the journal.
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9000), 4).close()"]
CMD ["python", "-m", "embedded_directory"]

# What both images that serve have in common. The code belongs to root, so the service cannot change it.
FROM python AS code
COPY api_docs.py api_keys.py app.py batch.py batch_json.py check_page.py create_hold.py cross_site.py \
    csv_decoding.py csv_errors.py csv_header.py csv_rules.py directory_batch.py directory_errors.py events.py \
    gunicorn.conf.py hospital_client.py ledger.py live_metrics.py logs.py metrics.py pacing.py preferences.py \
    problem_document.py problems.py proxies.py rate_limit.py reconcile.py request_limit.py request_log.py \
    request_times.py results_file.py retries.py rounds.py routes.py runner.py schema.py service.py settings.py \
    settings_command.py sql_store.py sqlite_store.py store.py transport.py upload.py worker.py \
    openapi.yaml sample_hospitals.csv ./
COPY cluster cluster/
COPY serving serving/
COPY static static/
COPY templates templates/
RUN install --directory --owner=hospital --group=hospital /data
USER 10001:10001
ENV PORT=8000
EXPOSE 8000
# Any answer but a 5xx is one of a service that lives: with TRUSTED_HOSTS it has a 400 for this host name.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import http.client, os; service = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); service.request('GET', '/health'); exit(service.getresponse().status >= 500)"]
# In this form gunicorn is process 1, which SIGTERM goes to.
CMD ["gunicorn", "app:app"]

FROM code AS cluster
COPY --from=cluster-libraries /venv /venv

# The last one, so the one that is built when none is named.
FROM code AS service
COPY --from=libraries /venv /venv
ENV DATABASE_URL=sqlite:////data/hospitals.db
VOLUME /data

"""Feast's command line with an audited feature server: `python feast_server.py --chdir feature_repo serve`.

The feature_store.yaml of the store has to say `feature_server: {audit_logging: {enabled: true}}`.
"""

from feast.cli.cli import cli

from otel_audit.integrations.feast import install

if __name__ == "__main__":
    install(replace=True)
    cli()

"""A nightly job that leaves an audit trail: `python plain_script.py DAYS`.

Without an OTLP endpoint in the environment the journal is the destination. Look at it with `otel-audit tail`.
"""

import sys

import otel_audit
from otel_audit import AuditPrincipal, AuditResource

# Days since each was last here.
CUSTOMERS = {"ann": 3, "bob": 800, "eve": 1200}


def main(days: int) -> None:
    """Delete the customers who have not been here for so many days."""
    job = AuditPrincipal(username="nightly-cleanup", auth_type="job")
    with otel_audit.configure() as audit, audit.operation("job.cleanup", principal=job, attributes={"days": days}):
        if days < 1:
            raise ValueError("everybody would be forgotten")  # the operation is recorded as an error
        for name in [name for name, away in CUSTOMERS.items() if away > days]:
            customer = AuditResource(type="customer", name=name, actions=["DELETE"])
            # The event is durable before anything is deleted. If it cannot be recorded, nothing is deleted.
            with audit.require("customer.delete", principal=job, resource=customer):
                del CUSTOMERS[name]


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""A FastAPI service whose requests, log-ins and decisions are audited: `uvicorn fastapi_app:app`.

curl -H "Authorization: Bearer secret-of-ann" -X DELETE localhost:8000/orders/7
"""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

import otel_audit
from otel_audit import AuditPrincipal, AuditResource
from otel_audit.integrations.fastapi import Ruling, audited_authentication, audited_permission

audit = otel_audit.configure()

USERS = {
    "secret-of-ann": AuditPrincipal(username="ann", roles=["writer"]),
    "secret-of-bob": AuditPrincipal(username="bob", roles=["reader"]),
}
ORDERS = {7: "three apples", 8: "a pear"}


def user_of(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> AuditPrincipal:
    """Return the user that a token belongs to."""
    if token.credentials not in USERS:
        raise HTTPException(401, "unknown token")
    return USERS[token.credentials]


User = Annotated[AuditPrincipal, Depends(audited_authentication(audit, user_of, auth_type="bearer"))]


def may_delete(order: int, user: User) -> Ruling:
    """Allow it to writers only."""
    return Ruling("writer" in user.roles, reason="needs the role writer", policy_id="orders.delete")


MayDelete = Depends(
    audited_permission(audit, may_delete, resource=AuditResource(type="order", name="orders"), actions=["DELETE"])
)

app = FastAPI()
app.add_middleware(otel_audit.AuditMiddleware, audit=audit, exclude=["/health"])


@app.get("/health")
def health() -> str:
    """Answer a probe. It is excluded above: a probe comes every few seconds."""
    return "ok"


@app.get("/orders/{order}")
def read(order: int, user: User) -> str:
    """Return what was ordered."""
    if order not in ORDERS:
        raise HTTPException(404)
    return ORDERS[order]


@app.delete("/orders/{order}", dependencies=[MayDelete])
def delete(order: int) -> None:
    """Delete an order."""
    ORDERS.pop(order, None)

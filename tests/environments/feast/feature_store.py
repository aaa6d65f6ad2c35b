"""A small feature store: drivers and their ratings, in files of one directory and in SQLite."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.permissions.action import AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.types import Float32
from feast.value_type import ValueType

__all__ = ["ASK", "a_feature_store"]

ASK = {"features": ["ratings:rating"], "entities": {"driver_id": [1, 2]}}
"""The body of a request for online features."""


def a_feature_store(directory: Path, mcp_transport: str = "http", **audit_logging: Any) -> FeatureStore:
    """A store in the directory, with two drivers in its online store, for the role reader.

    Its server speaks REST, and MCP over `http` or `sse`.
    """
    directory.mkdir()
    server = {"type": "mcp", "enabled": True, "mcp_enabled": True, "mcp_transport": mcp_transport}
    config = {
        "project": "drivers",
        "provider": "local",
        "registry": str(directory / "registry.db"),
        "online_store": {"type": "sqlite", "path": str(directory / "online.db")},
        "offline_store": {"type": "dask"},
        "entity_key_serialization_version": 3,
        "feature_server": {**server, "audit_logging": {"enabled": True, **audit_logging}},
    }
    (directory / "feature_store.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    ratings = pd.DataFrame({"driver_id": [1, 2], "rating": [4.5, 3.0], "at": [datetime.now(UTC)] * 2})
    ratings.to_parquet(directory / "ratings.parquet")
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    files = FileSource(name="files", path=str(directory / "ratings.parquet"), timestamp_field="at")
    view = FeatureView(
        name="ratings",
        entities=[driver],
        ttl=timedelta(days=1),
        schema=[Field(name="rating", dtype=Float32)],
        source=PushSource(name="pushed", batch_source=files),
    )
    readers = Permission(
        name="readers",
        types=[FeatureView],
        policy=RoleBasedPolicy(roles=["reader"]),
        actions=[AuthzedAction.READ_ONLINE],
    )
    store = FeatureStore(repo_path=str(directory))
    store.apply([driver, view, readers])
    store.write_to_online_store("ratings", ratings)
    return store

"""Releases in MLflow's model registry: a version each, and aliases that move between them."""

from __future__ import annotations

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from perennial.tracking.outbox import Registration

RELEASE_TAG = "perennial.release"
"""on a model version: the name of its release, by which it is found again"""
LOCATION_TAG = "perennial.location"


def register(
    client: MlflowClient, run_id: str, item: Registration, source: str, store: tuple[str, str]
) -> None:
    """Have the release as one version of its model, with its aliases; safe to repeat.

    Args:
        client: of MLflow.
        run_id: of the run that made the release.
        item: the release.
        source: where MLflow finds its files.
        store: tag that names the store: a release of that name in another one is another version.
    """
    _have_model(client, item.model)
    version = _version(client, run_id, item, store) or _create(client, run_id, item, source)
    for key, value in (*item.tags, *([store] if store[1] else [])):
        client.set_model_version_tag(item.model, version.version, key, value)
    for alias in item.aliases:
        client.set_registered_model_alias(item.model, alias, version.version)


def _have_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(
    client: MlflowClient, run_id: str, item: Registration, store: tuple[str, str]
) -> ModelVersion | None:
    wanted = f"name = '{item.model}' and tags.`{RELEASE_TAG}` = '{item.release}'"
    tag, store_id = store

    def is_its(version: ModelVersion) -> bool:
        if tag in version.tags:
            return bool(version.tags[tag] == store_id)
        # An earlier version of this package named no store, but run and place.
        return bool(version.run_id == run_id or version.tags.get(LOCATION_TAG) == item.location)

    versions = filter(is_its, client.search_model_versions(wanted))
    return min(versions, key=lambda version: int(version.version), default=None)


def _create(client: MlflowClient, run_id: str, item: Registration, source: str) -> ModelVersion:
    return client.create_model_version(
        item.model,
        source,
        run_id,
        tags={RELEASE_TAG: item.release, LOCATION_TAG: item.location},
        await_creation_for=0,
    )

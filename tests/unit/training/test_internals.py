"""Private names of DeepSpeed and of MLflow are used in one module each, those of Ray in two."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "platform" / "perennial"
OF_RAY_CORE = "training/ray/core_internals.py"
OF_RAY_TRAIN = "training/ray/internals.py"
OF_DEEPSPEED = "training/engine/deepspeed_internals.py"
OF_MLFLOW = "tracking/mlflow_runs.py"
RAY_NAMES = {
    "_autoscaling_coordinator",
    "_count_possible_workers",
    "_base_exc",
    "_common",
    "_coordinator_client",
    "_create_default_callbacks",
    "_get_reserved_resources",
    "_initialize_and_run_controller",
    "_internal",
    "_private",
    "_requester_id",
    "_send_resource_request",
    "_TorchBackend",
    "_worker_group_failures",
    "preemption_context",
}
DEEPSPEED_NAMES = {
    "DS_AUTOTP_UC_META",
    "__compatible_ops__",
    "_hp_mapping",
    "bit16_groups",
    "cdb",
    "ds_id",
    "ds_numel",
    "ds_process_group",
    "ds_tensor",
    "fp16_groups",
    "fp32_groups",
    "fp32_partitioned_groups_flat",
    "get_tensor_model_parallel_group",
    "hp_fragment_address",
    "lp_fragment_address",
    "partition_numel",
    "single_partition_of_fp32_groups",
}
MLFLOW_NAMES = {"mlflow.parentRunId", "to_proto"}


def _names(path: Path) -> Iterator[str]:
    """Every identifier of a module: of imports, attributes, definitions and short texts."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Constant(value=str(text)):  # as in `getattr(tensor, "ds_id")`
                yield text
            case ast.Import(names=names):
                yield from (part for alias in names for part in alias.name.split("."))
            case ast.ImportFrom(module=module, names=names):
                yield from (module or "").split(".")
                yield from (alias.name for alias in names)


@pytest.mark.parametrize(
    ("homes", "private"),
    [
        ({OF_RAY_CORE, OF_RAY_TRAIN}, RAY_NAMES),
        ({OF_DEEPSPEED}, DEEPSPEED_NAMES),
        ({OF_MLFLOW}, MLFLOW_NAMES),
    ],
    ids=["ray", "deepspeed", "mlflow"],
)
def test_private_names_of_a_library_are_used_in_its_modules(
    homes: set[str], private: set[str]
) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if private & set(_names(path))
    }
    assert users == homes


@pytest.mark.parametrize("library", ["ray", "deepspeed", "mlflow"])
def test_nothing_else_imports_a_private_name_of_a_library(library: str) -> None:
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            for parts in (name.split(".") for name in imported):
                if parts[0] == library and any(part.startswith("_") for part in parts):
                    users.add(path.relative_to(PACKAGE).as_posix())
    assert users <= {OF_RAY_CORE, OF_RAY_TRAIN, OF_DEEPSPEED}

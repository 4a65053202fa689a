# [Task]: T100 [From]: specs/requirements.md
"""Clients in Go and Kotlin are generated and read: a 64-bit id, what may be absent, headers."""

import subprocess
import sys
from pathlib import Path

import pytest
from service import ROOT


@pytest.mark.parametrize(
    ("language", "declarations"),
    [
        (
            "go",
            {
                "model_task_public.go": ["Id int64", "Description NullableString"],
                "model_task_create.go": ["Title string", "Completed *bool"],
                "api_tasks.go": ["taskId int64", "IfMatch(ifMatch string)"],
            },
        ),
        (
            "kotlin",
            {
                "TaskPublic.kt": ["val id: kotlin.Long", "val description: kotlin.String?"],
                "TaskCreate.kt": ["val title: kotlin.String", "val completed: kotlin.Boolean? ="],
                "TasksApi.kt": ["taskId: kotlin.Long", "ifMatch: kotlin.String?"],
            },
        ),
    ],
)
def test_clients_have_the_right_types(
    tmp_path: Path, language: str, declarations: dict[str, list[str]]
) -> None:
    command = [f"{Path(sys.executable).parent}/openapi-generator-cli", "generate"]
    command += ["-i", f"{ROOT / 'specs/openapi.json'}", "-g", language, "-o", f"{tmp_path}"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    for name, declared in declarations.items():
        [path] = tmp_path.rglob(name)
        text = " ".join(path.read_text().split())
        assert [wanted for wanted in declared if wanted not in text] == [], name
